"""Convolutions on the tile, plain and transposed, over one or two spatial axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyclattn.functional import conv, winograd
from pyclattn.functional.conv_bfloat16 import bound_pairing
from pyclattn.graph import blocks
from pyclattn.graph.phases import Phase, fits_tile
from pyclattn.graph.spec import Kernel, Node, Spec


def is_tiled(x: Spec, weight: Spec, channels: int, n_terms: int) -> bool:
    """Whether the tile takes a convolution of these arrays to ``channels`` of one group."""
    if x.dtype != np.float32 or weight.dtype != np.float32 or x.ndim not in (3, 4) or x.strides is not None:
        return False
    return fits_tile(channels, n_terms)


def tiled(
    node: Node, out: Spec, groups: int, phases: list[Phase], steps: tuple[int, int], is_transposed: bool
) -> Kernel:
    """Kernel of a convolution by phases; the weight is (G x M, C, ...), or (G x C, M, ...) of a transposed one."""
    x, weight, threads = node.spec(0), node.spec(1), node.settings.n_threads
    depth = weight.shape[0] // groups if is_transposed else weight.shape[1]
    packed = weight.packed if weight.packed is not None and weight.packed.holds(phases) else None
    copied = _copied(x)
    is_paired = packed is not None and packed.is_paired
    n_words = -(-depth // 2) if is_paired else 0
    words_shape = (x.shape[0], groups, n_words, int(np.prod(x.shape[2:])))
    paired = -(-4 * int(np.prod(words_shape)) // 64) * 64

    def bind(ins, outs, scratch):
        source, calls = _in_order(x, ins[0], scratch, threads)
        images = source.reshape(_plane_shape(x.shape))
        if is_paired:
            words = scratch[copied : copied + 4 * int(np.prod(words_shape))].view(np.int32)
            flat = source.reshape(x.shape[0], groups, depth, -1)
            calls.append(bound_pairing(flat, words.reshape(words_shape), n_threads=threads))
            images = words.reshape(x.shape[0], groups * n_words, *images.shape[2:])
        target, bias = outs[0].reshape(_plane_shape(out.shape)), ins[2] if node.has(2) else None
        filters: list[np.ndarray]
        if packed is not None:
            filters = [packed.filters[phase.elements] for phase in phases]
        else:
            kernel = conv.grouped(ins[1], groups, is_transposed)
            filters, fill = _filled(kernel, phases, scratch[copied + paired :])
            calls.append(fill)
        for phase, own in zip(phases, filters):
            view = target[:, :, phase.first[0] :: phase.every[0], phase.first[1] :: phase.every[1]]
            calls.append(
                conv.bound_convolution(images, own, phase.taps, bias, steps=steps, n_threads=threads, out=view)
            )

        return _all(calls)

    panel = conv.panel_bytes(depth * max(len(phase.elements) for phase in phases))
    ordered = 0 if packed is not None else -(-weight.nbytes // 64) * 64
    return Kernel([out], bind, scratch=copied + paired + ordered, transient=ordered + threads * panel)


def doubled(node: Node, out: Spec, begin: Sequence[int], is_relu: bool) -> Kernel:
    """Kernel of a transposed convolution of stride 2 by kernels of 4 x 4; its weight is packed for that."""
    x, packed, threads = node.spec(0), node.spec(1).packed, node.settings.n_threads
    pads = (begin[0], begin[1])

    def bind(ins, outs, scratch):
        source, calls = _in_order(x, ins[0], scratch, threads)
        bias = ins[2] if node.has(2) else None
        upsample = winograd.bound_upsampling(
            source, packed.filters, bias, pads=pads, is_relu=is_relu, n_threads=threads, out=outs[0]
        )
        return _all([*calls, upsample])

    return Kernel([out], bind, scratch=_copied(x), transient=threads * winograd.panel_bytes(packed.filters.shape[-1]))


def _copied(x: Spec) -> int:
    """Bytes of an input that is copied first, since it lies in another order."""
    return 0 if x.strides is None else -(-x.nbytes // 64) * 64


def _in_order(x: Spec, given: np.ndarray, scratch: np.ndarray, n_threads: int):
    """An input in C order, and the calls that make it so."""
    if x.strides is None:
        return given, []
    source = scratch[: x.nbytes].view(np.float32).reshape(x.shape)
    return source, [blocks.elementwise(lambda a, o: np.copyto(o, a), [given], source, n_threads)]


def _all(calls):
    """One call of them all."""

    def run():
        for call in calls:
            call()

    return run


def _plane_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """With rows, of which one axis alone has one."""
    return shape if len(shape) == 4 else (*shape[:2], 1, *shape[2:])


def _filled(kernel: np.ndarray, phases: list[Phase], scratch: np.ndarray):
    """The filters of each phase, in scratch, and the call that puts them there."""
    filters, begin = [], 0
    for phase in phases:
        given = conv.ordered_filters(kernel, phase.elements)
        filters.append(scratch[begin : begin + given.nbytes].view(np.float32).reshape(given.shape))
        begin += given.nbytes

    def fill():
        for own, phase in zip(filters, phases):
            np.copyto(own, conv.ordered_filters(kernel, phase.elements))

    return [own.reshape(*own.shape[:2], -1) for own in filters], fill
