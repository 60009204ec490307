"""Attention of query clusters as a layer: multi-head attention that knows how it was trained."""

from __future__ import annotations

from dataclasses import dataclass

from pyclattn.functional._check import whole
from pyclattn.layers.attention import MultiHeadAttention


@dataclass(frozen=True, eq=False)
class ClusteredAttention(MultiHeadAttention):
    """Multi-head attention by `pyclattn.clustered_attention`, or, with ``topk``, by its improved form.

    Tensors are those of `MultiHeadAttention`: ``query``, ``key``, ``value``, ``out``. Twin to train:
    ``pyclattn_export.torch_layers.ClusteredAttention``. ``attention=`` of a call or an encoder's plan goes before.

    Parameters
    ----------
    n_heads, out, qkv, query, key, value, n_kv_heads, rotary, scale, name
        As of `MultiHeadAttention`.
    n_clusters : int
    topk : int, optional
        Keys of each cluster that are attended to exactly; None for clustered attention without them.
    clustering, n_bits, n_iterations, seed
        As of `pyclattn.clustered_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> from pyclattn.layers import Linear
    >>> rng = np.random.default_rng(0)
    >>> weight = rng.standard_normal((3 * 64, 64), dtype=np.float32) / 8
    >>> layer = ClusteredAttention(n_heads=4, qkv=Linear(weight), n_clusters=20, topk=16)
    >>> layer(rng.standard_normal((2, 300, 64), dtype=np.float32)).shape
    (2, 300, 64)
    """

    n_clusters: int = 100
    topk: int | None = None
    clustering: str = "lsh"
    n_bits: int = 63
    n_iterations: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        whole("n_clusters of ClusteredAttention", self.n_clusters, 1)
        if self.topk is not None:
            whole("topk of ClusteredAttention", self.topk, 1)
        method = {
            "method": "clustered",
            "n_clusters": self.n_clusters,
            "clustering": self.clustering,
            "seed": self.seed,
        }
        if self.topk is not None:
            method |= {"method": "improved-clustered", "topk": self.topk}
        if self.clustering != "metric":  # which draws nothing and takes no rounds
            method |= {"n_bits": self.n_bits, "n_iterations": self.n_iterations}
        object.__setattr__(self, "attention", method)
        super().__post_init__()
