"""Exact attention in O(L + S) memory."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pyclattn import _threads
from pyclattn._dispatch import launch
from pyclattn.arrays import PANEL, Bool, Float32, Given, Int64
from pyclattn.errors import DTypeError, ShapeError
from pyclattn.functional import _check, _ragged
from pyclattn.functional.precision import require

# Queries of one task: whole panels. Keys and values whose rows do not lie side by side are packed block by block, and
# those of a head that fill L2 come from L3: more queries must share a block then (16 panels: 10 % and 3 % faster than
# 4); else 4 are as fast as any. Fewer where there would not be tasks enough for the threads to end together.
CHUNKS = (16 * PANEL, 8 * PANEL, 4 * PANEL, 2 * PANEL, PANEL)
LARGEST_CLOSE, TASKS_PER_THREAD = 4 * PANEL, 16
FILLING = 1 << 20
# Below this many multiply-adds (about 0.1 ms) handing work to another thread costs more than it saves.
SMALL = 5_000_000
KERNELS = {"float32": "attention.attend", "bfloat16": "attention.attend_bfloat16"}


def scaled_dot_product_attention(
    query: Given,
    key: Given,
    value: Given,
    *,
    attn_mask: Given = None,
    key_padding_mask: Given = None,
    is_causal: bool = False,
    scale: float | None = None,
    offsets: Given = None,
    key_offsets: Given = None,
    precision: str = "float32",
    n_threads: int | None = None,
    out: Given = None,
) -> Float32:
    """Exact attention, ``softmax(scale * query key^T) value``, in memory that grows with L + S, never with L x S.

    Parameters
    ----------
    query : array (B, H, L, D), or (H, T, D) with ``offsets``
        float32; float16 and float64 are converted. Any strides with contiguous rows are read in place.
    key : array (B, H', S, D)
        H must be a multiple of H': each key and value head serves H / H' query heads.
    value : array (B, H', S, E)
    attn_mask : array, optional
        Broadcastable to (B, H, L, S). bool: True = attend; float: added to the logits, -inf = do not attend.
    key_padding_mask : bool array (B, S), optional
        True = padding, never read.
    is_causal : bool
        Query i attends to keys 0..i (the first query and the first key are aligned, as in PyTorch).
    scale : float, optional
        Factor on the logits, 1/sqrt(D) by default.
    offsets, key_offsets : int array (n_sequences + 1,), optional
        A ragged batch packed along the token axis: sequence s is tokens ``offsets[s]:offsets[s + 1]``. ``key_offsets``
        where the keys' lengths differ.
    precision : str
        Of the products: "float32", or "bfloat16" on a processor with AVX512-BF16, which is about 1.8 times as fast and
        has an error of about 0.4 % (docs/bfloat16.md). Sums, softmax and result are float32 all the same.
    n_threads : int, optional
        Default: PYCLATTN_NUM_THREADS, else the CPUs this process may use.
    out : float32 array (B, H, L, E), or (H, T, E), optional
        Where the result goes; any strides with contiguous rows. Must not overlap the inputs.

    Returns
    -------
    float32 array (B, H, L, E), or (H, T, E)
        In the memory order of the query. A query that may attend to nothing gets zeros. The same bits for any number
        of threads.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Before any work, naming the argument, what was given and what was expected.
    BackendError
        If the processor, or the instruction set that was chosen, has no products of bfloat16.

    Notes
    -----
    A running softmax over blocks of keys (Milakov and Gimelshein 2018, arXiv 1805.02867; Rabe and Staats 2021, arXiv
    2112.05682).

    Examples
    --------
    >>> import numpy as np, pyclattn
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = (rng.standard_normal((1, 2, 100, 16), dtype=np.float32) for _ in range(3))
    >>> pyclattn.scaled_dot_product_attention(query, key, value, is_causal=True).shape
    (1, 2, 100, 16)
    """
    q, k, v = _check.attention_inputs(query, key, value, offsets is not None)
    is_causal = _check.flag("is_causal", is_causal)
    require(precision)
    factor = _check.factor(scale, q.shape[3])
    threads = _threads.resolve(n_threads)
    allowed, bias, key_padding_mask = _masks(attn_mask, key_padding_mask, q, k, offsets is not None)
    queries, keys = _ragged.locate(q, k, offsets, key_offsets, None, key_padding_mask)
    result = _ragged.output(q, k, v, out, offsets is not None, fill=False)
    if result.size == 0:
        return result if offsets is None else result[0]

    attend(q, queries, k, v, keys, allowed, bias, is_causal, factor, result, threads, precision)
    return result if offsets is None else result[0]


def attend(
    q: Float32, queries: _ragged.Spans, k: Float32, v: Float32, keys: _ragged.Spans, allowed: Bool | None,
    bias: Float32 | None, is_causal: bool, factor: float, out: Float32, threads: int, precision: str = "float32",
) -> None:  # fmt: skip
    """The same of checked arguments."""
    lengths, n_heads = queries.lengths, q.shape[1]
    work = int(lengths @ keys.lengths) * n_heads * (q.shape[3] + v.shape[3])
    threads = threads if work > SMALL else 1
    is_far = keys.index is not None or any(x.strides[2] != 4 * x.shape[3] for x in (k, v))
    is_far = is_far or 4 * int(keys.lengths.max(initial=0)) * (q.shape[3] + v.shape[3]) > FILLING
    chunk, tasks = _cut(lengths.tobytes(), n_heads, threads, is_causal, is_far or precision == "bfloat16")
    launch(
        KERNELS[precision], threads, q, queries.spans, k, v, keys.spans, keys.index,
        allowed, bias, is_causal, factor, tasks, chunk, out,
    )  # fmt: skip


def attend_some(
    sequences: Int64, q: Float32, queries: _ragged.Spans, k: Float32, v: Float32, keys: _ragged.Spans,
    bias: Float32 | None, factor: float, out: Float32, n_threads: int, precision: str = "float32",
) -> None:  # fmt: skip
    """Some sequences of a batch, whose keys may have logits of their own (B, S), queries holes between them."""
    tokens = _ragged.Spans(queries.spans[sequences], queries.index)
    own = _ragged.Spans(keys.spans[sequences], keys.index)
    if queries.index is None:
        spread = None if bias is None else np.broadcast_to(bias[:, None, None], (*q.shape[:3], k.shape[2]))
        attend(q, tokens, k, v, own, None, spread, False, factor, out, n_threads, precision)
        return
    for number, (batch, start, stop) in enumerate(tokens.spans.tolist()):  # queries with holes: side by side, and back
        rows = queries.index[start:stop]
        part = np.ascontiguousarray(q[batch : batch + 1, :, rows])
        result = np.empty((*part.shape[:3], v.shape[3]), np.float32)
        spread = None
        if bias is not None:
            spread = np.broadcast_to(bias[batch, None, None, None], (*part.shape[:3], k.shape[2]))
        place = _ragged.Spans(np.array([[0, 0, len(rows)]], np.int64))
        one = _ragged.Spans(own.spans[number : number + 1], own.index)
        attend(part, place, k, v, one, None, spread, False, factor, result, n_threads, precision)
        out[batch, :, rows] = result[0].swapaxes(0, 1)


@lru_cache(maxsize=64)
def _cut(lengths_bytes: bytes, n_heads: int, n_threads: int, is_causal: bool, is_far: bool) -> tuple[int, Int64]:
    """Queries a task, and the tasks. Remembered, since a service sees the same shapes again and again."""
    lengths = np.frombuffer(lengths_bytes, np.int64)
    chunk = CHUNKS[-1]
    for chunk in CHUNKS:
        enough = int((-(-lengths // chunk)).sum()) * n_heads >= TASKS_PER_THREAD * n_threads
        if enough and (is_far or chunk <= LARGEST_CLOSE):
            break
    tasks = _ragged.per_chunk(lengths, n_heads, chunk)
    if is_causal:  # the longest first, so that the threads end together
        tasks = tasks[np.lexsort((-tasks[:, 2], tasks[:, 1], tasks[:, 0]))]
    return chunk, tasks


def _masks(
    attn_mask: Given, key_padding_mask: Given, q: Float32, k: Float32, is_packed: bool
) -> tuple[Bool | None, Float32 | None, Given]:
    """``attn_mask`` as (allowed, bias), broadcast without a copy; one that only leaves out keys becomes padding."""
    if attn_mask is None:
        return None, None, key_padding_mask
    if is_packed:
        raise ShapeError("attn_mask was given with offsets: packed sequences take is_causal or no mask")
    mask = _check.array_of("attn_mask", attn_mask)
    shape = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    if mask.dtype != np.bool_ and not _check.is_float(mask):
        raise DTypeError(f"attn_mask must be bool or float, got {mask.dtype}")
    if mask.ndim > 4 or any(have not in (1, want) for have, want in zip(mask.shape[::-1], shape[::-1])):
        raise ShapeError(f"attn_mask must be broadcastable to (B, H, L, S) = {shape}, got {mask.shape}")
    if mask.dtype != np.bool_:
        mask = _check.logits(mask)
        if not _check.is_readable(mask):
            mask = np.ascontiguousarray(mask)
        return None, np.broadcast_to(mask, shape), key_padding_mask
    full = (1,) * (4 - mask.ndim) + mask.shape
    if full[1] == full[2] == 1:  # the same for every query and head
        padding = ~np.broadcast_to(mask.reshape(full)[:, 0, 0], (shape[0], shape[3]))
        if key_padding_mask is not None:
            padding = padding | _check.bool_mask("key_padding_mask", key_padding_mask, (shape[0], shape[3]))
        return None, None, padding
    return np.broadcast_to(mask.view(np.uint8), shape), None, key_padding_mask
