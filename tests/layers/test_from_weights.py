"""Renaming rules, settings, and the one error for all that is wrong."""

import numpy as np
import pytest

from pyclattn.errors import ArgumentError, ModelFormatError
from pyclattn.layers import Embedding, LayerNorm, Linear, MultiHeadAttention, RMSNorm, from_weights
from pyclattn.layers.weights import renamed
from tests.layers.weights import encoder, encoder_layer, linear, random

TORCH = {
    "layers.{}.attention.qkv.weight": "blocks.{}.self_attn.in_proj_weight",
    "layers.{}.attention.qkv.bias": "blocks.{}.self_attn.in_proj_bias",
    "layers.{}.attention.out": "blocks.{}.self_attn.out_proj",
    "layers.{}.attention_norm": "blocks.{}.norm1",
    "layers.{}.feed_forward": "blocks.{}.mlp",
    "layers.{}.feed_forward_norm": "blocks.{}.norm2",
}


def torch_like(tensors, prefix):
    """The encoder's tensors as torch.nn.TransformerEncoder would name and fuse them."""
    found = {}
    for i in range(2):
        at = f"layers.{i}.attention"
        for kind in ("weight", "bias"):
            parts = [tensors[f"{at}.{n}.{kind}"] for n in ("query", "key", "value")]
            found[f"{prefix}.blocks.{i}.self_attn.in_proj_{kind}"] = np.concatenate(parts)
    for name, array in tensors.items():
        if not any(f".attention.{n}." in name for n in ("query", "key", "value")):
            found[f"{prefix}.{renamed(name, TORCH)}"] = array
    return found


def test_an_encoder_under_other_names():
    tensors, x = encoder(), random(1, 6, 16)
    given = torch_like(tensors, "model.encoder") | {"model.head.weight": random(3, 16)}
    layers = from_weights("encoder", given, "model.encoder", TORCH, n_layers=2, n_heads=2, fused="stacked")
    np.testing.assert_array_equal(layers(x), from_weights("encoder", tensors, n_layers=2, n_heads=2)(x))


def test_the_longest_rule_counts():
    rules = {"a": "x", "a.b": "y", "a.{}.c": "z{}", "a.1.c": "one", "gone": None, "flat": ""}
    names = {
        "a.w": "x.w",
        "a.b.w": "y.w",
        "a.3.c.w": "z3.w",
        "a.1.c.w": "one.w",
        "gone.w": None,
        "flat.w": "w",
        "o": "o",
    }
    assert {name: renamed(name, rules) for name in names} == names


def test_every_kind():
    w = linear("l", 4, 3) | {"n.weight": random(4), "n.bias": random(4), "e.weight": random(5, 2)}
    assert isinstance(from_weights("linear", w, "l"), Linear)
    assert from_weights("linear", w, "l", {"bias": None}, ignore=["bias"]).bias is None
    found = from_weights("layer_norm", w, "n", epsilon=1e-3)
    assert isinstance(found, LayerNorm)
    assert found.epsilon == 1e-3
    assert isinstance(from_weights("rms_norm", w, "n", ignore=["b*"]), RMSNorm)
    assert isinstance(from_weights("embedding", w, "e"), Embedding)
    layer = encoder_layer()
    attention = from_weights("attention", layer, "attention", n_heads=4, scale=0.5, name="here")
    assert isinstance(attention, MultiHeadAttention)
    assert (attention.head_dim, attention.scale, attention.name) == (4, 0.5, "here")
    assert from_weights("feed_forward", layer, "feed_forward", activation="relu").activation == "relu"
    assert from_weights("encoder_layer", layer, n_heads=4, is_pre_norm=True).is_pre_norm
    gated = {**layer, **linear("feed_forward.gate", 24, 16)}
    assert from_weights("feed_forward", gated, "feed_forward", is_gated=True).gate is not None
    shared = {n: a for n, a in layer.items() if ".key." not in n}
    assert from_weights("attention", shared, "attention", n_heads=4, shares_query=True).key is None


def test_weights_are_not_copied():
    tensors = encoder()
    layers = from_weights("encoder", tensors, n_layers=2, n_heads=2)
    assert layers.layers[1].feed_forward.up.weight is tensors["layers.1.feed_forward.up.weight"]


def test_all_problems_in_one_error():
    tensors = torch_like(encoder(), "m")
    del tensors["m.blocks.0.norm1.bias"], tensors["m.blocks.1.mlp.up.weight"]
    tensors["m.blocks.1.mlp.down.weight"] = random(16, 25)
    tensors["m.blocks.0.self_attn.out_proj.bias"] = random(1, 16)
    tensors |= {"m.blocks.2.norm1.bias": random(16), "m.extra": random(2), "m.known": random(1)}
    with pytest.raises(ModelFormatError) as found:
        from_weights("encoder", tensors, "m", TORCH, ignore=["known"], n_layers=2, n_heads=2, fused="stacked")
    lines = str(found.value).splitlines()
    assert lines[0] == "the tensors are not those of encoder at 'm':"
    assert sorted(line.strip() for line in lines[1:]) == [
        "missing: m.blocks.0.norm1.bias (width)",
        "missing: m.blocks.1.mlp.up.weight (hidden, width)",
        "unexpected: m.blocks.2.norm1.bias (16,)",
        "unexpected: m.extra (2,)",
        "wrong shape: m.blocks.0.self_attn.out_proj.bias must be (width) = (16), got (1, 16)",
        "wrong shape: m.blocks.1.mlp.down.weight must be (width, hidden) = (16, 24), got (16, 25)",
    ]


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("transformer", {}, ("transformer", "encoder_layer")),
        ("encoder", {"n_layers": 2}, ("needs n_heads",)),
        ("attention", {"n_heads": 2, "heads": 2}, ("does not know heads", "n_kv_heads")),
        ("attention", {"n_heads": 0}, ("n_heads", "0")),
        ("attention", {"n_heads": "2"}, ("n_heads", "'2'")),
        ("attention", {"n_heads": 2, "fused": "mixed"}, ("mixed", "per-head")),
        ("encoder", {"n_layers": 2, "n_heads": 2, "norm": "batch"}, ("batch", "rms")),
        ("encoder", {"n_layers": 2, "n_heads": 3}, ("query", "16", "3")),
        ("encoder", {"n_layers": 2, "n_heads": 2, "activation": "gelo"}, ("gelo", "gelu_tanh")),
    ],
)
def test_settings_that_cannot_be(kind, settings, words):
    prefix = "layers.0.attention" if kind == "attention" else ""
    with pytest.raises(ArgumentError) as found:
        from_weights(kind, encoder(), prefix, **settings)
    assert all(word in str(found.value) for word in words), found.value
