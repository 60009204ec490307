"""One encoder, two blocks wide, whose attention is each method in turn; the same weights in PyTorch.

Pre-norm blocks of width 256, 4 heads, a feed-forward of 1,024. CAST has about sqrt(N) clusters of sqrt(N) tokens. The
Centroid encoders gather N tokens to N / 4 or N / 16 (from means of neighbours) in their first block, and attend among
these in the second. Clustered attention has the published settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyclattn.arrays import Float32
from pyclattn.layers import EncoderLayer, FeedForward, LayerNorm, Linear, MultiHeadAttention
from pyclattn.layers.cast import CASTAttention
from pyclattn.layers.centroid import CentroidAttention

DIM, N_HEADS, HIDDEN, N_BLOCKS = 256, 4, 1024, 2
PUBLISHED = {"n_clusters": 100, "n_bits": 63, "n_iterations": 10}
EXACT, TORCH, MATRIX = "exact", "PyTorch", "PyTorch, matrix kept"
METHODS = {
    "CAST Top-K": {"clustering": "topk"},
    "CAST SA Top-K": {"clustering": "sa_topk"},
    "Centroid N/4": {"share": 4},
    "Centroid N/16": {"share": 16},
    "clustered": {"method": "clustered", **PUBLISHED},
    "improved clustered": {"method": "improved-clustered", "topk": 32, **PUBLISHED},
}
Weights = dict[str, Float32]
Run = Callable[[Float32], Any]


def weights(n_clusters: int, seed: int = 0) -> Weights:
    """Random weights of one block, by the names of the PyTorch twins."""
    rng = np.random.default_rng(seed)
    made: Weights = {}
    projections = [f"attention.{name}_proj" for name in ("query", "key", "value", "out")]
    sizes = dict.fromkeys(projections, (DIM, DIM))
    sizes |= {"attention.gate": (1, DIM), "feed_forward.0": (HIDDEN, DIM), "feed_forward.2": (DIM, HIDDEN)}
    for name, (n_out, n_in) in sizes.items():
        made[f"{name}.weight"] = rng.standard_normal((n_out, n_in), np.float32) / np.float32(math.sqrt(n_in))
        made[f"{name}.bias"] = 0.1 * rng.standard_normal(n_out, np.float32)
    for name in ("attention_norm", "feed_forward_norm"):
        made[f"{name}.weight"], made[f"{name}.bias"] = np.ones(DIM, np.float32), np.zeros(DIM, np.float32)
    shape = (n_clusters, N_HEADS, DIM // N_HEADS)
    made["attention.surrogate_tokens"] = rng.standard_normal(shape, np.float32)
    return made


def tokens(length: int, seed: int = 1) -> Float32:
    """What goes in: (1, length, 256)."""
    return np.random.default_rng(seed).standard_normal((1, length, DIM), np.float32)


def n_clusters(length: int) -> int:
    """About sqrt(N)."""
    return max(1, round(math.sqrt(length)))


# -- ours -------------------------------------------------------------------------------------------------------------


def _linear(w: Weights, name: str) -> Linear:
    return Linear(w[f"{name}.weight"], w[f"{name}.bias"])


def _projections(w: Weights) -> list[Linear]:
    return [_linear(w, f"attention.{name}_proj") for name in ("query", "key", "value", "out")]


def exact_attention(w: Weights, attention: Any = "exact") -> MultiHeadAttention:
    query, key, value, out = _projections(w)
    return MultiHeadAttention(N_HEADS, query=query, key=key, value=value, out=out, attention=attention)


def cast_attention(w: Weights, length: int, clustering: str) -> CASTAttention:
    query, key, value, out = _projections(w)
    surrogates = w["attention.surrogate_tokens"]
    size = -(-length // len(surrogates))
    gate = _linear(w, "attention.gate")
    return CASTAttention(query, key, value, surrogates, gate, out, cluster_size=size, clustering=clustering)


def _norms(w: Weights) -> list[LayerNorm]:
    return [LayerNorm(w[f"{n}.weight"], w[f"{n}.bias"]) for n in ("attention_norm", "feed_forward_norm")]


def _feed_forward(w: Weights) -> FeedForward:
    return FeedForward(_linear(w, "feed_forward.0"), _linear(w, "feed_forward.2"), activation="gelu")


def _block(w: Weights, attention: Any) -> Any:
    return EncoderLayer(attention, _feed_forward(w), *_norms(w), is_pre_norm=True)


@dataclass(frozen=True)
class CentroidBlock:
    """N tokens to M centroids, then the feed-forward."""

    attention: CentroidAttention
    feed_forward: FeedForward
    attention_norm: LayerNorm
    feed_forward_norm: LayerNorm

    def __call__(self, x: Float32, *, n_threads: int) -> Float32:
        x = self.attention(self.attention_norm(x, n_threads=n_threads), n_threads=n_threads)
        return self.feed_forward(self.feed_forward_norm(x, n_threads=n_threads), add=x, n_threads=n_threads)


def _blocks(name: str, length: int) -> list[Any]:
    own = [weights(n_clusters(length), seed) for seed in range(N_BLOCKS)]
    how: dict[str, Any] = METHODS.get(name, {})
    if "clustering" in how:
        return [_block(w, cast_attention(w, length, how["clustering"])) for w in own]
    if "share" in how:
        attention = CentroidAttention(N_HEADS, length // how["share"], *_projections(own[0]), init="mean_pool")
        first = CentroidBlock(attention, _feed_forward(own[0]), *_norms(own[0]))
        return [first, *(_block(w, exact_attention(w)) for w in own[1:])]
    return [_block(w, exact_attention(w, how or "exact")) for w in own]


def ours(name: str, length: int, n_threads: int) -> Run:
    """The encoder of a method for sequences of this length."""
    blocks = _blocks(name, length)

    def run(x: Float32) -> Float32:
        for block in blocks:
            x = block(x, n_threads=n_threads)
        return x

    return run


# -- PyTorch ----------------------------------------------------------------------------------------------------------


def in_torch(length: int, n_threads: int, *, keeps_matrix: bool = False) -> Run:
    """The exact encoder in PyTorch: its fused attention, or one that keeps all scores."""
    import torch

    own = [{n: torch.from_numpy(a) for n, a in weights(n_clusters(length), seed).items()} for seed in range(N_BLOCKS)]
    attend = _kept if keeps_matrix else torch.nn.functional.scaled_dot_product_attention

    def run(x: Float32) -> Float32:
        torch.set_num_threads(n_threads)
        with torch.inference_mode():
            y = torch.from_numpy(x)
            for w in own:
                y = _torch_block(y, w, attend)
            return y.numpy()

    return run


def torch_layer(w: Weights, n_threads: int, *, keeps_matrix: bool = False) -> Run:
    """The exact attention layer alone."""
    import torch

    own = {name: torch.from_numpy(a) for name, a in w.items()}
    attend = _kept if keeps_matrix else torch.nn.functional.scaled_dot_product_attention

    def run(x: Float32) -> Float32:
        torch.set_num_threads(n_threads)
        with torch.inference_mode():
            return _torch_attention(torch.from_numpy(x), own, attend).numpy()

    return run


def torch_module(w: Weights, n_threads: int) -> Run:
    """`torch.nn.MultiheadAttention` called as it is by default, which also gives the mean of all heads' weights."""
    import torch

    layer = torch.nn.MultiheadAttention(DIM, N_HEADS, batch_first=True).eval()
    named = {name: torch.from_numpy(a) for name, a in w.items()}
    parts = [f"attention.{name}_proj" for name in ("query", "key", "value")]
    state = {f"in_proj_{kind}": torch.cat([named[f"{part}.{kind}"] for part in parts]) for kind in ("weight", "bias")}
    state |= {f"out_proj.{kind}": named[f"attention.out_proj.{kind}"] for kind in ("weight", "bias")}
    layer.load_state_dict(state)

    def run(x: Float32) -> Float32:
        torch.set_num_threads(n_threads)
        with torch.inference_mode():
            y = torch.from_numpy(x)
            return layer(y, y, y)[0].numpy()

    return run


