"""Verify: ONNX Runtime and pyclattn on the same input, the largest difference of every output."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyclattn._tables import table
from pyclattn.errors import ArgumentError, ModelFormatError
from pyclattn.graph.ops.stored import DEQUANTIZE
from pyclattn.graph.padding import masks, padded
from pyclattn.graph.planner import check_inputs
from pyclattn.graph.program import Program, walk
from pyclattn.model import load
from pyclattn.weights.targets import write_atomically
from pyclattn_export.tensors import parse

# Of an output's range. Rounding to 8 bits turns a difference in the last digit into a whole step now and then.
TOLERANCE, TOLERANCE_INT8 = 1e-4, 1e-2
# Long enough for several tiles and an odd rest, short enough to be quick.
LENGTH, BATCH = 37, 2


@dataclass(frozen=True)
class Difference:
    """One output, compared."""

    output: str
    shape: tuple[int, ...]
    largest: float
    relative: float  # to the output's range
    same_argmax: float  # share of rows whose largest element is at the same place


@dataclass(frozen=True)
class Comparison:
    """pyclattn beside the original; ``str(comparison)`` is a table.

    Without a tolerance, as where weights are stored in fewer bits, differences are told and not judged.
    """

    differences: list[Difference]
    tolerance: float | None

    @property
    def passed(self) -> bool:
        return self.tolerance is None or all(difference.relative <= self.tolerance for difference in self.differences)

    def __str__(self) -> str:
        rows = []
        for d in self.differences:
            shape = " x ".join(map(str, d.shape)) or "scalar"
            rows.append((d.output, shape, f"{d.largest:.2e}", f"{d.relative:.2e}", f"{d.same_argmax:.2%}"))
        verdict = f"{'within' if self.passed else 'NOT within'} {self.tolerance or 0:g} of the range"
        if self.tolerance is None:
            verdict = "with what weights in fewer bits change"
        head = ("output", "shape", "largest difference", "of its range", "same argmax")
        return f"{table(rows, head)}\n{verdict}"


def compare(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    dynamic: Mapping[str, Iterable[int]] | None = None,
    attention: str | Mapping = "exact",
    inputs: Mapping | None = None,
    sizes: Mapping[str, int] | None = None,
    golden: str | os.PathLike | None = None,
    n_threads: int | None = None,
) -> Comparison:
    """Run an ONNX file in ONNX Runtime and its conversion in pyclattn.

    Parameters
    ----------
    source, target : path-like
        The ONNX file and the converted one.
    dynamic, attention, inputs, sizes, golden, n_threads
        As of `pyclattn_export.convert`.

    Returns
    -------
    Comparison
    """
    model = load(target, attention=attention, n_threads=n_threads)
    program = model.program
    feeds = dict(inputs) if inputs is not None else random_inputs(program, source, sizes or {})
    check_inputs(program.inputs, {name: np.asarray(array) for name, array in feeds.items()})
    # as it is written: ONNX Runtime's optimisations round activations of 8 bits in other places
    wanted = run_onnxruntime(source, feeds, dynamic, n_threads, is_optimised=not is_quantised(program))
    found = model(**feeds)
    if golden is not None:
        keep(golden, feeds, wanted)
    padding = padded(program, feeds)
    differences = [difference(name, wanted[name], found[name], _rows(padding, wanted[name])) for name in wanted]
    if any(op.kind == DEQUANTIZE for op in program.ops):
        return Comparison(differences, None)
    return Comparison(differences, TOLERANCE_INT8 if is_quantised(program) else TOLERANCE)


def keep(golden: str | os.PathLike, feeds: Mapping, outputs: Mapping) -> None:
    """Write what a model was given and gave as .npz: ``input.name``, ``output.name``."""
    arrays = {f"input.{name}": array for name, array in feeds.items()}
    arrays |= {f"output.{name}": array for name, array in outputs.items()}
    write_atomically(golden, lambda file: np.savez(file, **arrays))


def is_quantised(program: Program) -> bool:
    """Whether a program rounds activations to 8 bits.

    Examples
    --------
    >>> is_quantised(Program([], [], []))
    False
    """
    kinds = {op.kind.partition(":")[2] or op.kind for op in walk(program)}
    return any(kind == "QuantizeLinear" or kind.startswith(("DynamicQuantize", "QLinear")) for kind in kinds)


def difference(name: str, wanted: np.ndarray, found: np.ndarray, padding: np.ndarray | None = None) -> Difference:
    """Compare one output; rows at padding, where an output has a row for each position, are left out.

    Examples
    --------
    >>> round(difference("y", np.array([0.0, 2.0]), np.array([0.0, 2.1])).relative, 3)
    0.05
    """
    if wanted.shape != found.shape:
        raise ModelFormatError(f"output {name!r} has shape {found.shape}, the original's has {wanted.shape}")
    shape = wanted.shape
    if padding is not None and shape[: padding.ndim] == padding.shape:
        wanted, found = wanted[~padding], found[~padding]
    if wanted.size == 0:
        return Difference(name, shape, 0.0, 0.0, 1.0)
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    # Infinities and NaN must be the same ones; only the rest has a distance.
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return Difference(name, shape, float("inf"), float("inf"), 0.0)
    largest = float(np.abs(a[finite] - b[finite]).max(initial=0))
    spread = float(np.ptp(a[finite])) if finite.any() else 0.0
    relative = largest / spread if spread else (0.0 if largest == 0 else float("inf"))
    same = float((a.argmax(-1) == b.argmax(-1)).mean()) if a.ndim else 1.0
    return Difference(name, shape, largest, relative, same)


def _rows(padding: list[np.ndarray], output: np.ndarray) -> np.ndarray | None:
    """Which rows of an output are padding in one of the attentions; None where all would be, or it has no such rows."""
    fitting = [own for own in padding if own.shape == output.shape[: own.ndim]]
    rows = np.logical_or.reduce(fitting) if fitting else None
    return None if rows is None or rows.all() else rows


def run_onnxruntime(
    source: str | os.PathLike,
    feeds: Mapping,
    dynamic: Mapping[str, Iterable[int]] | None = None,
    n_threads: int | None = None,
    is_optimised: bool = True,
) -> dict[str, np.ndarray]:
    """ONNX Runtime's outputs by name; ``dynamic`` axes are opened in a copy in memory.

    Raises
    ------
    ModelFormatError
        If onnxruntime is not installed or cannot run the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelFormatError("verification needs onnxruntime: pip install pyclattn[verify]") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = n_threads or 0
    if not is_optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = Path(source)
    try:
        session = onnxruntime.InferenceSession(opened(path, dynamic), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        wanted = {entry.name for entry in session.get_inputs()}
        outputs = session.run(None, {name: array for name, array in feeds.items() if name in wanted})
        return dict(zip(names, outputs))
    except Exception as error:  # onnxruntime raises pybind classes without a public base
        if type(error).__module__.startswith("onnxruntime") or isinstance(error, (RuntimeError, ValueError)):
            raise ModelFormatError(f"{path}: ONNX Runtime does not run it: {error}") from error
        raise


def opened(path: Path, dynamic: Mapping[str, Iterable[int]] | None) -> str | bytes:
    """The model with open axes, as ONNX Runtime takes it; the path where nothing is opened."""
    if not dynamic:
        return str(path)
    model = parse(path)
    if any(tensor.data_location for tensor in model.graph.initializer):
        raise ArgumentError("verification with dynamic axes needs a model without external data")
    for entry in model.graph.input:
        for axis in dynamic.get(entry.name, ()):
            entry.type.tensor_type.shape.dim[axis].dim_param = f"{entry.name}_{axis}"
    for entry in model.graph.output:
        for axis, dim in enumerate(entry.type.tensor_type.shape.dim):
            dim.dim_param = f"{entry.name}_{axis}"
    del model.graph.value_info[:]  # shapes in there are of the fixed size
    return model.SerializeToString()


def random_inputs(program: Program, source: str | os.PathLike, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Input that fits: noise for numbers, indices within the tables they look up, a mask with some padding.

    Parameters
    ----------
    program : Program
    source : path-like
        The ONNX file: axes that were opened get the size they had there.
    sizes : mapping of str to int
        Lengths of open axes by name; by default 2 for a first axis, 37 for others.
    """
    axes = {size for value in program.inputs for size in value.shape if isinstance(size, str)}
    unknown = sorted(set(sizes) - axes)
    if unknown:
        raise ArgumentError(
            f"size names no open axis: {', '.join(unknown)}; they are {', '.join(sorted(axes)) or 'none'}"
        )
    rng = np.random.default_rng(0)
    limits = _limits(program)
    original = {entry.name: entry for entry in parse(Path(source)).graph.input}
    feeds = {}
    for value in program.inputs:
        dims = original[value.name].type.tensor_type.shape.dim if value.name in original else ()
        shape = []
        for axis, size in enumerate(value.shape):
            if isinstance(size, str):
                was = dims[axis].dim_value if axis < len(dims) else 0
                size = sizes.get(size) or was or (BATCH if axis == 0 else LENGTH)
            shape.append(size)
        feeds[value.name] = _random(rng, value.dtype, tuple(shape), limits.get(value.name, 2))
    for name, token in masks(program, feeds).items():
        feeds[name] = _mask(feeds[name].shape, feeds[name].dtype, token)
    return feeds


def _mask(shape: tuple[int, ...], dtype: npt.DTypeLike, token: int) -> np.ndarray:
    """``token`` everywhere but at the end of the last sequence, where there is padding."""
    mask = np.full(shape, token, dtype)
    mask[-1:, max(1, 3 * shape[1] // 4) :] = 1 - token
    return mask


def _random(rng: np.random.Generator, dtype: str, shape: tuple[int, ...], limit: int) -> np.ndarray:
    kind = np.dtype(dtype).kind
    if kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if kind == "b":
        return np.ones(shape, dtype)
    return rng.integers(0, limit, shape).astype(dtype)


def _limits(program: Program) -> dict[str, int]:
    """For each input that looks up rows of a table, how many rows the smallest of them has."""
    limits: dict[str, int] = {}
    rows = {name: array.shape[0] for name, array in program.constants.items() if array.ndim}
    sources = {value.name: value.name for value in program.inputs}
    for op in program.ops:
        if op.kind in ("Cast", "Identity", "Reshape") and op.inputs[0] in sources:
            sources[op.outputs[0]] = sources[op.inputs[0]]
        if op.kind == "Mul" and op.outputs and set(op.inputs) & set(rows) and op.inputs[0] in rows:
            rows[op.outputs[0]] = rows[op.inputs[0]]
        if op.kind in ("Cast", "DequantizeLinear") and op.inputs[0] in rows:
            rows[op.outputs[0]] = rows[op.inputs[0]]
        if op.kind == "Gather" and op.inputs[1] in sources and op.inputs[0] in rows:
            name = sources[op.inputs[1]]
            limits[name] = min(rows[op.inputs[0]], limits.get(name, 1 << 31))
    return limits
