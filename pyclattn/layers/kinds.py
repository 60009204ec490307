"""Kinds of layers: the tensors each is made of, and how it is put together from them.

What a kind expects is a template: our name of each tensor (the path of fields to it) and its axes, by name or length.
Settings are what tensors do not say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyclattn.errors import ArgumentError
from pyclattn.layers.attention import MultiHeadAttention
from pyclattn.layers.basic import Embedding, FeedForward, LayerNorm, Linear, Norm, RMSNorm
from pyclattn.layers.cast import CASTAttention
from pyclattn.layers.centroid import CentroidAttention
from pyclattn.layers.clustered import ClusteredAttention
from pyclattn.layers.encoder import Encoder, EncoderLayer

Template = dict[str, tuple[str | int, ...]]  # our name -> axes
Settings = Mapping[str, Any]


class Tensors(dict[str, np.ndarray]):
    """A layer's tensors by our names: those of its template, but what renaming rules say is not in the file."""

    where = ""  # what our names begin with, in the layer as a whole

    def __missing__(self, name: str) -> np.ndarray:
        raise ArgumentError(f"names must not be None for {self.where}{name}: the layer cannot do without it")


@dataclass(frozen=True)
class Kind:
    """One kind of layer."""

    template: Callable[[Settings], Template]
    build: Callable[[Tensors, Settings], Any]
    settings: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()


def under(prefix: str, template: Template, **axes: str | int) -> Template:
    """A template one level down, with other names or lengths for some axes."""
    return {f"{prefix}.{n}": tuple(axes.get(str(a), a) for a in shape) for n, shape in template.items()}


