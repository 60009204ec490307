"""Weights of convolutions made ready before any run: in the order the tile reads them, phase by phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from pyclattn.arrays import Float32, Int32
from pyclattn.functional import conv
from pyclattn.functional.conv_bfloat16 import paired_filters
from pyclattn.functional.winograd import LEAST_CHANNELS, LEAST_DEPTH, MOST_DEPTH, winograd_filters
from pyclattn.graph.phases import Phase, Places, fits_tile, plain_phase, remainder_phases, seen_at
from pyclattn.graph.program import Op
from pyclattn.graph.spec import Spec

CONVOLUTIONS = ("Conv", "ConvTranspose")
# Of more phases than this each is too small to be worth a packed copy.
MOST_PHASES = 64


@dataclass(frozen=True)
class PackedFilters:
    """A convolution's weight.

    Attributes
    ----------
    filters : dict of kernel elements to float32 or int32 array (groups, M, taps x C)
        Of each phase; int32 are words of two channels in bfloat16.
    """

    filters: dict[Places, Float32 | Int32]

    @property
    def nbytes(self) -> int:
        """Bytes of all phases."""
        return sum(array.nbytes for array in self.filters.values())

    @property
    def is_paired(self) -> bool:
        """Whether products are of bfloat16."""
        return any(array.dtype == np.int32 for array in self.filters.values())

    def holds(self, phases: list[Phase]) -> bool:
        """Whether these phases are packed; not so where the weight was packed for another convolution."""
        return all(phase.elements in self.filters for phase in phases)


@dataclass(frozen=True)
class WinogradFilters:
    """The weight of a transposed convolution of stride 2 by 4 x 4 kernels, as `winograd.bound_upsampling` takes it."""

    filters: Float32 | Int32

    @property
    def nbytes(self) -> int:
        """Bytes of all filters."""
        return self.filters.nbytes

    @property
    def is_paired(self) -> bool:
        """Whether products are of bfloat16."""
        return self.filters.dtype == np.int32

    def holds(self, phases: list[Phase]) -> bool:
        """Never whether phases are packed."""
        return False


@dataclass(frozen=True)
class WinogradPacking:
    """How such a weight, (G x C, M, 4, 4), is packed; equal ones do the same."""

    groups: int
    is_paired: bool

    def __call__(self, weight: Float32) -> WinogradFilters:
        """The weight, packed."""
        return WinogradFilters(winograd_filters(conv.grouped(weight, self.groups, True), self.is_paired))


@dataclass(frozen=True)
class Packing:
    """How the weight of a convolution is packed; equal ones do the same."""

    groups: int
    phases: tuple[Places, ...]
    is_transposed: bool
    is_paired: bool

    def __call__(self, weight: Float32) -> PackedFilters:
        """The weight, (G x M, C, ...), or (G x C, M, ...) of a transposed convolution, packed."""
        kernel = conv.grouped(weight, self.groups, self.is_transposed)
        found: dict[Places, Float32 | Int32] = {}
        for elements in self.phases:
            filters = np.ascontiguousarray(conv.ordered_filters(kernel, elements))
            terms = paired_filters(filters) if self.is_paired else filters
            found[elements] = terms.reshape(*terms.shape[:2], -1)
        return PackedFilters(found)


def is_doubling(weight: Spec, groups: int, strides: Sequence[int], dilations: Sequence[int]) -> bool:
    """Whether a transposed convolution makes an image twice as large by kernels of 4 x 4, of enough channels."""
    doubles = weight.shape[2:] == (4, 4) and tuple(strides) == (2, 2) and tuple(dilations) == (1, 1)
    return doubles and weight.shape[1] >= LEAST_CHANNELS and LEAST_DEPTH <= weight.shape[0] // groups <= MOST_DEPTH


def packing_of(op: Op, weight: Spec, precision: str) -> Packing | WinogradPacking | None:
    """How a convolution's weight may be packed; None where what it sees depends on the size of the input, or where the
    tile does not take it."""
    get, d, is_transposed = op.attributes.get, weight.ndim - 2, op.kind == "ConvTranspose"
    groups = get("group", 1)
    depends = get("auto_pad", "NOTSET") not in ("NOTSET", "", None) or get("output_shape") is not None
    if d not in (1, 2) or weight.dtype != np.float32 or depends or not isinstance(groups, int) or groups < 1:
        return None
    strides, dilations, pads = (_numbers(get(name), n, least) for name, n, least in (("strides", d, 1),
                                                                                     ("dilations", d, 1),
                                                                                     ("pads", 2 * d, 0)))  # fmt: skip
    if not strides or not dilations or not pads or weight.shape[0] % groups:
        return None
    kernel, begin = weight.shape[2:], pads[:d]
    if not is_transposed:
        channels, depth, phases = weight.shape[0] // groups, weight.shape[1], [plain_phase(kernel, dilations, begin)]
    elif is_doubling(weight, groups, strides, dilations) and conv.is_fast():
        return WinogradPacking(groups, precision == "bfloat16")
    elif prod(strides) <= MOST_PHASES:
        channels, depth = weight.shape[1], weight.shape[0] // groups
        axes = [seen_at(*of, n_phases=of[1]) for of in zip(kernel, strides, dilations, begin)]
        phases = remainder_phases(axes, strides)
    else:
        return None
    n_terms = depth * max(len(phase.elements) for phase in phases)
    is_paired = precision == "bfloat16" and depth > 1
    if not fits_tile(channels, n_terms) or (set(kernel) == {1} and set(strides) == {1} and not is_paired):
        return None  # one element without strides is a plain product
    return Packing(groups, tuple(phase.elements for phase in phases), is_transposed, is_paired)


def _numbers(given: object, n: int, least: int) -> list[int]:
    """An attribute's numbers, or what stands for none; empty if they are not as they must be."""
    numbers = list(given) if isinstance(given, (list, tuple)) and given else [least] * n
    fits = len(numbers) == n and all(isinstance(x, int) and x >= least for x in numbers)
    return numbers if fits else []
