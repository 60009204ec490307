"""What convolutions and pools share: kernel geometry, padding, sliding windows, scratch for threads."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided

from pyclattn.errors import ModelFormatError, ShapeError
from pyclattn.graph.spec import Node


@dataclass
class Window:
    """A kernel sliding over the spatial axes."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]  # padding before and after
    end: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """Input positions from a kernel's first to its last element."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations))

    @property
    def is_padded(self) -> bool:
        return any(self.begin) or any(self.end)

    def outputs(self, spatial, ceil: bool = False) -> tuple[int, ...]:
        """Positions of the kernel along each axis."""
        result = []
        for n, e, s, b, a in zip(spatial, self.extent, self.strides, self.begin, self.end):
            room = n + b + a - e
            count = (-(-room // s) if ceil else room // s) + 1
            if ceil and (count - 1) * s >= n + b:
                count -= 1  # a window that would begin in the padding behind
            if count < 0:
                raise ShapeError(f"a kernel of extent {e} does not fit into {n} with padding {b} and {a}")
            result.append(max(count, 0))
        return tuple(result)


def window(node: Node, spatial: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    """A node's window from its attributes, automatic padding resolved."""
    d = len(spatial)

    def numbers(name: str, length: int, default: int) -> tuple[int, ...]:
        given = node.attr(name, [default] * length) or [default] * length
        if len(given) != length:
            raise ShapeError(f"{name} must have {length} numbers, got {given}")
        return tuple(given)

    if len(kernel) != d:
        raise ShapeError(f"the kernel must have {d} axes, got {kernel}")
    strides, dilations = numbers("strides", d, 1), numbers("dilations", d, 1)
    if min(strides + dilations + kernel, default=1) < 1:
        raise ShapeError(f"kernel, strides and dilations must be at least 1, got {kernel}, {strides}, {dilations}")
    auto = node.attr("auto_pad", "NOTSET") or "NOTSET"
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        begin, end = [], []
        for n, k, s, dil in zip(spatial, kernel, strides, dilations):
            total = max(0, (-(-n // s) - 1) * s + (k - 1) * dil + 1 - n)
            small, large = total // 2, total - total // 2
            begin.append(small if auto == "SAME_UPPER" else large)
            end.append(large if auto == "SAME_UPPER" else small)
        return Window(kernel, strides, dilations, tuple(begin), tuple(end))
    if auto not in ("NOTSET", "VALID"):
        raise ModelFormatError(f"auto_pad must be NOTSET, SAME_UPPER, SAME_LOWER or VALID, got {auto!r}")
    pads = numbers("pads", 2 * d, 0) if auto == "NOTSET" else (0,) * (2 * d)
    return Window(kernel, strides, dilations, pads[:d], pads[d:])


def padded(x: np.ndarray, begin, end, fill, into: np.ndarray | None = None) -> np.ndarray:
    """``x`` with a border of ``fill`` around its spatial axes (negative: cut off)."""
    lead = x.ndim - len(begin)
    shape = x.shape[:lead] + tuple(n + b + e for n, b, e in zip(x.shape[lead:], begin, end))
    out = np.empty(shape, x.dtype) if into is None else into
    out[...] = fill
    source = tuple(slice(max(0, -b), n - max(0, -e)) for n, b, e in zip(x.shape[lead:], begin, end))
    inner = x[(...,) + source]
    target = tuple(slice(max(0, b), max(0, b) + n) for b, n in zip(begin, inner.shape[lead:]))
    out[(...,) + target] = inner
    return out


def sliding(x: np.ndarray, w: Window, outputs: tuple[int, ...]) -> np.ndarray:
    """View (..., *kernel, *outputs) of ``x``, already padded, under the kernel's positions."""
    d = len(w.kernel)
    lead, steps = x.strides[:-d], x.strides[-d:]
    return as_strided(
        x,
        x.shape[:-d] + w.kernel + tuple(outputs),
        lead + tuple(s * i for s, i in zip(steps, w.dilations)) + tuple(s * i for s, i in zip(steps, w.strides)),
        writeable=False,
    )


class Slots:
    """Equal parts of one scratch array, each lent to one task at a time."""

    def __init__(self, scratch: np.ndarray, n: int):
        size = len(scratch) // n // 64 * 64
        self._free = deque(scratch[i * size : (i + 1) * size] for i in range(n))

    def take(self) -> np.ndarray:
        return self._free.pop()

    def give(self, part: np.ndarray) -> None:
        self._free.append(part)
