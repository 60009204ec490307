"""Convolutions whose products are of bfloat16: two channels a word, for images and filters, sums in float32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyclattn import _dispatch, _threads
from pyclattn.arrays import Float32, Given, Int32
from pyclattn.errors import DTypeError, ShapeError
from pyclattn.functional import _check
from pyclattn.functional.dense_bfloat16 import rounded_bits

# Words of one task, and the numbers from which a second thread pays.
WORDS, SPLIT = 1 << 17, 1 << 18


def paired_filters(filters: Float32) -> Int32:
    """Filters (groups, M, taps, C) rounded to bfloat16, as words (groups, M, taps, ceil(C / 2)).

    The earlier channel stands in the low half of a word; an odd last one is paired with 0.

    Examples
    --------
    >>> import numpy as np
    >>> [hex(word) for word in paired_filters(np.array([[[[1, 2, 0.5]]]], np.float32)).ravel()]
    ['0x40003f80', '0x3f00']
    """
    bits = rounded_bits(filters)
    words = bits[..., ::2] >> np.uint32(16)
    words[..., : bits.shape[-1] // 2] |= bits[..., 1::2]
    return words.view(np.int32)


def bound_pairing(images: Given, words: Given, *, n_threads: int | None = None) -> Callable[[], None]:
    """The rounding of images as a call without arguments.

    Parameters
    ----------
    images : float32 array (N, groups, C, positions), C order
    words : int32 array (N, groups, ceil(C / 2), positions), C order
        Where the words go: as of `paired_filters`.
    n_threads : int, optional

    Raises
    ------
    ShapeError, DTypeError
        Before any work.

    Examples
    --------
    >>> import numpy as np
    >>> from pyclattn._dispatch import forced
    >>> words = np.empty((1, 1, 1, 2), np.int32)
    >>> with forced("reference"):  # any processor
    ...     bound_pairing(np.array([[[[1, 2], [0.5, 4]]]], np.float32), words)()
    >>> [hex(word) for word in words.ravel()]
    ['0x3f003f80', '0x40804000']
    """
    x = np.ascontiguousarray(_check.rows("images", images, 4))
    n_words = -(-x.shape[2] // 2)
    shape = (*x.shape[:2], n_words, x.shape[3])
    if not isinstance(words, np.ndarray) or words.dtype != np.int32:
        raise DTypeError(f"words must be an int32 array, got {getattr(words, 'dtype', type(words).__name__)}")
    if words.shape != shape or not words.flags.c_contiguous:
        raise ShapeError(f"words must have shape {shape} in C order, got {words.shape}")
    if words.size == 0:
        return lambda: None
    step = max(1, WORDS // x.shape[3])
    tasks = [
        (i, g, first, min(first + step, n_words))
        for i in range(x.shape[0])
        for g in range(x.shape[1])
        for first in range(0, n_words, step)
    ]
    threads = _threads.resolve(n_threads) if x.size >= SPLIT else 1
    return _dispatch.bind("conv.pair_channels", threads, x, np.array(tasks, np.int64), words)
