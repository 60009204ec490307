"""Products with weights of 2, 4 or 8 bits in blocks (`MatMulNBits` of ONNX Runtime's quantiser)."""

from __future__ import annotations

import numpy as np

from pyclattn.errors import ModelFormatError, ShapeError
from pyclattn.graph import blocks
from pyclattn.graph.ops.registry import op
from pyclattn.graph.spec import Kernel, Node, Spec

# Rows of weights widened at a time, as float32: 1 MB stays in cache until the product has read it.
WIDENED = 1 << 18


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Whole numbers of ``bits`` bits along the last axis, the lowest bits of each byte first.

    Examples
    --------
    >>> unpacked(np.array([0x21, 0xF0], np.uint8), 4)
    array([ 1,  2,  0, 15], dtype=uint8)
    """
    if bits == 8:
        return packed
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(*packed.shape[:-1], -1)


@op("com.microsoft:MatMulNBits")
def _matmul_nbits(node: Node) -> Kernel:
    """a (..., K), packed weights (N, blocks, bytes of a block), scales, zero points, group of each k, bias."""
    a, weight, threads = node.spec(0), node.spec(1), node.settings.n_threads
    k, n, bits, block = node.attr("K"), node.attr("N"), node.attr("bits", 4), node.attr("block_size")
    if bits not in (2, 4, 8):
        raise ModelFormatError(f"bits must be 2, 4 or 8, got {bits}")
    if block < 16 or block & (block - 1):
        raise ModelFormatError(f"block_size must be a power of 2 and at least 16, got {block}")
    n_blocks = -(-k // block)
    if a.ndim < 1 or a.shape[-1] != k or weight.dtype != np.uint8 or weight.size != n * n_blocks * block * bits // 8:
        raise ShapeError(f"input {a.shape} and packed weight {weight} do not fit K {k}, N {n}, {bits} bits of {block}")
    for i, size in ((2, n * n_blocks), (3, _zero_size(node, n, n_blocks, bits)), (4, k), (5, n)):
        if node.has(i) and node.spec(i).size != size:
            raise ShapeError(f"input {i} must have {size} elements, got {node.shape(i)}")
    if node.has(4) and not (0 <= node.value(4).min(initial=0) <= node.value(4).max(initial=0) < n_blocks):
        raise ShapeError(f"the groups must be from 0 to {n_blocks - 1}")
    m = a.size // max(1, k)
    step = max(1, WIDENED // max(1, n_blocks * block))

    def bind(ins, outs, scratch):
        x, packed, scale, zero, group, bias = (*ins, None, None, None)[:6]
        packed, scale = packed.reshape(n, -1), scale.reshape(n, n_blocks)

        def columns(rows: np.ndarray, i: int) -> None:
            own = slice(i * step, (i + 1) * step)
            w = unpacked(packed[own], bits).astype(np.float32)
            spread = _spread(scale[own], block, group, w.shape[1])
            w -= _spread(_zeros(zero, n, n_blocks, bits, own), block, group, w.shape[1])
            w *= spread
            y = rows @ w[:, :k].T
            outs[0].reshape(m, n)[:, own] = y if bias is None else y + bias.astype(np.float32)[own]

        def run():
            rows = x.reshape(m, k).astype(np.float32, copy=False)
            blocks.share(lambda i: columns(rows, i), -(-n // step), threads)()

        return run

    row = n_blocks * block  # of a step: bytes, float32, spread scales and zeros; its product twice
    transient = threads * step * (13 * row + 8 * m) + (0 if a.dtype == np.float32 else 4 * a.size)
    return Kernel([Spec((*a.shape[:-1], n), a.dtype)], bind, transient=transient)


def _zero_size(node: Node, n: int, n_blocks: int, bits: int) -> int:
    """Zero points are packed as the weights are, or floating point, one a block."""
    is_packed = node.has(3) and node.dtype(3) == np.uint8
    return n * (-(-n_blocks * bits // 8) if is_packed else n_blocks)


def _zeros(zero: np.ndarray | None, n: int, n_blocks: int, bits: int, own: slice) -> np.ndarray:
    """Zero points (rows, blocks) of some rows; the middle of the range by default."""
    if zero is None:
        return np.full((1, n_blocks), 1 << (bits - 1), np.float32)
    rows = zero.reshape(n, -1)[own]
    return unpacked(rows, bits)[:, :n_blocks] if rows.dtype == np.uint8 else rows


def _spread(values: np.ndarray, block: int, group: np.ndarray | None, width: int) -> np.ndarray:
    """A block's number for each of its weights, as float32."""
    values = values.astype(np.float32, copy=False)
    if group is None:
        return np.repeat(values, block, 1)
    index = np.zeros(width, np.intp)  # what lies behind K is not read
    index[: group.size] = group
    return values[:, index]
