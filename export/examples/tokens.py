"""Words planted in 512 letters: Centroid networks that start from means and from random tokens, against a plain one.

python export/examples/tokens.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
from torch import Tensor, nn

from pyclattn_export.examples.data import tokens
from pyclattn_export.examples.network import Block, CentroidBlock, Classifier, Nothing, SelfAttention
from pyclattn_export.examples.training import Batch, Example, main
from pyclattn_export.torch_layers import CentroidAttention

DIM, N_HEADS, HIDDEN = 32, 2, 64
N_CENTROIDS = tokens.LENGTH // 16
BATCH, N_STEPS, N_TEST = 16, 150, 500
TEST_SEED = 2
WINDOW = 9  # letters one token sees


class Letters(nn.Module):
    """Letters as vectors, each of itself and its neighbours."""

    def __init__(self, dim: int):
        super().__init__()
        self.letter = nn.Embedding(tokens.N_LETTERS, dim)
        self.window = nn.Conv1d(dim, dim, WINDOW, padding=WINDOW // 2)

    def forward(self, letters: Tensor) -> Tensor:
        """(B, N) to (B, N, dim)."""
        x = self.letter(letters)
        return x + nn.functional.gelu(self.window(x.transpose(1, 2))).transpose(1, 2)


def centroids(init: str) -> list[nn.Module]:
    """N tokens to M = N / 16 centroids, and attention among these."""
    to_centroids = CentroidAttention(DIM, N_HEADS, N_CENTROIDS, init=init)
    return [CentroidBlock(to_centroids, DIM, HIDDEN), Block(SelfAttention(DIM, N_HEADS), DIM, HIDDEN)]


def plain(attention: Callable[[], nn.Module]) -> list[nn.Module]:
    return [Block(attention(), DIM, HIDDEN) for _ in range(2)]


def network(blocks: Callable[[], list[nn.Module]]) -> Classifier:
    return Classifier(Letters(DIM), blocks(), DIM, tokens.N_CLASSES)


def batch(rng: np.random.Generator) -> Batch:
    letters, labels = tokens.generate(BATCH, int(rng.integers(1 << 62)))
    shift = rng.permutation(BATCH)
    return {"inputs": letters[shift]}, labels[shift]


@cache
def test() -> Batch:
    letters, labels = tokens.generate(N_TEST, TEST_SEED)
    return {"inputs": letters}, labels


KINDS = {
    "exact": partial(plain, partial(SelfAttention, DIM, N_HEADS)),
    "mean_pool": partial(centroids, "mean_pool"),
    "random": partial(centroids, "random"),
    "none": partial(plain, Nothing),
}
EXAMPLE = Example("tokens", {name: partial(network, kind) for name, kind in KINDS.items()}, batch, test, N_STEPS)

if __name__ == "__main__":
    main(EXAMPLE, __doc__)
