"""Clustered attention (Vyas, Katharopoulos, Fleuret 2020, arXiv 2007.04825), to be trained.

Symbols: batch B, heads H, queries L, keys S, features of a head D, clusters C, slots of a cluster M, top keys K.
Clusters are those of pyclattn: its own function finds them, since nothing is to be differentiated there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyclattn.functional.clustering import cluster_queries
from pyclattn_export.torch_layers.attention import MultiHeadAttention
from pyclattn_export.torch_layers.operators import Result, operator

INPUTS = ("query", "key", "value", "key_padding_mask", "query_padding_mask")


def _result(query: Tensor, value: Tensor, **_: Any) -> Result:
    return Result((*query.shape[:-1], value.shape[-1]), value.dtype)


@operator(*INPUTS, result=_result)
def clustered_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    n_clusters: int,
    n_bits: int = 63,
    n_iterations: int = 10,
    clustering: str = "lsh",
    key_padding_mask: Tensor | None = None,
    query_padding_mask: Tensor | None = None,
    seed: int = 0,
    scale: float | None = None,
) -> Tensor:
    """Attention of query clusters: `pyclattn.clustered_attention`.

    Parameters
    ----------
    query, key, value : Tensor (B, H, L, D), (B, H, S, D), (B, H, S, E)
    n_clusters, n_bits, n_iterations, key_padding_mask, query_padding_mask, seed, scale
        As of `pyclattn.clustered_attention`.
    clustering : {"lsh", "kmeans"}

    Returns
    -------
    Tensor (B, H, L, E)
    """
    groups = _grouped(query, query_padding_mask, n_clusters, clustering, n_bits, n_iterations, seed)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return groups.spread(_at_centroids(groups.means(query), key, key_padding_mask, scale) @ value)


@operator(*INPUTS, result=_result)
def improved_clustered_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    n_clusters: int,
    topk: int = 32,
    is_causal: bool = False,
    n_bits: int = 63,
    n_iterations: int = 10,
    clustering: str = "lsh",
    key_padding_mask: Tensor | None = None,
    query_padding_mask: Tensor | None = None,
    seed: int = 0,
    scale: float | None = None,
) -> Tensor:
    """Clustered attention with exact attention to the top keys: `pyclattn.improved_clustered_attention`.

    Parameters
    ----------
    query, key, value, n_clusters, n_bits, n_iterations, clustering, key_padding_mask, query_padding_mask, seed, scale
        As of `clustered_attention`.
    topk, is_causal
        As of `pyclattn.improved_clustered_attention`.

    Returns
    -------
    Tensor (B, H, L, E)
    """
    groups = _grouped(query, query_padding_mask, n_clusters, clustering, n_bits, n_iterations, seed)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    shares = _at_centroids(groups.means(query), key, key_padding_mask, scale)  # (B, H, C, S)
    top_shares, top = (x[..., :topk] for x in shares.sort(dim=-1, descending=True, stable=True))
    top_keys, top_values = _rows(key, top), _rows(value, top)
    logits = groups.slotted(query) @ top_keys.transpose(-1, -2) * scale  # (B, H, C, M, K)
    is_seen = torch.ones_like(logits[:1, :1, :1, :1], dtype=torch.bool)
    if key_padding_mask is not None:
        is_seen = ~_rows(key_padding_mask[:, None, :, None], top)[..., 0][..., None, :]
    if is_causal:
        is_seen = is_seen & (top[..., None, :] <= groups.positions[..., None])
    weights = _softmax(logits, is_seen)
    if is_causal:
        return groups.gather(weights @ top_values)
    exact = weights * top_shares.sum(-1)[..., None, None] @ top_values
    rest = shares @ value - (top_shares[..., None, :] @ top_values)[..., 0, :]
    return groups.gather(exact) + groups.spread(rest)


class _Groups(NamedTuple):
    """Queries in clusters, each cluster in as many slots as the largest needs."""

    cluster: Tensor  # (B, H, L) of each query; padding has 0
    slot: Tensor  # (B, H, L) of each query among all slots C M; one beyond them for padding
    is_valid: Tensor  # (B, H, L)
    counts: Tensor  # (B, H, C)
    n_slots: int  # M

    @property
    def positions(self) -> Tensor:
        """(B, H, C, M): the position of the query in a slot."""
        at = torch.arange(self.slot.shape[-1], device=self.slot.device).expand(self.slot.shape)
        return self.slotted(at[..., None])[..., 0]

    def means(self, x: Tensor) -> Tensor:
        """(B, H, L, D) to (B, H, C, D); 0 for an empty cluster."""
        sums = x.new_zeros(*self.counts.shape, x.shape[-1])
        sums = sums.scatter_add(2, _wide(self.cluster, x), x * self.is_valid[..., None])
        return sums / self.counts.clamp_min(1)[..., None]

    def spread(self, x: Tensor) -> Tensor:
        """(B, H, C, E) to (B, H, L, E): every query gets its cluster's row."""
        return x.gather(2, _wide(self.cluster, x)) * self.is_valid[..., None]

    def slotted(self, x: Tensor) -> Tensor:
        """(B, H, L, D) to (B, H, C, M, D)."""
        n_clusters = self.counts.shape[-1]
        slots = x.new_zeros(*x.shape[:2], n_clusters * self.n_slots + 1, x.shape[-1])  # the last is thrown away
        return slots.scatter(2, _wide(self.slot, x), x)[:, :, :-1].unflatten(2, (n_clusters, self.n_slots))

    def gather(self, x: Tensor) -> Tensor:
        """(B, H, C, M, E) to (B, H, L, E)."""
        x = x.flatten(2, 3)
        return x.gather(2, _wide(self.slot.clamp_max(x.shape[2] - 1), x)) * self.is_valid[..., None]


