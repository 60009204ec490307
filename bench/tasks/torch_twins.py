"""The models of the tasks in PyTorch, with its fused attention: for parity of results and for comparison of times.

Written from the same papers and weights as the models in layers, sharing no code with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch.nn import functional as F

attend = F.scaled_dot_product_attention


class Weights:
    """Tensors by name, and the two layers that all is made of."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def linear(self, x, name):
        return F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"])

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"])


def turned(x, cos, sin):
    """Pairs of neighbouring features, rotated."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def turned_halves(x, cos, sin):
    """Features i and i + half, rotated."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


# -- XFeat ------------------------------------------------------------------------------------------------------------


def xfeat(weights: Mapping[str, np.ndarray], image: np.ndarray, n_keypoints: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(keypoints (N, 2), descriptors (N, 64)) of an image (height, width, 3)."""
    w = Weights(weights)

    def conv(x, name, stride=1):
        weight = w[f"{name}.weight"]
        bias = w.tensors.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2)

    def block(x, name, strides):
        for i, stride in enumerate(strides):
            layer = f"{name}.{i}.layer"
            x = conv(x, f"{layer}.0", stride)
            x = F.relu(F.batch_norm(x, w[f"{layer}.1.running_mean"], w[f"{layer}.1.running_var"]))
        return x

    gray = F.instance_norm(torch.from_numpy(image.astype(np.float32)).mean(-1)[None, None])
    x = block(block(gray, "block1", (1, 2, 1, 2)) + conv(F.avg_pool2d(gray, 4, 4), "skip1.1"), "block2", (1, 1))
    x3 = block(x, "block3", (2, 1, 1))
    x4 = block(x3, "block4", (2, 1, 1))
    x5 = block(x4, "block5", (2, 1, 1, 1))
    size = x3.shape[-2:]
    pyramid = x3 + F.interpolate(x4, size, mode="bilinear") + F.interpolate(x5, size, mode="bilinear")
    features = conv(block(pyramid, "block_fusion", (1, 1)), "block_fusion.2")
    reliability = torch.sigmoid(conv(block(features, "heatmap_head", (1, 1)), "heatmap_head.2"))
    cells = conv(block(F.pixel_unshuffle(gray, 8), "keypoint_head", (1, 1, 1)), "keypoint_head.3")
    heat = F.pixel_shuffle(cells.softmax(1)[:, :64], 8)
    is_peak = (heat == F.max_pool2d(heat, 5, 1, 2)) & (heat > 0.05)
    places = is_peak[0, 0].nonzero().flip(-1).float()
    height, width = heat.shape[-2:]
    grid = (2 * places / torch.tensor([width - 1, height - 1]) - 1)[None, None]

    def sampled(values, mode):
        return F.grid_sample(values, grid, mode=mode, align_corners=False)[0, :, 0].T

    scores = heat[0, 0][places[:, 1].long(), places[:, 0].long()] * sampled(reliability, "bilinear")[:, 0]
    best = scores.argsort(descending=True, stable=True)[:n_keypoints]
    return places[best], F.normalize(sampled(F.normalize(features, dim=1), "bicubic")[best], dim=-1)


# -- LighterGlue ------------------------------------------------------------------------------------------------------


class LighterGlue:
    """From keypoints, descriptors and sizes of two images to matches."""

    def __init__(self, weights: Mapping[str, np.ndarray]):
        self.w = Weights(weights)

    def __call__(self, keypoints, descriptors, sizes) -> tuple[torch.Tensor, torch.Tensor]:
        """Pairs (P, 2) and their probabilities (P,)."""
        with torch.inference_mode():
            angles = [self.angles(*of) for of in zip(keypoints, sizes)]
            x = [self.w.linear(d[None, None], "input_proj") for d in descriptors]
            for i in range(6):
                x = [self.own(a, f"transformers.{i}.self_attn", *angle) for a, angle in zip(x, angles)]
                x = self.cross(*x, f"transformers.{i}.cross_attn")
            return self.matches(*(a[0, 0] for a in x))

    def angles(self, keypoints, size):
        size = torch.tensor(size, dtype=torch.float32)
        turns = F.linear((keypoints - size / 2) / (size.max() / 2), self.w["posenc.Wr.weight"])
        return turns.cos(), turns.sin()

    def mixed(self, x, message, name):
        hidden = self.w.norm(self.w.linear(torch.cat([x, message], -1), f"{name}.ffn.0"), f"{name}.ffn.1")
        return x + self.w.linear(F.gelu(hidden), f"{name}.ffn.3")

    def own(self, x, name, cos, sin):
        query, key, value = self.w.linear(x, f"{name}.Wqkv").unflatten(-1, (-1, 3)).unbind(-1)
        found = attend(turned(query, cos, sin), turned(key, cos, sin), value.contiguous())
        return self.mixed(x, self.w.linear(found, f"{name}.out_proj"), name)

    def cross(self, a, b, name):
        of_a, of_b = (self.w.linear(x, f"{name}.to_qk") for x in (a, b))
        value_a, value_b = (self.w.linear(x, f"{name}.to_v") for x in (a, b))
        from_b, from_a = attend(of_a, of_b, value_b), attend(of_b, of_a, value_a)
        return [self.mixed(x, self.w.linear(m, f"{name}.to_out"), name) for x, m in ((a, from_b), (b, from_a))]

    def matches(self, a, b):
        last = "log_assignment.5"
        points = [self.w.linear(x, f"{last}.final_proj") / a.shape[-1] ** 0.25 for x in (a, b)]
        known = [F.logsigmoid(self.w.linear(x, f"{last}.matchability")) for x in (a, b)]
        scores = points[0] @ points[1].T
        scores = scores.log_softmax(1) + scores.log_softmax(0) + known[0] + known[1].T
        chance, best = scores.max(1)
        own = torch.arange(len(a))
        kept = own[(scores.argmax(0)[best] == own) & (chance.exp() > 0.1)]
        return torch.stack([kept, best[kept]], 1), chance[kept].exp()


# -- TIS Transformer --------------------------------------------------------------------------------------------------


class TisTransformer:
    """From token numbers, marks of begin and end included, to the probability of each nucleotide."""

    def __init__(self, weights: Mapping[str, np.ndarray], attention=attend):
        self.w, self.attention = Weights(weights), attention

    def __call__(self, tokens: np.ndarray) -> torch.Tensor:
        with torch.inference_mode():
            n = len(tokens)
            x = self.w["nuc_emb.weight"][torch.from_numpy(tokens)] + self.w["pos_emb.emb"][:n]
            sin, cos = self.w["layer_pos_emb.emb"][:n].chunk(2, -1)
            turns = torch.arange(n)[:, None] * self.w["transformer.net.layers.0.0.fn.local_attn.rel_pos.inv_freq"]
            for i in range(8):
                name = f"transformer.net.layers.{i}"
                x = x + self.attended(self.w.norm(x, f"{name}.0.norm"), f"{name}.0.fn", cos, sin, turns)
                hidden = self.w.linear(self.w.norm(x, f"{name}.1.norm"), f"{name}.1.fn.fn.w1")
                x = x + self.w.linear(F.gelu(hidden), f"{name}.1.fn.fn.w2")
            x = self.w.linear(F.relu(self.w.linear(x, "ff_1")), "ff_2")
            return x.softmax(-1)[1:-1, 1]

    def attended(self, x, name, cos, sin, turns):
        query, key, value = (self.w.linear(x, f"{name}.to_{n}").unflatten(-1, (8, 16)).transpose(0, 1) for n in "qkv")
        far = self.attention(turned(query[:3], cos, sin)[None], turned(key[:3], cos, sin)[None], value[None, :3])[0]
        query, key = (turned_halves(a[3:], turns.cos(), turns.sin()) for a in (query, key))
        near = windowed(query, key, value[3:])
        return self.w.linear(torch.cat([far, near]).transpose(0, 1).flatten(1), f"{name}.to_out")


def windowed(query, key, value, width: int = 256):
    """Attention (H, N, D) within windows and their neighbours."""
    length = query.shape[1]
    n = math.ceil(length / width)
    query = F.pad(query, (0, 0, 0, n * width - length)).unflatten(1, (n, width)).transpose(0, 1)
    key, value = (
        F.pad(a, (0, 0, width, (n + 1) * width - length)).unfold(1, 3 * width, width).permute(1, 0, 3, 2)
        for a in (key, value)
    )
    place = torch.arange(n)[:, None] * width + torch.arange(-width, 2 * width)
    allowed = ((place >= 0) & (place < length))[:, None, None]
    return attend(query, key, value, attn_mask=allowed).transpose(0, 1).flatten(1, 2)[:, :length]
