"""Encoders of images: ViT and DeiT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyclattn.errors import ModelFormatError
from pyclattn.graph.program import Program, Value
from pyclattn.huggingface import names
from pyclattn.huggingface.builder import Builder
from pyclattn.huggingface.settings import MAX_LAYERS, Settings, fitting
from pyclattn.layers import Linear
from pyclattn.layers.kinds import KINDS, Template, Tensors, linear, linear_template, part, under
from pyclattn.layers.weights import Names

_REQUIRED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
)  # fmt: skip


@dataclass(frozen=True)
class Image:
    """What tells one kind of image encoder from another."""

    prefix: str
    names: Names
    tokens: tuple[str, ...]  # that stand before the patches


VIT = Image("vit", names.VIT, ("cls_token",))
DEIT = Image("deit", names.VIT, ("cls_token", "distillation_token"))


def image_program(kind: Image, settings: Settings, weights: Tensors, prefix: str) -> Program:
    """The encoder of a folder: pixel_values to last_hidden_state and pooler_output."""
    settings.require(_REQUIRED)
    width, hidden = (settings.whole(key, least=1) for key in ("hidden_size", "intermediate_size"))
    encoder: dict[str, Any] = {
        "n_layers": settings.whole("num_hidden_layers", least=1, most=MAX_LAYERS),
        "n_heads": settings.whole("num_attention_heads", least=1),
        "activation": settings.activation("hidden_act"),
        "epsilon": settings.number("layer_norm_eps", 1e-12),
        "is_pre_norm": True,
        "has_norm": True,
    }
    image, patch = _pair(settings, "image_size"), _pair(settings, "patch_size")
    if image[0] % patch[0] or image[1] % patch[1]:
        raise ModelFormatError(f"{settings.path}: image_size {image} must be a multiple of patch_size {patch}")
    grid = (image[0] // patch[0], image[1] // patch[1])
    n_channels = settings.whole("num_channels", 3, least=1)
    has_pooler = any(n.startswith(f"{prefix}pooler.") for n in weights)
    attention = {f"{n} features": width for n in ("query", "key", "value")} | {"joined heads": width}
    template: Template = {
        "positions": (1, grid[0] * grid[1] + len(kind.tokens), width),
        "patches.weight": (width, n_channels, *patch),
        "patches.bias": (width,),
        **dict.fromkeys(kind.tokens, (1, 1, width)),
        **under("encoder", KINDS["encoder"].template(encoder), width=width, hidden=hidden, **attention),
        **(under("pooler", linear_template("pooled", width)) if has_pooler else {}),
    }
    rules = {**kind.names}
    if settings.get("qkv_bias", True) is False:
        rules |= {f"encoder.layers.{{}}.attention.{n}.bias": None for n in ("query", "key", "value")}
    tensors = fitting(template, weights, prefix, rules, settings)
    return _program(kind, tensors, encoder, grid, settings, has_pooler)


def _pair(settings: Settings, key: str) -> tuple[int, int]:
    """A height and a width, given as one number or two."""
    value = settings.get(key)
    sizes: Sequence = value if isinstance(value, list) else [value, value]
    if len(sizes) != 2 or any(type(n) is not int or not 1 <= n <= 1 << 20 for n in sizes):
        raise ModelFormatError(f"{settings.path}: {key} must be a whole number or two, got {value!r}")
    return sizes[0], sizes[1]


def _program(kind: Image, tensors: Tensors, encoder: dict, grid: tuple[int, int], settings, has_pooler) -> Program:
    width, n_channels, high, wide = tensors["patches.weight"].shape
    b, (rows, columns) = Builder(), grid
    # a patch is a row of numbers, and the convolution with the patch's stride a product
    x = b.add("pixels", "Reshape", "pixel_values", b.numbers(0, n_channels, rows, high, columns, wide))
    x = b.add("pixels.patches", "Transpose", x, perm=[0, 2, 4, 1, 3, 5])
    x = b.add("pixels.rows", "Reshape", x, b.numbers(0, rows * columns, n_channels * high * wide))
    x = b.linear("patches", x, Linear(tensors["patches.weight"].reshape(width, -1), tensors["patches.bias"]))
    n_tokens, places = len(kind.tokens), tensors["positions"]
    x = b.add("patches.placed", "Add", x, b.constant("positions", places[:, n_tokens:]))
    first = np.concatenate([tensors[token] for token in kind.tokens], 1) + places[:, :n_tokens]
    batch = b.add("batch", "Gather", b.add("shape", "Shape", "pixel_values"), b.numbers(0))
    shape = b.add("tokens.shape", "Concat", batch, b.numbers(n_tokens, width), axis=0)
    tokens = b.add("tokens.all", "Expand", b.constant("tokens", first), shape)
    x = b.add("embeddings", "Concat", tokens, x, axis=1)
    hidden = b.add(
        "last_hidden_state", "Identity", b.encoder(x, KINDS["encoder"].build(part(tensors, "encoder"), encoder))
    )
    outputs = [Value(hidden, "float32", ("batch", rows * columns + n_tokens, width))]
    if has_pooler:
        layer = linear(tensors, "pooler")
        pooled = b.pooler(hidden, layer, settings.activation("pooler_act", "tanh"))
        outputs.append(Value(pooled, "float32", ("batch", layer.n_out)))
    pixels = Value("pixel_values", "float32", ("batch", n_channels, rows * high, columns * wide))
    return b.program([pixels], outputs)
