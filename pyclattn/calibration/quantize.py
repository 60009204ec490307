"""Weights in fewer bits, and what that changes: measured on samples, within a limit if one is given.

A model whose weights are all small is compared with the float32 one on the samples. Where its outputs change more than
the limit allows, each layer is tried alone, those that change the outputs most are kept in float32, and what results is
measured again, until the change is within the limit. Changes of layers add up as squares, roughly; that only says where
to look, the measurement decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np

from pyclattn._tables import table
from pyclattn.calibration import samples as given_samples
from pyclattn.calibration.progress import Progress
from pyclattn.errors import ArgumentError
from pyclattn.graph.program import Program
from pyclattn.graph.quantise import Layer, layers, quantise
from pyclattn.graph.weights import weight_bytes
from pyclattn.model import Model

__all__ = ["Quantized", "quantize"]

Feed = dict[str, np.ndarray]


@dataclass(frozen=True)
class Quantized:
    """A model with small weights, and what was found.

    Attributes
    ----------
    model : Model
        Save it with ``model.save(path)``.
    weights : str
        "int8", "fp16" or "bf16".
    layers : list of Layer
        All weights that could be stored in fewer bits.
    kept : dict of str to str
        Names of those that stayed float32, with the reason.
    change : float or None
        The largest relative change of an output on a sample, ||y - y32|| / ||y32||; None without samples.
    errors : dict of str to float
        The change that each layer alone makes; measured only where some had to be kept.
    """

    model: Model
    weights: str
    layers: list[Layer]
    kept: dict[str, str]
    change: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    float32_bytes: int = 0

    def __str__(self) -> str:
        n_small, size = len(self.layers) - len(self.kept), weight_bytes(self.model.program)
        lines = [f"{n_small} of {len(self.layers)} weights are {self.weights}: {size / 1e6:.1f} MB, "
                 f"{size / max(1, self.float32_bytes):.3f} of {self.float32_bytes / 1e6:.1f} MB"]  # fmt: skip
        if self.change is not None:
            lines.append(f"change of the output on the samples: {self.change:.2e}")
        if self.kept:
            known = {layer.name: layer for layer in self.layers}
            rows = [(name, known[name].used_by, f"{known[name].n_bytes / 1e6:.2f} MB", why)
                    for name, why in self.kept.items()]  # fmt: skip
            lines.append("\nkept in float32\n" + table(rows, ("weight", "read by", "size", "because")))
        return "\n".join(lines)


def quantize(
    model: Model,
    weights: str = "int8",
    samples: Sequence[Mapping[str, np.ndarray]] | None = None,
    *,
    keep_above: float | None = None,
) -> Quantized:
    """Store a model's weights in fewer bits.

    Weights of dense layers and embeddings become int8 (one scale a column of a dense layer or row of an embedding;
    dense layers then round their input to 8 bits too, each row by its own scale, and sum exactly), or float16 or
    bfloat16, which are computed with in float32.

    Parameters
    ----------
    model : Model
    weights : str
        "int8", "fp16" or "bf16".
    samples : sequence of mappings of input name to array, optional
        What the change is measured on.
    keep_above : float, optional
        The change of outputs allowed, relative; the layers that change them most stay float32 until it is kept.

    Returns
    -------
    Quantized

    Raises
    ------
    ArgumentError
        If ``weights`` is unknown, samples do not fit the model, ``keep_above`` comes without samples, or no weight can
        be stored in fewer bits.

    Examples
    --------
    >>> import numpy as np
    >>> import pyclattn
    >>> from pyclattn.graph.program import Op, Program, Value
    >>> x, y = Value("x", "float32", ("n", 64)), Value("y", "float32", ("n", 64))
    >>> rng = np.random.default_rng(0)
    >>> weight = rng.standard_normal((64, 64), dtype=np.float32)
    >>> model = pyclattn.Model(Program([x], [y], [Op("MatMul", ("x", "w"), ("y",))], {"w": weight}))
    >>> found = pyclattn.quantize(model, "int8", [{"x": rng.standard_normal((8, 64), dtype=np.float32)}])
    >>> found.kept, 0.001 < found.change < 0.02
    ({}, True)
    """
    given_samples.check_model(model)
    source = model.program
    found = layers(source)
    if not found:
        raise ArgumentError("the model has no weight of a dense layer or embedding in float32 that could be smaller")
    if samples is None:
        if keep_above is not None:
            raise ArgumentError("keep_above is a change of outputs on samples: give samples too")
        program, refused = quantise(source, weights)
        return _result(model, program, weights, found, refused)
    limit = inf if keep_above is None else keep_above
    if not isinstance(limit, (int, float)) or not limit > 0:
        raise ArgumentError(f"keep_above must be a number above 0, got {keep_above!r}")
    feeds = given_samples.checked(model, samples, needs_attention=False)
    return _Search(model, weights, found, feeds).within(limit)


def _result(
    model: Model, program: Program, weights: str, found: list[Layer], kept: dict[str, str], **known
) -> Quantized:
    """The outcome; a plan in the model's file goes along."""
    small = Model(program, n_threads=model.n_threads, max_memory=model.max_memory)
    return Quantized(small, weights, found, kept, float32_bytes=weight_bytes(model.program), **known)


