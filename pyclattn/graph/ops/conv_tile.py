"""Convolutions on the tile, plain and transposed, over one or two spatial axes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyclattn.functional import conv
from pyclattn.graph.spec import Kernel, Node, Spec

# With fewer channels filling the panel costs more than the product saves.
LEAST_CHANNELS = 8


@dataclass(frozen=True)
class Phase:
    """Outputs that see the input alike.

    Attributes
    ----------
    elements : list of (int, int)
        Kernel elements, row and column.
    taps : list of (int, int)
        Where in the input each is, beside position x steps.
    first : (int, int)
        The first output row and column; every ``every``-th from there belongs to the phase.
    """

    elements: list[tuple[int, int]]
    taps: list[tuple[int, int]]
    first: tuple[int, int] = (0, 0)
    every: tuple[int, int] = (1, 1)


def is_tiled(x: Spec, weight: Spec, channels: int, depth: int, n_elements: int) -> bool:
    """Whether the tile takes a convolution of ``depth`` channels to ``channels``, each of one group."""
    if x.dtype != np.float32 or weight.dtype != np.float32 or x.ndim not in (3, 4) or x.strides is not None:
        return False
    return channels >= LEAST_CHANNELS and 1 < depth * n_elements <= conv.MOST_TERMS and conv.is_fast()


def tiled(
    node: Node, out: Spec, groups: int, phases: list[Phase], steps: tuple[int, int], is_transposed: bool
) -> Kernel:
    """Kernel of a convolution by phases; the weight is (G x M, C, ...), or (G x C, M, ...) of a transposed one."""
    x, weight, threads = node.spec(0), node.spec(1), node.settings.n_threads

    def plane(shape: tuple[int, ...]) -> tuple[int, ...]:
        """With rows, of which one axis alone has one."""
        return shape if len(shape) == 4 else (*shape[:2], 1, *shape[2:])

    def bind(ins, outs, scratch):
        images, target = ins[0].reshape(plane(x.shape)), outs[0].reshape(plane(out.shape))
        kernel = ins[1].reshape(groups, -1, *plane(weight.shape)[1:])
        if is_transposed:
            kernel = kernel.swapaxes(1, 2)
        fills, calls, begin = [], [], 0
        for phase in phases:
            given = conv.ordered_filters(kernel, phase.elements)
            n_bytes = given.size * 4
            filters = scratch[begin : begin + n_bytes].view(np.float32).reshape(given.shape)
            begin += n_bytes
            fills.append((filters, phase.elements))
            view = target[:, :, phase.first[0] :: phase.every[0], phase.first[1] :: phase.every[1]]
            flat, bias = filters.reshape(*filters.shape[:2], -1), ins[2] if node.has(2) else None
            calls.append(
                conv.bound_convolution(images, flat, phase.taps, bias, steps=steps, n_threads=threads, out=view)
            )

        def run():
            for filters, elements in fills:
                np.copyto(filters, conv.ordered_filters(kernel, elements))
            for call in calls:
                call()

        return run

    depth = weight.shape[0] // groups if is_transposed else weight.shape[1]
    panel = conv.panel_bytes(depth * max(len(phase.elements) for phase in phases))
    return Kernel([out], bind, scratch=-(-weight.nbytes // 64) * 64, transient=weight.nbytes + threads * panel)
