"""CAST: attention within learned clusters, joined by summaries of all clusters.

Tensors: ``{query,key,value,out}_proj.weight`` (width, width) and ``.bias``, ``surrogate_tokens`` (C, H, D),
``gate.weight`` (1, width) and ``gate.bias`` (1,). Twin to train: ``pyclattn_export.torch_layers.CASTAttention``.

What the paper leaves open, here and in the twin: a cluster without members has no summary and takes no part in the
mixing; a padded token is in no cluster, and what goes into ``out_proj`` for it is 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pyclattn import _threads
from pyclattn.arrays import Bool, Float32, Given
from pyclattn.errors import ShapeError
from pyclattn.functional._check import flag, one_of, whole
from pyclattn.functional._scratch import scratch
from pyclattn.functional.cast import ATTENTIONS, CLUSTERINGS, cast_attention, memberships
from pyclattn.layers import _check
from pyclattn.layers.attention import Heads, _cut
from pyclattn.layers.basic import Linear


@dataclass(frozen=True, eq=False)
class CASTAttention:
    """Multi-head self-attention by `pyclattn.cast_attention` (van Engelenhoven et al. 2024, arXiv 2402.04239).

    Parameters
    ----------
    query_proj, key_proj, value_proj : Linear
        (H D, width), (H D, width), (H E, width).
    surrogate_tokens : array (C, H, D)
        One learned token for each cluster and head.
    gate : Linear
        (1, width): how much of a token's place among the clusters its query decides, and not its key.
    out_proj : Linear, optional
        (width, H E); without it the joined heads are the result.
    cluster_size : int
    clustering : {"topk", "sa_topk"}
    attention : {"softmax", "laplace"}
    gate_temperature : bool
    scale : float, optional
        As of `pyclattn.cast_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> query, key, value, out = (Linear(rng.standard_normal((64, 64), dtype=np.float32) / 8) for _ in range(4))
    >>> gate = Linear(rng.standard_normal((1, 64), dtype=np.float32) / 8)
    >>> surrogates = rng.standard_normal((16, 4, 16), dtype=np.float32)
    >>> layer = CASTAttention(query, key, value, surrogates, gate, out, cluster_size=20)
    >>> layer(rng.standard_normal((2, 300, 64), dtype=np.float32)).shape
    (2, 300, 64)
    """

    query_proj: Linear
    key_proj: Linear
    value_proj: Linear
    surrogate_tokens: Float32
    gate: Linear
    out_proj: Linear | None = None
    cluster_size: int = 64
    clustering: str = "topk"
    attention: str = "softmax"
    gate_temperature: bool = True
    scale: float | None = None

    def __post_init__(self) -> None:
        _check.set_weight(self, "surrogate_tokens", ("clusters", "heads", "head features"))
        _, n_heads, head_dim = self.surrogate_tokens.shape
        if 0 in self.surrogate_tokens.shape:
            raise ShapeError(f"surrogate_tokens of CASTAttention must not be empty, got {self.surrogate_tokens.shape}")
        for name in ("query_proj", "key_proj"):
            n_out = getattr(self, name).n_out
            if n_out != n_heads * head_dim:
                raise ShapeError(
                    f"{name} of CASTAttention makes {n_out} features, surrogate_tokens {self.surrogate_tokens.shape} "
                    f"need {n_heads} heads of {head_dim}"
                )
        if self.value_proj.n_out % n_heads:
            raise ShapeError(
                f"value_proj of CASTAttention makes {self.value_proj.n_out} features, not {n_heads} equal heads"
            )
        if self.gate.n_out != 1:
            raise ShapeError(f"gate of CASTAttention must make 1 feature, got {self.gate.n_out}")
        if len({self.query_proj.n_in, self.key_proj.n_in, self.value_proj.n_in, self.gate.n_in}) > 1:
            widths = [p.n_in for p in (self.query_proj, self.key_proj, self.value_proj, self.gate)]
            raise ShapeError(f"query_proj, key_proj, value_proj and gate must take the same features, got {widths}")
        if self.out_proj is not None and self.out_proj.n_in != self.value_proj.n_out:
            raise ShapeError(
                f"out_proj of CASTAttention must take the heads' {self.value_proj.n_out} features, "
                f"got {self.out_proj.n_in}"
            )
        whole("cluster_size", self.cluster_size, 1)
        one_of("clustering", self.clustering, CLUSTERINGS)
        one_of("attention", self.attention, ATTENTIONS)
        flag("gate_temperature", self.gate_temperature)

    @property
    def n_heads(self) -> int:
        return self.surrogate_tokens.shape[1]

    def __call__(
        self,
        x: Given,
        *,
        key_padding_mask: Given = None,
        offsets: Given = None,
        add: Given = None,
        n_threads: int | None = None,
    ) -> Float32:
        """Attend and project.

        Parameters
        ----------
        x : array (B, N, width), or (T, width) with ``offsets``
        key_padding_mask : bool array (B, N), optional
            True = padding: such a token is in no cluster, and its row is that of a zero before ``out_proj``.
        offsets : int array (n_sequences + 1,), optional
            A ragged batch packed along the token axis.
        add : array of the result's shape, optional
            Added last: a residual.
        n_threads : int, optional

        Returns
        -------
        float32 array (B, N, width), or (T, width)
        """
        n_threads = _threads.resolve(n_threads)
        x = _check.tokens("CASTAttention", x, self.query_proj.n_in, offsets is not None)
        width = self.value_proj.n_out
        with self._projected(x, n_threads) as (heads, gate), scratch((*x.shape[:-1], width)) as given:
            joined = given if self.out_proj is not None else np.empty(given.shape, np.float32)
            cast_attention(
                *heads, self.surrogate_tokens, gate, cluster_size=self.cluster_size, clustering=self.clustering,
                attention=self.attention, gate_temperature=self.gate_temperature, key_padding_mask=key_padding_mask,
                offsets=offsets, scale=self.scale, n_threads=n_threads, out=_cut(joined, self.n_heads),
            )  # fmt: skip
            if self.out_proj is not None:
                return self.out_proj(joined, add=add, n_threads=n_threads)
        add = _check.residual("CASTAttention", add, joined.shape)
        return joined if add is None else joined + add

    def memberships(
        self, x: Given, *, key_padding_mask: Given = None, offsets: Given = None, n_threads: int | None = None
    ) -> Bool:
        """Which tokens are in which cluster, as of `pyclattn.functional.cast.memberships`.

        Returns
        -------
        bool array (B, N, C), or (T, C)
        """
        n_threads = _threads.resolve(n_threads)
        x = _check.tokens("CASTAttention", x, self.query_proj.n_in, offsets is not None)
        with self._projected(x, n_threads) as (heads, gate):
            return memberships(
                heads.query, heads.key, self.surrogate_tokens, gate, cluster_size=self.cluster_size,
                clustering=self.clustering, attention=self.attention, key_padding_mask=key_padding_mask,
                offsets=offsets, scale=self.scale, n_threads=n_threads,
            )  # fmt: skip

    @contextmanager
    def _projected(self, x: Float32, n_threads: int) -> Iterator[tuple[Heads, Float32]]:
        """Heads of query, key and value as views of one product, and the gate, its last column: for a block."""
        _, n_heads, depth = self.surrogate_tokens.shape
        n_rows, width = math.prod(x.shape[:-1]), self._fused.n_out
        with scratch((n_rows, -(-width // 16) * 16)) as rows:  # rows begin with a cache line
            out = rows[:, :width]
            self._fused.into(x.reshape(n_rows, x.shape[-1]), out, None, n_threads)
            heads = _cut(out[:, :-1].reshape(*x.shape[:-1], width - 1), n_heads)
            parts = heads[..., :depth], heads[..., depth : 2 * depth], heads[..., 2 * depth :]
            yield Heads(*parts), out[:, -1].reshape(x.shape[:-1])

    @cached_property
    def _fused(self) -> Linear:
        """The projections and the gate as one, which reads x once; a head's query, key and value lie side by side."""
        parts = self.query_proj, self.key_proj, self.value_proj
        biases = [np.zeros(part.n_out, np.float32) if part.bias is None else part.bias for part in (*parts, self.gate)]
        by_head = [part.weight.reshape(self.n_heads, -1, part.n_in) for part in parts]
        weight = np.concatenate(by_head, axis=1).reshape(-1, self.gate.n_in)
        bias = np.concatenate([b.reshape(self.n_heads, -1) for b in biases[:-1]], axis=1).ravel()
        return Linear(np.concatenate([weight, self.gate.weight]), np.concatenate([bias, biases[-1]]))
