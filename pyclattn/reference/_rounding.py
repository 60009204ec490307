"""Numbers rounded to narrower types, kept as float32."""

import numpy as np

from pyclattn.arrays import Float32


def to_bfloat16(x: Float32) -> Float32:
    """The nearest bfloat16, ties to even. NaN and infinities stay; a subnormal number becomes 0, as in hardware."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    rounded = np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), rounded.view(np.float32))
    return np.where(np.isnan(x), np.float32(np.nan), rounded)
