"""Multi-head attention: projections, heads as views of them, and any method of attention between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from inspect import signature
from typing import Any, NamedTuple

import numpy as np

from pyclattn import _threads
from pyclattn.arrays import Float32, Given
from pyclattn.errors import ArgumentError, DTypeError, ShapeError
from pyclattn.functional._check import bool_mask, packed_offsets
from pyclattn.graph.ops.attention import METHODS as _METHODS
from pyclattn.layers import _check
from pyclattn.layers.basic import Linear
from pyclattn.layers.rotary import Angles, Rotary, rotate
from pyclattn.plan import Plan

METHODS: dict[str, Any] = _METHODS
Method = str | Mapping | Plan  # what `attention=` takes: see pyclattn.plan.Plan.of

# Order of the rows of a fused projection's weight, as axes: q | k | v stand in "part".
FUSED = {
    "stacked": ("part", "head", "feature"),
    "per-head": ("head", "part", "feature"),
    "interleaved": ("head", "feature", "part"),
}


class Heads(NamedTuple):
    """Query (B, H, L, D), key (B, H', S, D) and value (B, H', S, E); packed: without B."""

    query: Float32
    key: Float32
    value: Float32


@dataclass(frozen=True, eq=False)
class MultiHeadAttention:
    """Multi-head attention of tokens to themselves or to a context.

    Parameters
    ----------
    n_heads : int
    out : Linear, optional
        (width, H E); without it the joined heads are the result.
    qkv : Linear, optional
        Fused projection, q | k | v stacked: (H D + H' D + H' D, width). `fused` turns the other layouts into this.
    query, key, value : Linear, optional
        Instead of ``qkv``. Without ``key``, queries and keys share one projection.
    n_kv_heads : int, optional
        H', a divisor of H: each key and value head serves H / H' query heads. H by default.
    rotary : Rotary, optional
        Rotates queries and keys by position.
    scale : float, optional
        Factor on the logits, 1/sqrt(D) by default.
    attention : str, mapping or Plan
        How attention runs where a call does not say: "exact", or as `pyclattn.load` takes it.
    name : str
        The name a Plan knows this attention by.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> weight = rng.standard_normal((3 * 64, 64), dtype=np.float32) / 8
    >>> layer = MultiHeadAttention(n_heads=4, qkv=Linear(weight))
    >>> x = rng.standard_normal((2, 300, 64), dtype=np.float32)
    >>> layer(x).shape
    (2, 300, 64)
    >>> layer(x, attention={"method": "improved-clustered", "n_clusters": 20}).shape
    (2, 300, 64)
    """

    n_heads: int
    out: Linear | None = None
    qkv: Linear | None = None
    query: Linear | None = None
    key: Linear | None = None
    value: Linear | None = None
    n_kv_heads: int | None = None
    rotary: Rotary | None = None
    scale: float | None = None
    attention: Any = "exact"
    name: str = "attention"

    def __post_init__(self) -> None:
        kv = self.n_heads if self.n_kv_heads is None else self.n_kv_heads
        object.__setattr__(self, "n_kv_heads", kv)
        object.__setattr__(self, "attention", Plan.of(self.attention))
        if self.n_heads < 1 or kv < 1 or self.n_heads % kv:
            raise ArgumentError(f"n_heads must be a multiple of n_kv_heads, got {self.n_heads} and {kv}")
        if self.qkv is not None:
            if not self.query is self.key is self.value is None:
                raise ArgumentError("MultiHeadAttention takes qkv, or query, key and value, got both")
            self._split(self.qkv, "qkv", self.n_heads + 2 * kv)
        elif self.query is None or self.value is None:
            raise ArgumentError("MultiHeadAttention needs qkv, or query and value (and key, unless query is shared)")
        else:
            head_dim = self._split(self.query, "query", self.n_heads)
            key_dim = head_dim if self.key is None else self._split(self.key, "key", kv)
            self._split(self.value, "value", kv)
            if key_dim != head_dim or (self.key is None and kv != self.n_heads):
                raise ShapeError(
                    f"{self.n_heads} heads of query have {head_dim} features, {kv} heads of key have {key_dim}"
                )
        joined = self.n_heads * self.value_dim
        if self.out is not None and self.out.n_in != joined:
            raise ShapeError(f"out of MultiHeadAttention must take the heads' {joined} features, got {self.out.n_in}")

    @staticmethod
    def _split(layer: Linear, name: str, n_heads: int) -> int:
        if layer.n_out % n_heads:
            raise ShapeError(f"{name} of MultiHeadAttention makes {layer.n_out} features, not {n_heads} equal heads")
        return layer.n_out // n_heads

    @classmethod
    def fused(cls, qkv: Linear, n_heads: int, *, layout: str = "stacked", **more: Any) -> MultiHeadAttention:
        """Attention from a fused projection in one of the layouts in use.

        Parameters
        ----------
        qkv : Linear
            (3 H D, width)
        n_heads : int
        layout : {"stacked", "per-head", "interleaved"}
            What a row of the weight is, from the slowest axis on: (part, head, feature); (head, part, feature), as
            GPT-NeoX; (head, feature, part), as LightGlue's ``Wqkv``. The rows of the last two are put in the first
            one's order here, once, so that a head is a view of the product.
        **more
            The other fields.

        Raises
        ------
        ArgumentError, ShapeError
            For an unknown layout, or rows that are not three parts of n_heads.
        """
        if layout not in FUSED:
            raise ArgumentError(f"layout must be one of {', '.join(FUSED)}, got {layout!r}")
        if layout != "stacked":
            n = qkv.n_out
            if n % (3 * n_heads):
                raise ShapeError(f"qkv makes {n} features, not query, key and value of {n_heads} heads")
            lengths = {"part": 3, "head": n_heads, "feature": n // (3 * n_heads)}
            axes = FUSED[layout]
            order = np.arange(n).reshape([lengths[a] for a in axes])
            order = order.transpose([axes.index(a) for a in FUSED["stacked"]]).reshape(-1)
            qkv = Linear(qkv.weight[order], None if qkv.bias is None else qkv.bias[order])
        return cls(n_heads, qkv=qkv, **more)

    @property
    def head_dim(self) -> int:
        if self.qkv is not None:
            return self.qkv.n_out // (self.n_heads + 2 * self._n_kv)
        return self.query.n_out // self.n_heads  # type: ignore[union-attr]

    @property
    def value_dim(self) -> int:
        return self.head_dim if self.value is None else self.value.n_out // self._n_kv

    @property
    def _n_kv(self) -> int:
        return self.n_kv_heads  # type: ignore[return-value]

    def __call__(
        self,
        x: Given,
        context: Given = None,
        *,
        attn_mask: Given = None,
        key_padding_mask: Given = None,
        is_causal: bool = False,
        offsets: Given = None,
        key_offsets: Given = None,
        positions: Given = None,
        angles: Angles | tuple[Angles, Angles] | None = None,
        add: Given = None,
        attention: Method | None = None,
        n_threads: int | None = None,
    ) -> Float32:
        """Attend and project.

        Parameters
        ----------
        x : array (B, L, width), or (T, width) with ``offsets``
        context : array (B, S, context width), or (T', context width), optional
            What is attended to; x itself by default.
        attn_mask, key_padding_mask, is_causal, offsets, key_offsets, n_threads
            As in `pyclattn.scaled_dot_product_attention`. A method that has no place for a mask gives way to exact
            attention, as in a converted model.
        positions : array (L,) or (B, L), optional
            Of the tokens, for ``rotary``; 0 .. L - 1 of each sequence by default. With a context give ``angles``.
        angles : Angles or tuple of two, optional
            Instead of ``positions``: of the tokens, or (of the tokens, of the context).
        add : array of the result's shape, optional
            Added last: a residual.
        attention : str, mapping or Plan, optional
            As `pyclattn.load` takes it.

        Returns
        -------
        float32 array (B, L, width), or (T, width)
        """
        n_threads = _threads.resolve(n_threads)
        if key_padding_mask is not None and offsets is None:
            bool_mask("key_padding_mask", key_padding_mask, np.shape(x if context is None else context)[:2])
        heads = self.heads(x, context, offsets=offsets, positions=positions, angles=angles, n_threads=n_threads)
        joined = self.attend(
            heads, attn_mask=attn_mask, key_padding_mask=key_padding_mask, is_causal=is_causal, offsets=offsets,
            key_offsets=key_offsets, is_self=context is None, attention=attention, n_threads=n_threads,
        )  # fmt: skip
        if self.out is not None:
            return self.out(joined, add=add, n_threads=n_threads)
        add = _check.residual("MultiHeadAttention", add, joined.shape)
        return joined if add is None else joined + add

    def heads(
        self,
        x: Given,
        context: Given = None,
        *,
        offsets: Given = None,
        positions: Given = None,
        angles: Any = None,
        n_threads: int | None = None,
    ) -> Heads:
        """Project x (and the context), cut into heads and rotated; views of the products.

        Returns
        -------
        Heads
            query (B, H, L, D), key (B, H', S, D), value (B, H', S, E); packed: without B. Without a key projection
            key is query.
        """
        n_threads, is_packed = _threads.resolve(n_threads), offsets is not None
        q, k, v = self._projections
        x = _check.tokens("MultiHeadAttention", x, q.n_in, is_packed)
        if is_packed:
            packed_offsets("offsets", offsets, len(x))
        source = x
        if context is not None:
            source = _check.tokens("MultiHeadAttention", context, v.n_in, is_packed, "context")
        of_query, of_key = self._angles(x, None if context is None else source, offsets, positions, angles)
        if context is None and self.qkv is not None:
            ends = np.cumsum([q.n_out, k.n_out])
            query, key, value = np.split(self.qkv(x, n_threads=n_threads), ends, -1)
        else:
            query, value = q(x, n_threads=n_threads), v(source, n_threads=n_threads)
            key = query if k is q and context is None else k(source, n_threads=n_threads)
        heads = Heads(_cut(query, self.n_heads), _cut(key, self._n_kv), _cut(value, self._n_kv))
        if of_query is not None:
            rotate(_with_batch(heads.query), of_query, n_threads)
        if of_key is not None and key is not query:
            rotate(_with_batch(heads.key), of_key, n_threads)
        return heads

    @cached_property
    def _projections(self) -> tuple[Linear, Linear, Linear]:
        """Of query, key and value; parts of the fused one are views, packed once."""
        if self.qkv is not None:
            a, b = self.n_heads * self.head_dim, self._n_kv * self.head_dim
            return self.qkv.rows(0, a), self.qkv.rows(a, a + b), self.qkv.rows(a + b, a + 2 * b)
        return self.query, self.key or self.query, self.value  # type: ignore[return-value]

    def _angles(self, x: Float32, context: Float32 | None, offsets, positions, angles) -> Sequence[Angles | None]:
        """Angles of queries and of keys, checked."""
        if angles is None and positions is not None and self.rotary is None:
            raise ArgumentError("positions were given, but this attention has no rotary")
        if angles is None and self.rotary is not None:
            if context is not None:
                raise ArgumentError("rotary attention to a context needs angles=(of the tokens, of the context)")
            angles = self.rotary.angles(_places(x.shape[-2], offsets) if positions is None else positions)
        pair = angles if isinstance(angles, tuple) else (angles, angles if context is None else None)
        if len(pair) != 2 or not all(each is None or isinstance(each, Angles) for each in pair):
            raise DTypeError(f"angles must be Angles or a pair of them, got {type(pair[0]).__name__}")
        for each, array in zip(pair, (x, x if context is None else context)):
            if each is not None:
                each.check(1 if offsets is not None else len(array), array.shape[-2], self.head_dim)
        return pair

    def attend(
        self,
        heads: Heads,
        *,
        attn_mask: Given = None,
        key_padding_mask: Given = None,
        is_causal: bool = False,
        offsets: Given = None,
        key_offsets: Given = None,
        is_self: bool = False,
        attention: Method | None = None,
        n_threads: int | None = None,
    ) -> Float32:
        """Attention between heads, joined.

        Parameters
        ----------
        heads : Heads
        is_self : bool
            Queries and keys are the same tokens: ``key_padding_mask`` tells of padded queries too, which a clustered
            method then leaves out of its clusters (their outputs are 0).

        Returns
        -------
        float32 array (B, L, H E), or (T, H E)
        """
        plan = self.attention if attention is None else Plan.of(attention)
        options = {
            "key_padding_mask": key_padding_mask, "scale": self.scale, "offsets": offsets,
            "key_offsets": key_offsets, "n_threads": n_threads,
        }  # fmt: skip
        options |= {} if attn_mask is None else {"attn_mask": attn_mask}
        options |= {"is_causal": True} if is_causal else {}
        parts = plan.parts(self.name, *_counts(heads, offsets, key_offsets))
        # what a method cannot mask is computed exactly
        if attn_mask is not None or (is_causal and not all(_takes(method, "is_causal") for _, method, _ in parts)):
            parts = [(slice(None), "exact", {})]
        outputs = []
        for own, method, parameters in parts:
            if is_self and key_padding_mask is not None and _takes(method, "query_padding_mask"):
                parameters = {**parameters, "query_padding_mask": key_padding_mask}
            outputs.append((own, METHODS[method](*_taken(heads, own), **options, **parameters)))
        return _join(outputs[0][1] if len(outputs) == 1 else _together(heads, outputs))


def _counts(heads: Heads, offsets: Given, key_offsets: Given) -> tuple[int, int, int, int]:
    """Heads, heads of keys, and the longest sequence of queries and of keys, as a plan asks for them."""
    counts = [heads.query.shape[-3], heads.key.shape[-3], heads.query.shape[-2], heads.key.shape[-2]]
    for i, own in ((2, offsets), (3, offsets if key_offsets is None else key_offsets)):
        if own is not None and len(own) > 1:
            counts[i] = int(np.diff(own).max())
    return counts[0], counts[1], counts[2], counts[3]


def _taken(heads: Heads, own: slice) -> tuple[Float32, Float32, Float32]:
    """The heads of keys in a slice, with their queries: views."""
    n_kv_heads = heads.key.shape[-3]
    group = heads.query.shape[-3] // max(1, n_kv_heads)
    asking = own if group == 1 else slice(*(n if n is None else n * group for n in (own.start, own.stop)))
    return heads.query[..., asking, :, :], heads.key[..., own, :, :], heads.value[..., own, :, :]


def _together(heads: Heads, outputs: list[tuple[slice, Float32]]) -> Float32:
    """Outputs of slices of the heads as one array."""
    shape = (*heads.query.shape[:-1], heads.value.shape[-1])
    out, group = np.empty(shape, np.float32), shape[-3] // heads.key.shape[-3]
    for own, part in outputs:
        asking = own if group == 1 else slice(own.start * group, own.stop * group)
        out[..., asking, :, :] = part
    return out


def _cut(x: Float32, n_heads: int) -> Float32:
    """(..., L, H D) as (..., H, L, D), a view."""
    return x.reshape(*x.shape[:-1], n_heads, x.shape[-1] // n_heads).swapaxes(-2, -3)


def _join(x: Float32) -> Float32:
    """(..., H, L, E) as (..., L, H E), a view where the heads of a token lie side by side."""
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def _with_batch(x: Float32) -> Float32:
    return x if x.ndim == 4 else x[None]


def _places(n_tokens: int, offsets: Given) -> np.ndarray:
    """Positions 0, 1, ... of each sequence."""
    at = np.arange(n_tokens)
    if offsets is None:
        return at
    offsets = np.asarray(offsets)
    return at - np.repeat(offsets[:-1], np.diff(offsets))


@cache
def _takes(method: str, parameter: str) -> bool:
    return parameter in signature(METHODS[method]).parameters