def _grouped(
    query: Tensor, padding: Tensor | None, n_clusters: int, clustering: str, n_bits: int, n_iterations: int, seed: int
) -> _Groups:
    rows = query.detach().float().cpu().numpy()
    mask = None if padding is None else padding.cpu().numpy()
    found = cluster_queries(
        rows, n_clusters=n_clusters, clustering=clustering, n_bits=n_bits, n_iterations=n_iterations, seed=seed,
        query_padding_mask=mask,
    )  # fmt: skip
    labels = found.labels.astype(np.int64)
    is_valid, cluster = labels >= 0, np.maximum(labels, 0)
    # place in the cluster: queries in order of their clusters, less where the cluster begins; padding stands last
    order = np.where(is_valid, labels, found.counts.shape[-1]).argsort(-1, kind="stable")
    place = np.empty_like(labels)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(labels.shape[-1]), labels.shape), -1)
    starts = found.counts.cumsum(-1) - found.counts
    n_slots = int(found.counts.max(initial=1))
    slot = cluster * n_slots + place - np.take_along_axis(starts, cluster, -1)
    slot[~is_valid] = found.counts.shape[-1] * n_slots
    arrays = (cluster, slot, is_valid, found.counts)
    return _Groups(*(torch.from_numpy(array).to(query.device) for array in arrays), n_slots)


def _at_centroids(centroids: Tensor, key: Tensor, padding: Tensor | None, scale: float) -> Tensor:
    """What each centroid gives each key (B, H, C, S)."""
    logits = centroids @ key.transpose(-1, -2) * scale
    return _softmax(logits, None if padding is None else ~padding[:, None, None])


def _softmax(logits: Tensor, where: Tensor | None) -> Tensor:
    """Over the last axis; all zeros where nothing takes part."""
    if where is None:
        return logits.softmax(-1)
    return logits.masked_fill(~where, torch.finfo(logits.dtype).min).softmax(-1) * where


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """(B, H or 1, S, F) at (B, H, C, K) as (B, H, C, K, F)."""
    flat = index.flatten(2)
    x = x.expand(-1, flat.shape[1], -1, -1)
    return x.gather(2, _wide(flat, x)).unflatten(2, tuple(index.shape[2:]))


def _wide(index: Tensor, x: Tensor) -> Tensor:
    """An index (B, H, L) for all features of x."""
    return index[..., None].expand(-1, -1, -1, x.shape[-1])


class ClusteredAttention(MultiHeadAttention):
    """The twin of `pyclattn.layers.ClusteredAttention`.

    Parameters
    ----------
    dim, n_heads, head_dim, value_dim, scale, bias
        As of `MultiHeadAttention`.
    n_clusters, topk, clustering, n_bits, n_iterations, seed
        As of `pyclattn.layers.ClusteredAttention`: with ``topk`` the improved form.

    Examples
    --------
    >>> import torch
    >>> layer = ClusteredAttention(32, n_heads=4, n_clusters=10, topk=8)
    >>> layer(torch.randn(2, 100, 32)).shape
    torch.Size([2, 100, 32])
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        n_clusters: int = 100,
        *,
        topk: int | None = None,
        clustering: str = "lsh",
        n_bits: int = 63,
        n_iterations: int = 10,
        seed: int = 0,
        **more: Any,
    ) -> None:
        super().__init__(dim, n_heads, **more)
        self.options = {
            "n_clusters": n_clusters, "clustering": clustering, "n_bits": n_bits, "n_iterations": n_iterations,
            "seed": seed,
        }  # fmt: skip
        self.topk = topk

    def attend(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        masks = {"key_padding_mask": key_padding_mask, "query_padding_mask": key_padding_mask}
        if self.topk is None:
            return clustered_attention(query, key, value, scale=self.scale, **masks, **self.options)
        return improved_clustered_attention(
            query, key, value, topk=self.topk, scale=self.scale, **masks, **self.options
        )
