"""The five verbs in order: load, map, validate, save, verify."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tqdm import tqdm

from pyclattn import _threads
from pyclattn.calibration import Quantized, quantize
from pyclattn.errors import ArgumentError
from pyclattn.graph.passes import Report
from pyclattn.graph.serial import save_program
from pyclattn.model import Model
from pyclattn.plan import Plan
from pyclattn.weights.targets import as_path, check_target
from pyclattn_export.from_onnx import from_onnx, optimise
from pyclattn_export.validate import validate
from pyclattn_export.verify import Comparison, compare


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes
    ----------
    report : Report
        Attentions found, and Softmax operators kept with the reason.
    comparison : Comparison or None
        With the original, where that was asked for.
    quantized : Quantized or None
        What weights in fewer bits change, where they were asked for.
    """

    report: Report
    comparison: Comparison | None = None
    quantized: Quantized | None = None


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    dynamic: Mapping[str, Iterable[int]] | None = None,
    float_attention: bool = False,
    verify: bool = False,
    attention: str | Mapping = "exact",
    inputs: Mapping | None = None,
    sizes: Mapping[str, int] | None = None,
    golden: str | os.PathLike | None = None,
    n_threads: int | None = None,
    progress: bool | None = None,
    weights: str | None = None,
    keep_above: float | None = None,
) -> Conversion:
    """Convert an ONNX file to one safetensors file.

    Parameters
    ----------
    source, target : path-like
        The target is written whole or not at all.
    dynamic : mapping of input name to axes, optional
        Axes of fixed size to be left open.
    float_attention : bool
        See `pyclattn.graph.passes.optimize`.
    verify : bool
        Run ONNX Runtime and the written file on the same input and compare.
    attention : str or mapping
        The attention to verify with.
    inputs : mapping of str to array, optional
        What to verify on; by default random input that fits.
    sizes : mapping of str to int, optional
        Lengths of open axes in that random input.
    golden : path-like, optional
        Where to write inputs and ONNX Runtime's outputs as .npz.
    n_threads : int, optional
        For verification.
    progress : bool, optional
        A progress bar; by default where there is a terminal.
    weights : str, optional
        "int8", "fp16" or "bf16": store weights in fewer bits, as `pyclattn.quantize` does; what that changes is
        measured on ``inputs``, if these are given.
    keep_above : float, optional
        See `pyclattn.quantize`.

    Returns
    -------
    Conversion

    Raises
    ------
    ModelFormatError, UnsupportedOpError
        Naming file and node.
    """
    if keep_above is not None and weights is None:
        raise ArgumentError("keep_above goes with weights: int8, fp16 or bf16")
    Plan.of(attention)
    _threads.resolve(n_threads)
    source = as_path("source", source)
    target = check_target("target", target, ".safetensors", others=[source])
    if golden is not None:
        check_target("golden", golden, others=[source, target])
    verbs = ["load and map", "optimise", "validate", "save"] + (["verify"] if verify or golden else [])
    with tqdm(total=len(verbs), disable=None if progress is None else not progress, bar_format=BAR) as bar:
        done = _steps(bar, verbs)
        done()
        program = from_onnx(source, dynamic=dynamic)
        done()
        program, report = optimise(program, str(source), float_attention)
        done()
        validate(program, str(source))
        quantized = None
        if weights is not None:
            samples = None if inputs is None else [inputs]
            quantized = quantize(Model(program, n_threads=n_threads), weights, samples, keep_above=keep_above)
            program = quantized.model.program
        done()
        save_program(target, program)
        if not (verify or golden):
            done()
            return Conversion(report, quantized=quantized)
        done()
        comparison = compare(
            source, target, dynamic=dynamic, attention=attention, inputs=inputs, sizes=sizes, golden=golden,
            n_threads=n_threads,
        )  # fmt: skip
        done()
    return Conversion(report, comparison, quantized)


BAR = "{desc:<14}{bar:30} {n_fmt}/{total_fmt} {elapsed}"


def _steps(bar: tqdm, verbs: list[str]):
    """A call that ends one verb and names the next."""
    rest = iter(verbs)
    started = False

    def done() -> None:
        nonlocal started
        if started:
            bar.update()
        started = True
        bar.set_description_str(next(rest, "done"))

    return done
