"""Every batch as spans of rows (the convention stands in `pyclattn.arrays`), and the cutting of work into tasks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pyclattn.arrays import Bool, Float32, Given, Int64
from pyclattn.errors import ShapeError
from pyclattn.functional import _check

# Sequences whose tasks are remembered: the same shapes come again and again.
FEW = 16


@dataclass(frozen=True)
class Spans:
    """Where the tokens of each sequence lie: ``spans`` (n_sequences, 3) [batch, start, stop], and their rows."""

    spans: Int64
    index: Int64 | None = None

    @property
    def lengths(self) -> Int64:
        return self.spans[:, 2] - self.spans[:, 1]

    def indexed(self) -> Tokens:
        """The same rows with an index, tokens numbered through all sequences."""
        if self.index is not None:
            return Tokens(self.spans, self.index)
        lengths = self.lengths
        stops = np.cumsum(lengths)
        starts = stops - lengths
        index = np.arange(int(lengths.sum()), dtype=np.int64)
        if (starts != self.spans[:, 1]).any():
            index += np.repeat(self.spans[:, 1] - starts, lengths)
        return Tokens(np.stack([self.spans[:, 0], starts, stops], axis=1), index)


@dataclass(frozen=True)
class Tokens(Spans):
    """Spans whose tokens are numbered through all sequences: token t is row ``index[t]``."""

    index: Int64


def padded(batch: int, length: int, padding_mask: Bool | None) -> Spans:
    """Sequences of a padded batch, without what the mask (True = padding) leaves out."""
    spans = np.zeros((batch, 3), np.int64)
    spans[:, 0], spans[:, 2] = np.arange(batch), length
    if padding_mask is None or not padding_mask.any():
        return Spans(spans)
    lengths = length - np.count_nonzero(padding_mask, axis=1)
    if (padding_mask == (np.arange(length) >= lengths[:, None])).all():  # padding at the end only
        spans[:, 2] = lengths
        return Spans(spans)
    spans[:, 2] = np.cumsum(lengths)
    spans[:, 1] = spans[:, 2] - lengths
    return Spans(spans, np.nonzero(~padding_mask)[1].astype(np.int64))


def packed(offsets: Int64) -> Spans:
    """Sequences of a packed batch."""
    spans = np.zeros((len(offsets) - 1, 3), np.int64)
    spans[:, 1], spans[:, 2] = offsets[:-1], offsets[1:]
    return Spans(spans)


def locate(
    query: Float32, key: Float32, offsets: Given, key_offsets: Given, query_padding_mask: Given, key_padding_mask: Given
) -> tuple[Spans, Spans]:
    """The sequences of queries and of keys, from offsets (packed) or masks (padded)."""
    batch, n_queries, n_keys = query.shape[0], query.shape[2], key.shape[2]
    masks = (("query_padding_mask", query_padding_mask), ("key_padding_mask", key_padding_mask))
    if offsets is None:
        if key_offsets is not None:
            raise ShapeError("key_offsets was given without offsets: queries must be packed too")
        lengths = (n_queries, n_keys)
        checked = [m if m is None else _check.bool_mask(name, m, (batch, n)) for (name, m), n in zip(masks, lengths)]
        return padded(batch, n_queries, checked[0]), padded(batch, n_keys, checked[1])
    for name, mask in masks:
        if mask is not None:
            raise ShapeError(f"{name} was given with offsets: packed tokens have no padding")
    own = _check.packed_offsets("offsets", offsets, n_queries)
    if key_offsets is None and n_keys != n_queries:
        raise ShapeError(f"key has {n_keys} packed tokens and query {n_queries}: give key_offsets too")
    others = own if key_offsets is None else _check.packed_offsets("key_offsets", key_offsets, n_keys)
    if len(own) != len(others):
        raise ShapeError(
            f"offsets and key_offsets must tell of as many sequences, got {len(own) - 1} and {len(others) - 1}"
        )
    return packed(own), packed(others)


def output(
    query: Float32, key: Float32, value: Float32, given: Given, is_packed: bool, fill: bool
) -> Float32:  # fmt: skip
    """Where the result goes: ``given``, or a new array (batch, heads, length, width of value); zeros if ``fill``.

    A query that is a view of (batch, length, heads, head_dim), as a projection writes it, gets an output of the same
    kind, so that the heads can be joined again without a copy.
    """
    (batch, heads, length, _), width = query.shape, value.shape[3]
    if given is not None:
        out = _check.writable("out", given, (batch, heads, length, width)[is_packed:])
        _check.apart("out", out, query=query, key=key, value=value)
        if fill:
            out[...] = 0
        return out[None] if is_packed else out
    make = np.zeros if fill else np.empty
    if heads > 1 and length > 1 and abs(query.strides[1]) < abs(query.strides[2]):
        return make((batch, length, heads, width), np.float32).swapaxes(1, 2)
    return make((batch, heads, length, width), np.float32)


def per_chunk(lengths: Int64, n_heads: int, chunk: int) -> Int64:
    """Tasks [sequence, head, first] that cut each head of each sequence into chunks."""
    if len(lengths) > FEW:
        return _per_chunk(lengths, n_heads, chunk)
    return _recalled(np.asarray(lengths, np.int64).tobytes(), n_heads, chunk).copy()


@lru_cache(64)
def _recalled(lengths: bytes, n_heads: int, chunk: int) -> Int64:
    return _per_chunk(np.frombuffer(lengths, np.int64), n_heads, chunk)


def _per_chunk(lengths: Int64, n_heads: int, chunk: int) -> Int64:
    counts = np.repeat(-(-lengths // chunk), n_heads)
    pair = np.repeat(np.arange(len(counts)), counts)
    first = (np.arange(len(pair)) - np.repeat(np.cumsum(counts) - counts, counts)) * chunk
    return np.stack([pair // max(n_heads, 1), pair % max(n_heads, 1), first], axis=1).astype(np.int64)


def per_block(n_items: int, n_heads: int, chunk: int) -> Int64:
    """Tasks [head, first] over blocks of clusters."""
    return per_chunk(np.array([n_items], np.int64), n_heads, chunk)[:, 1:].copy()


def per_head(n_sequences: int, n_heads: int) -> Int64:
    """Tasks [sequence, head]."""
    tasks = np.empty((n_sequences, n_heads, 2), np.int64)
    tasks[..., 0], tasks[..., 1] = np.arange(n_sequences)[:, None], np.arange(n_heads)
    return tasks.reshape(-1, 2)
