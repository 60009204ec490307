"""Dense layers whose products are of bfloat16: two terms of a sum at a time, sums in float32, half the memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from pyclattn.arrays import Float32, Given, Int32
from pyclattn.functional import _check
from pyclattn.functional._product import bound, checked, cut
from pyclattn.functional.dense import aligned, packed_shape

# Rows and panels of one task. A task rounds its rows to bfloat16 first, which many panels must share: 256 rows of 384
# to 3,072 are 0.2 to 1.5 MB then.
ROWS, PANELS = 256, 32


@dataclass(frozen=True)
class PackedBfloat16:
    """A weight (depth, width) rounded to bfloat16, as panels of columns.

    Attributes
    ----------
    panels : int32 array (n_panels, n_words, lanes)
        A word is two terms of a sum, the earlier one in its low half; zeros at the end of rows and columns.
    shape : tuple
        (depth, width).
    """

    panels: Int32
    shape: tuple[int, int]
    writes_heads = True

    @property
    def nbytes(self) -> int:
        """Bytes of the panels."""
        return self.panels.nbytes

    def bind(
        self,
        x: Given,
        bias: Given = None,
        *,
        activation: str = "",
        residual: Given = None,
        n_threads: int | None = None,
        out: Given = None,
    ) -> Callable[[], Float32]:
        """``activation(x @ weight + bias) + residual`` as a call that returns ``out``, rows of ``x`` rounded too.

        See `Packed.bind`.
        """
        product = checked(x, self.shape, bias, activation, residual, n_threads, out, writes_heads=True)
        return bound("dense.multiply_bfloat16", product, (self.panels,), partial(cut, rows=ROWS, panels=PANELS))

    def scratch_bytes(self, n_rows: int, n_threads: int) -> int:
        """Bytes that a product of so many rows takes while it runs."""
        return n_threads * (min(n_rows, ROWS) * 4 * self.panels.shape[1] + 2 * 32 * 4 * self.panels.shape[2])


def pack_bfloat16(weight: Given) -> PackedBfloat16:
    """Round a weight to bfloat16 and pack it for the instruction set in use.

    Parameters
    ----------
    weight : array (depth, width)
        float32; float16 and float64 are converted.

    Returns
    -------
    PackedBfloat16

    Raises
    ------
    ShapeError, DTypeError
        If it is no matrix of floating point numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from pyclattn._dispatch import forced
    >>> from pyclattn.functional.dense import linear
    >>> from pyclattn.functional.dense_bfloat16 import pack_bfloat16
    >>> with forced("reference"):  # any processor
    ...     linear(np.array([[1, 1]], np.float32), pack_bfloat16([[256.0], [1.001]])).tolist()
    [[257.0]]
    """
    given = _check.rows("weight", np.asarray(weight, None if hasattr(weight, "dtype") else np.float32), 2)
    depth, width = given.shape
    n_panels, n_words, lanes = packed_shape(-(-depth // 2), width)
    panels = aligned((n_panels, n_words, lanes)).view(np.int32)
    panels.fill(0)
    for panel in range(n_panels):
        bits = rounded_bits(given[:, panel * lanes : (panel + 1) * lanes])
        columns = panels[panel, :, : bits.shape[1]].view(np.uint32)
        columns[: len(bits[::2])] = bits[::2] >> 16
        columns[: len(bits[1::2])] |= bits[1::2]
    return PackedBfloat16(panels, (depth, width))


def rounded_bits(x: Float32) -> np.ndarray:
    """The nearest bfloat16, ties to even, as the bits of a float32; NaN stays NaN."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    nearest = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.where(np.isnan(x), np.uint32(0x7FC00000), nearest & np.uint32(0xFFFF0000))
