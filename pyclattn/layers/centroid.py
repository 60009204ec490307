"""Centroid attention as a layer: many tokens are gathered into few (Wu, Liu, Liu 2021, arXiv 2102.08606).

Tensors, here and in the PyTorch twin: ``query_proj``, ``key_proj``, ``value_proj``, ``out_proj``, each ``.weight`` and
``.bias``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pyclattn import _threads
from pyclattn.arrays import Bool, Float32, Given, Int64
from pyclattn.errors import ArgumentError, DTypeError, ShapeError
from pyclattn.functional._check import bool_mask, one_of, whole
from pyclattn.functional.centroid import (
    NORMALIZATIONS,
    centroid_attention,
    mean_pool_tokens,
    pool_counts,
    random_positions,
)
from pyclattn.functional.points import farthest_point_sampling, nearest_neighbors
from pyclattn.layers import _check
from pyclattn.layers.attention import _cut, _join
from pyclattn.layers.basic import Linear

STARTS = ("farthest", "mean_pool", "random", "given")


class Centroids(NamedTuple):
    """Where centroids start.

    Attributes
    ----------
    tokens : float32 array (B, M, width)
    padding_mask : bool array (B, M), optional
        True: no centroid, since the sequence has fewer tokens; its output is 0.
    indices : int64 array (B, M), optional
        The tokens they start from (-1: none), where they start from single tokens.
    neighbors : int64 array (B, M, K), optional
        The tokens each one gathers from; without it, all.

    Examples
    --------
    >>> import numpy as np
    >>> Centroids(np.zeros((2, 10, 32), np.float32)).padding_mask is None
    True
    """

    tokens: Float32
    padding_mask: Bool | None = None
    indices: Int64 | None = None
    neighbors: Int64 | None = None


@dataclass(frozen=True, eq=False)
class CentroidAttention:
    """N tokens x into M centroids u by ``u += eps out(attention(query(u), key(x), value(x)))``, T times.

    Parameters
    ----------
    n_heads : int
    n_centroids : int
        M, the class token not counted.
    query_proj, key_proj : Linear
        (H D, width), of the centroids and of the tokens.
    value_proj : Linear
        (H E, width), of the tokens.
    out_proj : Linear
        (width, H E)
    init : {"farthest", "mean_pool", "random", "given"}
        Where centroids start: at tokens chosen by `pyclattn.farthest_point_sampling` of their coordinates, at means of
        neighbours (`pyclattn.mean_pool_tokens`), at tokens drawn by `seed`, or where the call says.
    normalize : {"centroids", "inputs", "both"}
        As of `pyclattn.centroid_attention`; "centroids" is the paper's.
    n_steps : int
        T, with the same weights at each step. Reconstructed: the paper's own settings are not known to us.
    eps : float
        Length of a step. Reconstructed, as `n_steps`.
    n_neighbors : int, optional
        K: a centroid gathers from the K tokens nearest to where it starts ("farthest" or "random", with coordinates);
        from all tokens by default.
    grid : tuple of int, optional
        (rows, columns) of the tokens, for "mean_pool" of squares of patches.
    has_class_token : bool
        Token 0 is carried along as centroid 0 and never pooled or drawn; M + 1 centroids come out. Not for "farthest".
        That it takes part in the attention like any other is reconstructed.
    seed : int
        For "random".
    scale : float, optional
        Factor on the logits, 1/sqrt(D) by default.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> projections = [Linear(rng.standard_normal((32, 32), dtype=np.float32) / 32) for _ in range(4)]
    >>> layer = CentroidAttention(4, 10, *projections, n_neighbors=16)
    >>> x, coordinates = rng.standard_normal((2, 200, 32)), rng.standard_normal((2, 200, 3))
    >>> layer(x, coordinates).shape
    (2, 10, 32)
    """

    n_heads: int
    n_centroids: int
    query_proj: Linear
    key_proj: Linear
    value_proj: Linear
    out_proj: Linear
    init: str = "farthest"
    normalize: str = "centroids"
    n_steps: int = 1
    eps: float = 1.0
    n_neighbors: int | None = None
    grid: tuple[int, int] | None = None
    has_class_token: bool = False
    seed: int = 0
    scale: float | None = None

    def __post_init__(self) -> None:
        for name in ("n_heads", "n_centroids", "n_steps"):
            whole(f"{name} of CentroidAttention", getattr(self, name), 1)
        one_of("init of CentroidAttention", self.init, STARTS)
        one_of("normalize of CentroidAttention", self.normalize, NORMALIZATIONS)
        self._check_start()
        if not isinstance(self.eps, (int, float)) or not np.isfinite(self.eps):
            raise ArgumentError(f"eps of CentroidAttention must be a finite number, got {self.eps!r}")
        self._check_projections()

    def _check_start(self) -> None:
        if self.n_neighbors is not None:
            whole("n_neighbors of CentroidAttention", self.n_neighbors, 1)
            if self.init not in ("farthest", "random"):
                raise ArgumentError(f"n_neighbors needs init='farthest' or 'random', got init={self.init!r}")
        if self.grid is not None and self.init != "mean_pool":
            raise ArgumentError(f"grid needs init='mean_pool', got init={self.init!r}")
        if self.has_class_token and (self.init in ("farthest", "given") or self.n_neighbors is not None):
            raise ArgumentError(
                "has_class_token needs init='mean_pool' or 'random', without n_neighbors: a class token has no "
                f"coordinates; got init={self.init!r}, n_neighbors={self.n_neighbors}"
            )

    def _check_projections(self) -> None:
        q, k, v, out = self.query_proj, self.key_proj, self.value_proj, self.out_proj
        if q.n_out != k.n_out or q.n_out % self.n_heads or v.n_out % self.n_heads:
            raise ShapeError(
                f"query_proj and key_proj must make as many features, these and value_proj's {self.n_heads} equal "
                f"heads; got {q.n_out}, {k.n_out} and {v.n_out}"
            )
        if not q.n_in == k.n_in == v.n_in == out.n_out:
            raise ShapeError(
                "the projections of CentroidAttention must share one width, got inputs of query_proj, key_proj and "
                f"value_proj {q.n_in}, {k.n_in}, {v.n_in} and output of out_proj {out.n_out}"
            )
        if out.n_in != v.n_out:
            raise ShapeError(f"out_proj must take the {v.n_out} features of value_proj, got {out.n_in}")

    def __call__(
        self,
        x: Given,
        coordinates: Given = None,
        *,
        start: Centroids | None = None,
        key_padding_mask: Given = None,
        n_threads: int | None = None,
    ) -> Float32:
        """Tokens to centroids.

        Parameters
        ----------
        x : array (B, N, width)
        coordinates : array (B, N, P), optional
            Of the tokens; needed by init "farthest" and by ``n_neighbors``.
        start : Centroids, optional
            Where the centroids start, as `begin` gives it; needed by init "given".
        key_padding_mask : bool array (B, N), optional
            True = padding, never read. Where fewer than M tokens remain, the last centroids are 0.
        n_threads : int, optional

        Returns
        -------
        float32 array (B, M, width)
            With a class token (B, M + 1, width).

        Raises
        ------
        ShapeError, DTypeError, ArgumentError
            Before any work.
        """
        threads = _threads.resolve(n_threads)
        x = _check.tokens("CentroidAttention", x, self.query_proj.n_in, False)
        padding = None if key_padding_mask is None else bool_mask("key_padding_mask", key_padding_mask, x.shape[:2])
        if start is None:
            start = self.begin(x, coordinates, key_padding_mask=padding, n_threads=threads)
        u, absent = self._given(start, x)
        key, value = (_cut(project(x, n_threads=threads), self.n_heads) for project in (self.key_proj, self.value_proj))
        for _ in range(self.n_steps):
            gathered = centroid_attention(
                _cut(self.query_proj(u, n_threads=threads), self.n_heads), key, value, normalize=self.normalize,
                neighbors=start.neighbors, key_padding_mask=padding, centroid_padding_mask=absent, scale=self.scale,
                n_threads=threads,
            )  # fmt: skip
            step = self.out_proj(_join(gathered), n_threads=threads)
            u = u + (step if self.eps == 1 else np.float32(self.eps) * step)
        if absent is not None:
            u[absent] = 0
        return u

    def begin(
        self, x: Given, coordinates: Given = None, *, key_padding_mask: Given = None, n_threads: int | None = None
    ) -> Centroids:
        """Where the centroids of these tokens start, with their padding mask for the layers that follow.

        Parameters
        ----------
        x, coordinates, key_padding_mask, n_threads
            As of a call.

        Returns
        -------
        Centroids
        """
        if self.init == "given":
            raise ArgumentError("init='given' needs start=Centroids(...) in the call")
        x = _check.tokens("CentroidAttention", x, self.query_proj.n_in, False)
        padding = None if key_padding_mask is None else bool_mask("key_padding_mask", key_padding_mask, x.shape[:2])
        if coordinates is None and (self.init == "farthest" or self.n_neighbors is not None):
            raise ArgumentError(f"init={self.init!r} with n_neighbors={self.n_neighbors} needs coordinates, got None")
        if coordinates is not None and np.shape(coordinates)[:2] != x.shape[:2]:
            raise ShapeError(f"coordinates must have shape {(*x.shape[:2], 'P')}, got {np.shape(coordinates)}")
        first = int(self.has_class_token)
        body, hidden = x[:, first:], None if padding is None else padding[:, first:]
        if self.init == "mean_pool":
            tokens = mean_pool_tokens(body, self.n_centroids, grid=self.grid, key_padding_mask=hidden)
            counts = pool_counts(hidden, body.shape[1], self.n_centroids, self.grid)
            start = Centroids(tokens, None if hidden is None else counts == 0)
        else:
            start = self._at_tokens(body, coordinates, hidden, n_threads)
        return _with_class_token(start, x, padding) if self.has_class_token else start

    def _at_tokens(self, x: Float32, coordinates: Given, padding: Bool | None, n_threads: int | None) -> Centroids:
        """Centroids that start from single tokens."""
        if self.init == "farthest":
            indices = farthest_point_sampling(
                coordinates, self.n_centroids, key_padding_mask=padding, n_threads=n_threads
            )
        else:
            indices = random_positions(x.shape[1], self.n_centroids, self.seed, padding)
            indices = np.broadcast_to(indices, (len(x), self.n_centroids))
        absent = None if padding is None else indices < 0
        tokens = np.take_along_axis(x, np.maximum(indices, 0)[..., None], axis=1)
        if absent is not None:
            tokens[absent] = 0
        neighbors = None
        if self.n_neighbors is not None:
            places = np.asarray(coordinates)
            centers = np.take_along_axis(places, np.maximum(indices, 0)[..., None], axis=1)
            if padding is not None:  # a batch entry that is all padding has no centre to look from
                centers = np.where(indices[..., None] < 0, 0, centers)
            k = min(self.n_neighbors, x.shape[1])
            neighbors = nearest_neighbors(centers, places, k, key_padding_mask=padding, n_threads=n_threads)
        return Centroids(tokens, absent, indices, neighbors)

    def _given(self, start: Centroids, x: Float32) -> tuple[Float32, Bool | None]:
        """Tokens and padding mask of a start, checked."""
        if not isinstance(start, Centroids):
            raise DTypeError(f"start must be Centroids, got {type(start).__name__}")
        u = _check.tokens("CentroidAttention", start.tokens, self.query_proj.n_in, False, "start.tokens")
        wanted = (len(x), self.n_centroids + int(self.has_class_token))
        if u.shape[:2] != wanted:
            raise ShapeError(f"start.tokens must be (B, M, width) = {(*wanted, x.shape[2])}, got {u.shape}")
        if start.padding_mask is None:
            return u, None
        return u, bool_mask("start.padding_mask", start.padding_mask, wanted)


def _with_class_token(start: Centroids, x: Float32, padding: Bool | None) -> Centroids:
    """Token 0 stands before the others."""
    tokens = np.concatenate([x[:, :1], start.tokens], axis=1)
    absent, indices = start.padding_mask, start.indices
    if absent is not None and padding is not None:
        absent = np.concatenate([padding[:, :1], absent], axis=1)
        tokens[absent] = 0
    if indices is not None:
        own = np.zeros((len(x), 1), np.int64)
        indices = np.concatenate([own, np.where(indices < 0, -1, indices + 1)], axis=1)
    return Centroids(tokens, absent, indices, None)