class _Search:
    """Measures variants of one model on the same samples."""

    def __init__(self, model: Model, weights: str, found: list[Layer], feeds: list[Feed]):
        self.model, self.weights, self.layers = model, weights, found
        self.feeds, self.wanted = feeds, [model(**feed) for feed in feeds]

    def change(self, keep: set[str]) -> tuple[Program, dict[str, str], float]:
        """(program, weights it refused, largest change of an output) where these weights stay float32."""
        program, refused = quantise(self.model.program, self.weights, keep)
        small = Model(program, attention=self.model.plan, n_threads=self.model.n_threads)
        worst = 0.0
        for feed, wanted in zip(self.feeds, self.wanted):
            worst = max(worst, *(_distance(got, wanted[name]) for name, got in small(**feed).items()))
        return program, refused, worst

    def within(self, limit: float) -> Quantized:
        """The fewest weights kept that this search finds."""
        program, kept, change = self.change(set())
        errors: dict[str, float] = {}
        if change > limit:
            errors = self._alone(kept)
            order = sorted(errors, key=lambda name: -errors[name])
            n_kept = 0
            while change > limit and n_kept < len(order):
                n_kept = self._next(n_kept, [errors[name] for name in order], limit / change)
                program, _, change = self.change({*order[:n_kept], *kept})
            kept = {**kept, **{name: f"alone it changes the output by {errors[name]:.1e}" for name in order[:n_kept]}}
        return _result(self.model, program, self.weights, self.layers, kept, change=change, errors=errors)

    def _alone(self, refused: Mapping[str, str]) -> dict[str, float]:
        """The change that each weight makes on its own."""
        names = [layer.name for layer in self.layers if layer.name not in refused]
        found = {}
        with Progress(len(names), unit="layer") as bar:
            for name in names:
                found[name] = self.change({*names, *refused} - {name})[2]
                bar.step(1)
        return found

    @staticmethod
    def _next(n_kept: int, errors: list[float], factor: float) -> int:
        """How many to keep next: as squares add up, those that leave ``factor`` of the present change."""
        rest = np.cumsum(np.square(errors[::-1]))[::-1]  # rest[i]: of all from i on
        aim = rest[n_kept] * factor**2
        return next((i for i in range(n_kept + 1, len(errors)) if rest[i] <= aim), len(errors))


def _distance(got: np.ndarray, wanted: np.ndarray) -> float:
    """||got - wanted|| / ||wanted||; of whole numbers, the share that differs."""
    if wanted.dtype.kind != "f":
        return float(np.mean(got != wanted)) if wanted.size else 0.0
    size = float(np.linalg.norm(wanted.astype(np.float64).ravel()))
    apart = float(np.linalg.norm((got.astype(np.float64) - wanted).ravel()))
    return apart / size if size else float(apart > 0) and inf
