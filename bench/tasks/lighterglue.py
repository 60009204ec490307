"""LighterGlue (XFeat's matcher after LightGlue, Lindenberger et al., ICCV 2023) in one page of layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bench.tasks.xfeat import Features
from pyclattn import _threads
from pyclattn._blas import single
from pyclattn.graph import blocks
from pyclattn.graph.ops.functions import gelu
from pyclattn.layers import Angles, LayerNorm, Linear, MultiHeadAttention, Rotary, from_weights

N_LAYERS = 6
# A match is kept from this probability on.
LEAST = 0.1
# Rows of the matrix of scores that exist at once: 128 x 8,192 float32 = 4 MB.
BLOCK = 128


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


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    """log(1 / (1 + exp(-x)))."""
    return -np.logaddexp(np.float32(0), -x)


def mutual(
    a: np.ndarray, b: np.ndarray, known_a: np.ndarray, known_b: np.ndarray, n_threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that are each other's best under a softmax over rows times one over columns, and their probabilities.

    Parameters
    ----------
    a : array (N, D)
    b : array (M, D)
    known_a, known_b : array (N,), (M,)
        Log of the chance that a point has a partner at all.
    n_threads : int, optional

    Returns
    -------
    pairs : int array (P, 2)
    chances : float32 array (P,)
        At least `LEAST`. The N x M scores are made in blocks of rows, twice, and never exist at once.
    """
    if not len(a) or not len(b):
        return np.empty((0, 2), np.int64), np.empty(0, np.float32)
    threads = _threads.resolve(n_threads)
    over_rows, over_columns = log_sums(a, b, threads)
    # both sums enter the product as two more features
    ones = np.ones((max(len(a), len(b)), 1), np.float32)
    a = np.concatenate([2 * a, (known_a - over_rows)[:, None], ones[: len(a)]], 1)
    b = np.concatenate([b, ones[: len(b)], (known_b - over_columns)[:, None]], 1)
    best, chance = np.empty(len(a), np.int64), np.empty(len(a), np.float32)

    def choose(rows: slice, highest: np.ndarray) -> None:
        scores = a[rows] @ b.T
        scores.argmax(1, out=best[rows])
        chance[rows] = scores[np.arange(len(scores)), best[rows]]
        scores.max(0, out=highest)

    highest = over_blocks(choose, len(a), len(b), threads).max(0)
    kept = np.flatnonzero((chance == highest[best]) & (np.exp(chance) > LEAST))
    _, first = np.unique(best[kept], return_index=True)  # of rows that are equally good
    kept = np.sort(kept[first])
    return np.stack([kept, best[kept]], 1), np.exp(chance[kept])


def log_sums(a: np.ndarray, b: np.ndarray, n_threads: int) -> tuple[np.ndarray, np.ndarray]:
    """log(sum(exp(a b^T))) of each row and of each column."""
    over_rows = np.empty(len(a), np.float32)

    def add(rows: slice, found: np.ndarray) -> None:
        scores = a[rows] @ b.T
        over_rows[rows] = log_sum_exp(scores, 1)
        found[...] = log_sum_exp(scores, 0)

    found = over_blocks(add, len(a), len(b), n_threads)
    return over_rows, log_sum_exp(found, 0)


def log_sum_exp(x: np.ndarray, axis: int) -> np.ndarray:
    """log(sum(exp(x))) along an axis."""
    highest = x.max(axis, keepdims=True)
    powers = x - highest
    np.exp(powers, powers)
    return np.log(powers.sum(axis)) + highest.squeeze(axis)


def over_blocks(task: Callable[[slice, np.ndarray], None], n_rows: int, n_columns: int, n_threads: int) -> np.ndarray:
    """``task(rows, found)`` for all blocks of rows; what they found (blocks, columns)."""
    found = np.empty((-(-n_rows // BLOCK), n_columns), np.float32)
    with single:
        blocks.share(lambda i: task(slice(i * BLOCK, (i + 1) * BLOCK), found[i]), len(found), n_threads)()
    return found
