"""A network with every operator of pyclattn's domain amid PyTorch's own, and the file made of it.

``python -m tests.export.everything`` writes tests/data/twins.safetensors and twins.npz (inputs, and PyTorch's outputs),
which `test_twins_kept` runs without PyTorch.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from pyclattn_export import from_torch, torch_layers

D = 16
OPEN = {0: "batch", 1: "length"}
KEPT = Path(__file__).parents[1] / "data" / "twins.safetensors"


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, D)
        attentions = (
            torch_layers.CASTAttention(D, 2, 3, cluster_size=21, clustering="sa_topk"),
            torch_layers.ClusteredAttention(D, 2, 4),
            torch_layers.ClusteredAttention(D, 2, 4, topk=3, n_bits=31, seed=2),
            torch_layers.MultiHeadAttention(D, 2),
        )
        self.encoder = torch_layers.Encoder(
            torch_layers.EncoderLayer(attention, torch_layers.FeedForward(D, 24, activation="relu"))
            for attention in attentions
        )
        self.near = torch_layers.CentroidAttention(D, 2, 5, n_neighbors=6, normalize="both")
        self.pooled = torch_layers.CentroidAttention(D, 2, 4, init="mean_pool", n_steps=2, eps=0.5)
        self.drawn = torch_layers.CentroidAttention(D, 2, 3, init="random", seed=1)
        self.head = nn.Linear(D, 7)

    def forward(self, x, places, padding=None):
        x = self.encoder(self.embed(x), padding)
        start = self.near.begin(x, places, key_padding_mask=padding)
        parts = [self.near(x, start=start, key_padding_mask=padding)]
        parts += [few(x, key_padding_mask=padding) for few in (self.pooled, self.drawn)]
        return {"logits": self.head(torch.cat(parts, 1).mean(1)), "tokens": x}


def everything(seed=0):
    torch.manual_seed(seed)
    return Everything()


def example(batch=2, length=26, seed=0):
    rng = np.random.default_rng(seed)
    x, places = (rng.standard_normal((batch, length, n), dtype=np.float32) for n in (5, 3))
    return {"x": x, "places": places, "padding": np.arange(length) >= length - 4 * np.arange(batch)[:, None]}


if __name__ == "__main__":
    KEPT.parent.mkdir(exist_ok=True)
    inputs = example(3, 50)
    done = from_torch(everything(), inputs, KEPT, dynamic=dict.fromkeys(inputs, OPEN), golden=KEPT.with_suffix(".npz"))
    print(done.comparison)
