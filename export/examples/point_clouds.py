"""Ten families of solids as clouds of 1,024 points: a Centroid network against a plain one.

    python export/examples/point_clouds.py
    python export/examples/point_clouds.py --larger [DIR]      # the networks in DIR on 2,048 to 8,192 points

The plain network has two blocks of self-attention on all points. In the Centroid network these two work on one centroid
for 16 points: a block before them starts centroids at points far from each other and moves each towards what its 32
nearest neighbours hold.
"""

from __future__ import annotations

import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import pyclattn
from pyclattn_export.examples.data import point_clouds
from pyclattn_export.examples.network import Block, CentroidBlock, Nothing, SelfAttention
from pyclattn_export.examples.training import Batch, Example, main
from pyclattn_export.from_torch import from_torch
from pyclattn_export.torch_layers import CentroidAttention

DIM, N_HEADS, HIDDEN = 32, 2, 64
N_POINTS, SHARE, N_NEIGHBORS = 1024, 16, 32
BATCH, N_STEPS, N_TEST = 16, 900, 500
TEST_SEED = 2
LARGER = (2048, 4096, 8192)
FREQUENCIES = (2.0, 4.0, 8.0, 16.0)  # of the distance from the middle, whose mean square is 1


class CloudClassifier(nn.Module):
    """Clouds brought to one size; a first block that may make fewer points, further blocks."""

    frequencies: Tensor

    def __init__(self, first: nn.Module, others: list[nn.Module]):
        super().__init__()
        self.register_buffer("frequencies", torch.tensor(FREQUENCIES), persistent=False)
        self.embed = nn.Sequential(nn.Linear(4 + 2 * len(FREQUENCIES), HIDDEN), nn.GELU(), nn.Linear(HIDDEN, DIM))
        self.first, self.others = first, nn.ModuleList(others)
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, point_clouds.N_CLASSES)

    def forward(self, points: Tensor) -> Tensor:
        """(B, N, 3) to logits (B, 10)."""
        square = points.square().sum(-1, keepdim=True)
        size = square.mean(1, keepdim=True).sqrt()
        points, distance = points / size, square.sqrt() / size
        waves = distance * self.frequencies
        x = self.embed(torch.cat([points, distance, waves.sin(), waves.cos()], -1))
        x = self.first(x, points) if isinstance(self.first, CentroidBlock) else self.first(x)
        for block in self.others:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def plain_block() -> nn.Module:
    return Block(SelfAttention(DIM, N_HEADS), DIM, HIDDEN)


def plain() -> CloudClassifier:
    return CloudClassifier(plain_block(), [plain_block()])


def centroid(n_points: int = N_POINTS) -> CloudClassifier:
    attention = CentroidAttention(DIM, N_HEADS, n_points // SHARE, init="farthest", n_neighbors=N_NEIGHBORS)
    return CloudClassifier(CentroidBlock(attention, DIM, HIDDEN), [plain_block(), plain_block()])


def without() -> CloudClassifier:
    return CloudClassifier(Block(Nothing(), DIM, HIDDEN), [Block(Nothing(), DIM, HIDDEN)])


def batch(rng: np.random.Generator) -> Batch:
    points, labels = point_clouds.generate(2 * point_clouds.N_CLASSES, N_POINTS, int(rng.integers(1 << 62)))
    chosen = rng.permutation(len(labels))[:BATCH]
    return {"points": points[chosen]}, labels[chosen]


@cache
def test() -> Batch:
    points, labels = point_clouds.generate(N_TEST, N_POINTS, TEST_SEED)
    return {"points": points}, labels


NETWORKS = {"exact": plain, "centroid": centroid, "none": without}
EXAMPLE = Example("point_clouds", NETWORKS, batch, test, N_STEPS)


def larger(folder: Path, n_clouds: int = 100) -> None:
    """The same weights on clouds of more points, run in pyclattn: accuracy and time of both networks."""
    print(f"{'points':>8} {'exact':>8} {'centroid':>9} {'time, of the exact':>19}")
    for n_points in LARGER:
        points, labels = point_clouds.generate(n_clouds, n_points, TEST_SEED)
        accuracy, seconds = {}, {}
        for name, network in (("exact", plain()), ("centroid", centroid(n_points))):
            network.load_state_dict(torch.load(folder / f"point_clouds-{name}.pt", weights_only=True))
            path = folder / f"point_clouds-{name}-{n_points}.safetensors"
            from_torch(network, {"points": points[:2]}, path)
            model = pyclattn.load(path)
            model(points=points[:1])
            start = time.perf_counter()
            found = [model(points=points[at : at + 1])["output"].argmax() for at in range(n_clouds)]
            accuracy[name], seconds[name] = np.mean(found == labels), time.perf_counter() - start
        share = seconds["centroid"] / seconds["exact"]
        print(f"{n_points:>8,} {accuracy['exact']:>8.1%} {accuracy['centroid']:>9.1%} {share:>19.1%}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--larger"]:
        larger(Path(sys.argv[2] if len(sys.argv) > 2 else "out/examples"))
    else:
        main(EXAMPLE, __doc__)
