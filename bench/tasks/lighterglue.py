"""LighterGlue (XFeat's matcher after LightGlue, Lindenberger et al., ICCV 2023) in one page of layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.tasks.assignment import log_sigmoid, mutual
from bench.tasks.xfeat import Features
from pyclattn.graph.ops.functions import gelu
from pyclattn.layers import Angles, LayerNorm, Linear, MultiHeadAttention, Rotary, from_weights

N_LAYERS = 6


@dataclass(frozen=True, eq=False)
class Block:
    """A message from attention, mixed into the tokens."""

    attention: MultiHeadAttention
    up: Linear
    norm: LayerNorm
    down: Linear

    @classmethod
    def of(cls, weights: Mapping[str, np.ndarray], prefix: str, names: dict[str, str], **config) -> Block:
        attention = from_weights("attention", weights, prefix, names, n_heads=1, ignore=["ffn.*"], **config)
        ffn = [from_weights(kind, weights, f"{prefix}.ffn.{i}")
               for kind, i in (("linear", 0), ("layer_norm", 1), ("linear", 3))]  # fmt: skip
        return cls(attention, *ffn)

    def __call__(self, x: np.ndarray, context: np.ndarray | None = None, *, n_threads=None, **how) -> np.ndarray:
        """x (1, N, 96), attending to itself or to a context."""
        message = self.attention(x, context, n_threads=n_threads, **how)
        hidden = self.up(np.concatenate([x, message], -1), n_threads=n_threads)
        hidden = self.norm(hidden, n_threads=n_threads)
        gelu(hidden, hidden)
        return self.down(hidden, add=x, n_threads=n_threads)


class LighterGlue:
    """The matcher.

    Parameters
    ----------
    weights : mapping of str to array
        Of `xfeat-lighterglue.pt`, those under ``matcher.``.
    attention : str, mapping or Plan
        As `pyclattn.load` takes it; the attentions are named ``0.self``, ``0.cross``, ``1.self`` ...
    n_threads : int, optional
    """

    attentions = tuple(f"{i}.{kind}" for i in range(N_LAYERS) for kind in ("self", "cross"))

    def __init__(self, weights: Mapping[str, np.ndarray], attention="exact", n_threads: int | None = None):
        self.how = {"attention": attention, "n_threads": n_threads}
        self.rotary = Rotary(weights["posenc.Wr.weight"], "interleaved")
        self.enter = from_weights("linear", weights, "input_proj")
        of_self = {"qkv": "Wqkv", "out": "out_proj"}
        of_cross = {"query": "to_qk", "value": "to_v", "out": "to_out"}
        self.layers = [
            (
                Block.of(weights, f"transformers.{i}.self_attn", of_self, fused="interleaved", name=f"{i}.self"),
                Block.of(weights, f"transformers.{i}.cross_attn", of_cross, shares_query=True, name=f"{i}.cross"),
            )
            for i in range(N_LAYERS)
        ]
        last = f"log_assignment.{N_LAYERS - 1}"
        self.project = from_weights("linear", weights, f"{last}.final_proj")
        self.matchable = from_weights("linear", weights, f"{last}.matchability")

    def __call__(self, first: Features, second: Features) -> tuple[np.ndarray, np.ndarray]:
        """Matches (M, 2) as pairs of keypoint numbers, and the probability of each (M,)."""
        x0, x1 = (self.enter(f.descriptors[None]) for f in (first, second))
        angles0, angles1 = self.angles(first), self.angles(second)
        for own, cross in self.layers:
            x0, x1 = own(x0, angles=angles0, **self.how), own(x1, angles=angles1, **self.how)
            x0, x1 = cross(x0, x1, **self.how), cross(x1, x0, **self.how)
        factor = np.float32(x0.shape[-1] ** -0.25)
        points = (self.project(x)[0] * factor for x in (x0, x1))
        known = (log_sigmoid(self.matchable(x)[0, :, 0]) for x in (x0, x1))
        return mutual(*points, *known, self.how["n_threads"])

    def angles(self, features: Features) -> Angles:
        """Rotations by place: pixels from the middle, in units of half the longer side."""
        size = np.float32(features.size)
        return self.rotary.angles((features.keypoints - size / 2) / (size.max() / 2))