def part(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors of one field, by what follows its name."""
    found = Tensors({n[len(prefix) + 1 :]: a for n, a in tensors.items() if n.startswith(f"{prefix}.")})
    found.where = f"{tensors.where}{prefix}."
    return found


def linear_template(n_out: str | int = "out", n_in: str | int = "in") -> Template:
    return {"weight": (n_out, n_in), "bias": (n_out,)}


def linear(tensors: Tensors, prefix: str = "") -> Linear:
    own = part(tensors, prefix) if prefix else tensors
    return Linear(own["weight"], own.get("bias"))


def norm_template(settings: Settings) -> Template:
    weight: Template = {"weight": ("width",)}
    return weight if settings.get("norm", "layer") == "rms" else {**weight, "bias": ("width",)}


def norm(tensors: Tensors, settings: Settings) -> Norm:
    more = {"epsilon": settings["epsilon"]} if "epsilon" in settings else {}
    if settings.get("norm", "layer") == "rms":
        return RMSNorm(tensors["weight"], **more)
    return LayerNorm(tensors["weight"], tensors.get("bias"), **more)


def _feed_forward_template(settings: Settings) -> Template:
    found = under("up", linear_template("hidden", "width"))
    if settings.get("is_gated"):
        found |= under("gate", linear_template("hidden", "width"))
    return found | under("down", linear_template("width", "hidden"))


def _feed_forward(tensors: Tensors, settings: Settings) -> FeedForward:
    gate = linear(tensors, "gate") if settings.get("is_gated") else None
    return FeedForward(linear(tensors, "up"), linear(tensors, "down"), gate, settings.get("activation", "gelu"))


def _attention_template(settings: Settings) -> Template:
    names = ["query", "value"] if settings.get("shares_query") else ["query", "key", "value"]
    found: Template = {}
    for name in ["qkv"] if settings.get("fused") else names:
        found |= under(name, linear_template(f"{name} features", "width"))
    return found | under("out", linear_template("width", "joined heads"))


def _attention(tensors: Tensors, settings: Settings) -> MultiHeadAttention:
    more = {n: settings[n] for n in ("n_kv_heads", "rotary", "scale", "attention", "name") if n in settings}
    for name in ("query", "key", "value", "out"):
        if f"{name}.weight" in tensors:
            more[name] = linear(tensors, name)
    if settings.get("fused"):
        return MultiHeadAttention.fused(linear(tensors, "qkv"), settings["n_heads"], layout=settings["fused"], **more)
    return MultiHeadAttention(settings["n_heads"], **more)


def _clustered(tensors: Tensors, settings: Settings) -> ClusteredAttention:
    more = {n: value for n, value in settings.items() if n not in ("fused", "shares_query")}
    names = ("qkv", "query", "key", "value", "out")
    projections: dict[str, Any] = {n: linear(tensors, n) for n in names if f"{n}.weight" in tensors}
    return ClusteredAttention(**projections, **more)


def _kind_of_attention(settings: Settings) -> Kind:
    """Of an encoder's layers."""
    return KINDS[settings.get("attention_kind", "attention")]


def _encoder_layer_template(settings: Settings) -> Template:
    return {
        **under("attention", _kind_of_attention(settings).template(settings)),
        **under("attention_norm", norm_template(settings)),
        **under("feed_forward", _feed_forward_template(settings)),
        **under("feed_forward_norm", norm_template(settings)),
    }


def _encoder_layer(tensors: Tensors, settings: Settings) -> EncoderLayer:
    kind = _kind_of_attention(settings)
    own = {n: value for n, value in settings.items() if n in kind.settings}
    attention = kind.build(part(tensors, "attention"), own)
    if attention.n_heads != settings["n_heads"]:  # CAST's are those of its surrogate tokens
        raise ArgumentError(f"n_heads must be {attention.n_heads} as in the file, got {settings['n_heads']}")
    return EncoderLayer(
        attention,
        _feed_forward(part(tensors, "feed_forward"), settings),
        norm(part(tensors, "attention_norm"), settings),
        norm(part(tensors, "feed_forward_norm"), settings),
        settings.get("is_pre_norm", False),
    )


def _encoder_template(settings: Settings) -> Template:
    layer = _encoder_layer_template(settings)
    found = {n: axes for i in range(settings["n_layers"]) for n, axes in under(f"layers.{i}", layer).items()}
    return found | (under("norm", norm_template(settings)) if settings.get("has_norm") else {})


def _encoder(tensors: Tensors, settings: Settings) -> Encoder:
    name = settings.get("name", "layers.{}.attention")
    layers = [
        _encoder_layer(part(tensors, f"layers.{i}"), {**settings, "name": name.format(i)})
        for i in range(settings["n_layers"])
    ]
    return Encoder(tuple(layers), norm(part(tensors, "norm"), settings) if settings.get("has_norm") else None)


def _centroid_template(settings: Settings) -> Template:
    return {
        **under("query_proj", linear_template("query features", "width")),
        **under("key_proj", linear_template("query features", "width")),
        **under("value_proj", linear_template("value features", "width")),
        **under("out_proj", linear_template("width", "value features")),
    }


def _centroid(tensors: Tensors, settings: Settings) -> CentroidAttention:
    projections: dict[str, Any] = {n: linear(tensors, n) for n in ("query_proj", "key_proj", "value_proj", "out_proj")}
    return CentroidAttention(**projections, **settings)


def _cast_template(settings: Settings) -> Template:
    return {
        **under("query_proj", linear_template("query features", "width")),
        **under("key_proj", linear_template("query features", "width")),
        **under("value_proj", linear_template("value features", "width")),
        "surrogate_tokens": ("clusters", "heads", "head features"),
        **under("gate", linear_template(1, "width")),
        **under("out_proj", linear_template("width", "value features")),
    }


def _cast(tensors: Tensors, settings: Settings) -> CASTAttention:
    names = ["query_proj", "key_proj", "value_proj", "gate", *["out_proj"] * ("out_proj.weight" in tensors)]
    layers: dict[str, Any] = {n: linear(tensors, n) for n in names}
    return CASTAttention(surrogate_tokens=tensors["surrogate_tokens"], **layers, **settings)


_OF_ATTENTION = ("n_heads", "n_kv_heads", "fused", "shares_query", "rotary", "scale", "attention", "name")
_OF_CENTROID = (
    "n_heads", "n_centroids", "init", "normalize", "n_steps", "eps", "n_neighbors", "grid", "has_class_token", "seed",
    "scale",
)  # fmt: skip
_OF_CAST = ("cluster_size", "clustering", "attention", "gate_temperature", "scale")
_OF_CLUSTERED = (
    "n_heads", "n_kv_heads", "shares_query", "rotary", "scale", "name", "n_clusters", "topk", "clustering", "n_bits",
    "n_iterations", "seed",
)  # fmt: skip
_OF_FEED_FORWARD = ("activation", "is_gated")
_OF_EVERY_ATTENTION = dict.fromkeys([*_OF_ATTENTION, *_OF_CLUSTERED, *_OF_CAST])  # each once, in this order
_OF_LAYER = ("is_pre_norm", "attention_kind", *_OF_EVERY_ATTENTION, *_OF_FEED_FORWARD, "norm", "epsilon")

KINDS: dict[str, Kind] = {
    "linear": Kind(lambda _: linear_template(), lambda tensors, _: linear(tensors)),
    "layer_norm": Kind(norm_template, norm, ("epsilon",)),
    "rms_norm": Kind(
        lambda s: norm_template({**s, "norm": "rms"}), lambda t, s: norm(t, {**s, "norm": "rms"}), ("epsilon",)
    ),
    "embedding": Kind(lambda _: {"weight": ("rows", "width")}, lambda tensors, _: Embedding(tensors["weight"])),
    "feed_forward": Kind(_feed_forward_template, _feed_forward, _OF_FEED_FORWARD),
    "attention": Kind(_attention_template, _attention, _OF_ATTENTION, ("n_heads",)),
    "clustered_attention": Kind(_attention_template, _clustered, _OF_CLUSTERED, ("n_heads", "n_clusters")),
    "centroid_attention": Kind(_centroid_template, _centroid, _OF_CENTROID, ("n_heads", "n_centroids")),
    "cast_attention": Kind(_cast_template, _cast, _OF_CAST, ("cluster_size",)),
    "encoder_layer": Kind(_encoder_layer_template, _encoder_layer, _OF_LAYER, ("n_heads",)),
    "encoder": Kind(_encoder_template, _encoder, ("n_layers", "has_norm", *_OF_LAYER), ("n_layers", "n_heads")),
}