def _kept(query, key, value):  # type: ignore[no-untyped-def]
    return (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1) @ value


def _torch_attention(x, w, attend):  # type: ignore[no-untyped-def]
    from torch.nn.functional import linear

    def heads(name: str):  # type: ignore[no-untyped-def]
        y = linear(x, w[f"attention.{name}_proj.weight"], w[f"attention.{name}_proj.bias"])
        return y.unflatten(-1, (N_HEADS, -1)).transpose(1, 2)

    joined = attend(heads("query"), heads("key"), heads("value")).transpose(1, 2).flatten(2)
    return linear(joined, w["attention.out_proj.weight"], w["attention.out_proj.bias"])


def _torch_block(x, w, attend):  # type: ignore[no-untyped-def]
    from torch.nn.functional import gelu, layer_norm, linear

    def norm(y, name: str):  # type: ignore[no-untyped-def]
        return layer_norm(y, (DIM,), w[f"{name}.weight"], w[f"{name}.bias"])

    x = x + _torch_attention(norm(x, "attention_norm"), w, attend)
    hidden = gelu(linear(norm(x, "feed_forward_norm"), w["feed_forward.0.weight"], w["feed_forward.0.bias"]))
    return x + linear(hidden, w["feed_forward.2.weight"], w["feed_forward.2.bias"])


def subject(name: str, length: int, n_threads: int) -> Run:
    """An encoder by its name: one of `METHODS`, `EXACT`, `TORCH` or `MATRIX`."""
    if name in (TORCH, MATRIX):
        return in_torch(length, n_threads, keeps_matrix=name == MATRIX)
    return ours(name, length, n_threads)
