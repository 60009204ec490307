"""Digits as sequences of 1,024 pixels: CAST with 16 clusters of 64, four ways, against exact attention trained alike.

pip install scikit-learn        # the images
python export/examples/pixels.py                   # 500 steps
python export/examples/pixels.py --longer          # 1,500
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor, nn

from pyclattn_export.examples.data import pixels
from pyclattn_export.examples.network import Block, Classifier, MakeAttention, Nothing, SelfAttention
from pyclattn_export.examples.training import Arrays, Batch, Example, main
from pyclattn_export.torch_layers import CASTAttention

DIM, N_HEADS, N_BLOCKS, HIDDEN = 32, 2, 2, 64
N_CLUSTERS, CLUSTER_SIZE = 16, 64
BATCH, N_STEPS = 16, 500
FREQUENCIES = (1, 2, 4, 8)  # quarters of a wave over half the image


class Pixels(nn.Module):
    """A pixel's place as waves, and the waves times its brightness."""

    places: Tensor

    def __init__(self, dim: int):
        super().__init__()
        at = torch.from_numpy(pixels.places())[..., None] * torch.tensor(FREQUENCIES) * (torch.pi / 2)
        waves = torch.cat([at.sin(), at.cos()], -1).flatten(1)
        self.register_buffer("places", torch.cat([torch.ones(len(waves), 1), waves], 1), persistent=False)
        self.project = nn.Linear(2 * self.places.shape[1], dim)

    def forward(self, brightness: Tensor) -> Tensor:
        """(B, 1024) to (B, 1024, dim)."""
        places = self.places.expand(brightness.shape[0], -1, -1)
        return self.project(torch.cat([places, brightness[..., None] * places], -1))


def network(attention: MakeAttention) -> Classifier:
    blocks = [Block(attention(), DIM, HIDDEN) for _ in range(N_BLOCKS)]
    return Classifier(Pixels(DIM), blocks, DIM, pixels.N_CLASSES)


@cache
def images(part: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels for training (0) or testing (1)."""
    from sklearn.datasets import load_digits

    digits, chosen = load_digits(), pixels.split()[part]
    return digits.images[chosen], digits.target[chosen].astype(np.int64)


def batch(rng: np.random.Generator) -> Batch:
    """Images moved at random."""
    all_images, labels = images(0)
    chosen = rng.integers(0, len(labels), BATCH)
    return {"inputs": pixels.sequences(all_images[chosen], pixels.random_moves(BATCH, rng))}, labels[chosen]


def test() -> Batch:
    all_images, labels = images(1)
    return {"inputs": pixels.sequences(all_images)}, labels


def source() -> Arrays:
    """The images of the test set, a byte a pixel."""
    all_images, labels = images(1)
    return {"images": all_images.astype(np.uint8), "labels": labels}


def cast(clustering: str, attention: str) -> MakeAttention:
    return partial(
        CASTAttention, DIM, N_HEADS, N_CLUSTERS, cluster_size=CLUSTER_SIZE, clustering=clustering, attention=attention
    )


KINDS: dict[str, MakeAttention] = {
    "exact": partial(SelfAttention, DIM, N_HEADS),
    "topk-softmax": cast("topk", "softmax"),
    "sa_topk-softmax": cast("sa_topk", "softmax"),
    "topk-laplace": cast("topk", "laplace"),
    "sa_topk-laplace": cast("sa_topk", "laplace"),
    "none": Nothing,
}
EXAMPLE = Example(
    "pixels", {name: partial(network, kind) for name, kind in KINDS.items()}, batch, test, N_STEPS, source=source
)
LONGER = replace(EXAMPLE, name="pixels_longer", n_steps=1500, source=None)  # the same test set

if __name__ == "__main__":
    is_longer = "--longer" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--longer"]
    main(LONGER if is_longer else EXAMPLE, __doc__)
