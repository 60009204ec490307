"""Encoders of text: BERT and MiniLM, RoBERTa, DistilBERT, ALBERT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyclattn.graph.program import Program, Value
from pyclattn.huggingface import names
from pyclattn.huggingface.builder import Builder
from pyclattn.huggingface.settings import MAX_LAYERS, Settings, fitting
from pyclattn.layers import Encoder, LayerNorm
from pyclattn.layers.kinds import KINDS, Template, Tensors, linear, linear_template, norm_template, part, under
from pyclattn.layers.weights import Names


@dataclass(frozen=True)
class Text:
    """What tells one kind of text encoder from another."""

    prefix: str  # of its tensors where a task's head stands beside it
    names: Names
    keys: Mapping[str, str]  # our settings -> config.json's
    counts_from_padding: bool = False  # RoBERTa: positions count the tokens that are not padding
    has_types: bool = True
    is_shared: bool = False  # ALBERT: layers share weights, embeddings are narrow


_KEYS = {
    "width": "hidden_size",
    "hidden": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "activation": "hidden_act",
}
_DISTILBERT_KEYS = {
    "width": "dim",
    "hidden": "hidden_dim",
    "n_layers": "n_layers",
    "n_heads": "n_heads",
    "activation": "activation",
}
BERT = Text("bert", names.BERT, _KEYS)
ROBERTA = Text("roberta", names.BERT, _KEYS, counts_from_padding=True)
DISTILBERT = Text("distilbert", names.DISTILBERT, _DISTILBERT_KEYS, has_types=False)
ALBERT = Text("albert", names.ALBERT, _KEYS, is_shared=True)


def text_program(kind: Text, settings: Settings, weights: Tensors, prefix: str) -> Program:
    """The encoder of a folder: input_ids, attention_mask and token_type_ids to last_hidden_state and pooler_output."""
    _refuse(settings)
    settings.require([kind.keys[k] for k in ("width", "n_layers", "n_heads", "hidden")])
    sizes = {n: settings.whole(kind.keys[n], least=1) for n in ("width", "hidden")}
    n_layers = settings.whole(kind.keys["n_layers"], least=1, most=MAX_LAYERS)
    layer: dict[str, Any] = {
        "n_heads": settings.whole(kind.keys["n_heads"], least=1),
        "activation": settings.activation(kind.keys["activation"]),
        "epsilon": settings.number("layer_norm_eps", 1e-12),
    }
    places = _layer_places(kind, settings, n_layers)
    has_pooler = any(n.startswith(f"{prefix}{kind.names.get('pooler', 'pooler')}.") for n in weights)
    template = _template(kind, set(places), layer, sizes, has_pooler)
    tensors = fitting(template, weights, prefix, kind.names, settings)
    built = {place: KINDS["encoder_layer"].build(part(tensors, place), layer) for place in set(places)}
    layers = [_named(built[place], f"layers.{i}.attention") for i, place in enumerate(places)]
    return _program(kind, tensors, Encoder(tuple(layers)), layer["epsilon"], settings, has_pooler)


def _refuse(settings: Settings) -> None:
    settings.refuse("position_embedding_type", ["absolute"])
    settings.refuse("is_decoder", [False])
    settings.refuse("add_cross_attention", [False])


def _layer_places(kind: Text, settings: Settings, n_layers: int) -> list[str]:
    """Where the tensors of each layer stand, in the order layers run."""
    if not kind.is_shared:
        return [f"encoder.layers.{i}" for i in range(n_layers)]
    n_groups = settings.whole("num_hidden_groups", 1, least=1, most=n_layers)
    n_inner = settings.whole("inner_group_num", 1, least=1, most=MAX_LAYERS // n_layers)
    groups = [i * n_groups // n_layers for i in range(n_layers)]
    return [f"groups.{group}.{i}" for group in groups for i in range(n_inner)]


def _template(kind: Text, places: set[str], layer: dict, sizes: dict[str, int], has_pooler: bool) -> Template:
    narrow: str | int = "embedding" if kind.is_shared else sizes["width"]
    found: Template = {
        "words.weight": ("vocabulary", narrow),
        "positions.weight": ("positions", narrow),
        **under("embedding_norm", norm_template({}), width=narrow),
    }
    if kind.has_types:
        found["types.weight"] = ("types", narrow)
    if kind.is_shared:
        found |= under("widening", linear_template(sizes["width"], narrow))
    one = KINDS["encoder_layer"].template(layer)
    attention = {f"{n} features": sizes["width"] for n in ("query", "key", "value")} | {"joined heads": sizes["width"]}
    for place in sorted(places):
        found |= under(place, one, **sizes, **attention)
    return found | (under("pooler", linear_template(sizes["width"], sizes["width"])) if has_pooler else {})


def _named(layer, name: str):
    return replace(layer, attention=replace(layer.attention, name=name))


def _program(
    kind: Text, tensors: Tensors, encoder: Encoder, epsilon: float, settings: Settings, has_pooler: bool
) -> Program:
    b, axes = Builder(), ("batch", "length")
    has_types = kind.has_types and len(tensors["types.weight"]) > 1
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if has_types else [])]
    x = b.add("words.rows", "Gather", b.constant("words", tensors["words.weight"]), "input_ids")
    places = _places_beside_padding(b, settings) if kind.counts_from_padding else _places(b)
    x = b.add("words.placed", "Add", x, b.add("places.rows", "Gather", _places_table(b, kind, tensors), places))
    if has_types:
        types = b.add("types.rows", "Gather", b.constant("types", tensors["types.weight"]), "token_type_ids")
        x = b.add("words.typed", "Add", x, types)
    own = part(tensors, "embedding_norm")
    x = b.norm("embedding_norm", x, LayerNorm(own["weight"], own["bias"], epsilon))
    if kind.is_shared:
        x = b.linear("widening", x, linear(tensors, "widening"))
    padding = b.add("padding", "Equal", "attention_mask", b.constant("zero", np.int64(0)))
    hidden = b.add("last_hidden_state", "Identity", b.encoder(x, encoder, padding))
    width = encoder.layers[0].attention_norm.weight.shape[0]
    outputs = [Value(hidden, "float32", (*axes, width))]
    if has_pooler:
        outputs.append(Value(b.pooler(hidden, linear(tensors, "pooler")), "float32", ("batch", width)))
    return b.program(
        [Value(n, "int64", axes) for n in inputs], outputs, optional={"attention_mask": 1, "token_type_ids": 0}
    )


def _places_table(b: Builder, kind: Text, tensors: Tensors) -> str:
    """Position embeddings; a single type that all tokens have is added here, once."""
    table = tensors["positions.weight"]
    if kind.has_types and len(tensors["types.weight"]) == 1:
        table = table + tensors["types.weight"]
    return b.constant("positions", table)


def _places(b: Builder) -> str:
    """0, 1, ... length - 1."""
    length = b.add("length", "Gather", b.add("shape", "Shape", "input_ids"), b.constant("one", np.int64(1)))
    return b.add("places", "Range", b.constant("zero", np.int64(0)), length, "one")


def _places_beside_padding(b: Builder, settings: Settings) -> str:
    """RoBERTa's: the n-th token that is not padding has position padding_id + n, padding has padding_id."""
    padding_id = b.constant("padding_id", np.int64(settings.whole("pad_token_id", 1)))
    is_token = b.add("is_token", "Not", b.add("is_padding", "Equal", "input_ids", padding_id))
    ones = b.add("is_token.number", "Cast", is_token, to="int64")
    count = b.add("count", "CumSum", ones, b.constant("one", np.int64(1)))
    return b.add("places", "Add", b.add("count.tokens", "Mul", count, ones), padding_id)
