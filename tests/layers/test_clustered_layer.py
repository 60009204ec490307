"""Clustered attention as a layer, encoders around any attention, and encoders by fast-transformers' names."""

import numpy as np
import pytest

from pyclattn.errors import ArgumentError, ModelFormatError
from pyclattn.layers import (
    CASTAttention,
    ClusteredAttention,
    Encoder,
    EncoderLayer,
    FeedForward,
    LayerNorm,
    Linear,
    MultiHeadAttention,
    fast_transformers_encoder,
    from_weights,
)
from pyclattn.layers.fast_transformers import NAMES
from pyclattn.layers.weights import renamed
from tests.layers.weights import encoder, encoder_layer, random

X, PADDING = random(2, 40, 16), np.arange(40) >= np.array([[40], [25]])
HOW = {"n_clusters": 6, "n_bits": 20, "n_iterations": 4, "clustering": "kmeans", "seed": 3}


@pytest.mark.parametrize("more", [{}, {"topk": 5}], ids=["clustered", "improved"])
def test_it_is_multi_head_attention_with_that_method(more):
    weights = encoder_layer()
    layer = from_weights("clustered_attention", weights, "attention", n_heads=4, **HOW, **more)
    assert isinstance(layer, ClusteredAttention)
    method = {"method": "improved-clustered" if more else "clustered", **HOW, **more}
    same = from_weights("attention", weights, "attention", n_heads=4, attention=method)
    got = layer(X, key_padding_mask=PADDING)
    np.testing.assert_array_equal(got, same(X, key_padding_mask=PADDING))
    exact = layer(X, key_padding_mask=PADDING, attention="exact")
    assert not np.array_equal(got, exact)
    np.testing.assert_array_equal(exact, same(X, key_padding_mask=PADDING, attention="exact"))
    packed = layer(X[~PADDING], offsets=[0, 40, 65])
    np.testing.assert_array_equal(packed, got[~PADDING])


@pytest.mark.parametrize(
    "wrong", [{"n_clusters": 0}, {"n_clusters": 4, "topk": 0}, {"n_clusters": 4, "clustering": "?"}]
)
def test_settings_are_checked(wrong):
    layer = from_weights("attention", encoder_layer(), "attention", n_heads=4)
    projections = {name: getattr(layer, name) for name in ("query", "key", "value", "out")}
    with pytest.raises(ArgumentError, match=next(reversed(wrong))):
        ClusteredAttention(4, **projections, **wrong)(X)


def mixed_encoder():
    """CAST below, clustered above."""
    eye = [Linear(random(16, 16, seed=i) / 4) for i in range(8)]
    cast = CASTAttention(*eye[:3], random(5, 4, 4), Linear(random(1, 16)), eye[3], cluster_size=9)
    clustered = ClusteredAttention(4, eye[4], None, *eye[5:], n_clusters=6, topk=4, name="upper")
    feed_forward = FeedForward(Linear(random(24, 16) / 4), Linear(random(16, 24) / 4))
    norm = LayerNorm(np.ones(16))
    return Encoder([EncoderLayer(attention, feed_forward, norm, norm) for attention in (cast, clustered)])


def test_an_encoder_of_two_kinds():
    layers = mixed_encoder()
    assert layers.attentions == ["upper"]
    out = layers(X, key_padding_mask=PADDING)
    lower, upper = layers.layers
    np.testing.assert_array_equal(out, upper(lower(X, key_padding_mask=PADDING), key_padding_mask=PADDING))
    exact = layers(X, key_padding_mask=PADDING, attention={"upper": "exact"})
    assert not np.array_equal(out, exact)
    with pytest.raises(ArgumentError, match="lower"):
        layers(X, attention={"lower": "exact"})


def test_an_encoder_by_its_kind_of_attention():
    weights = encoder()
    for kind, more, layer in (
        ("attention", {}, MultiHeadAttention),
        ("clustered_attention", {"n_clusters": 6, "topk": 3}, ClusteredAttention),
    ):
        found = from_weights("encoder", weights, n_layers=2, n_heads=4, attention_kind=kind, **more)
        assert [type(each.attention) for each in found.layers] == [layer] * 2
        assert found.attentions == ["layers.0.attention", "layers.1.attention"]
    with pytest.raises(ArgumentError, match="attention_kind must be one of"):
        from_weights("encoder", weights, n_layers=2, n_heads=4, attention_kind="centroid_attention")


def test_heads_that_are_not_those_of_the_surrogate_tokens():
    weights = {name: array for name, array in encoder_layer().items() if not name.startswith("attention.")}
    for name, shape in {"surrogate_tokens": (5, 4, 4), "gate.weight": (1, 16), "gate.bias": (1,)}.items():
        weights[f"attention.{name}"] = random(*shape)
    for name in ("query_proj", "key_proj", "value_proj", "out_proj"):
        weights |= {f"attention.{name}.weight": random(16, 16), f"attention.{name}.bias": random(16)}
    how = {"attention_kind": "cast_attention", "cluster_size": 9}
    assert from_weights("encoder_layer", weights, n_heads=4, **how).attention.n_heads == 4
    with pytest.raises(ArgumentError, match="n_heads must be 4 as in the file, got 2"):
        from_weights("encoder_layer", weights, n_heads=2, **how)


def theirs(prefix=""):
    """An encoder's tensors by fast-transformers' names."""
    return {prefix + renamed(name, NAMES): array for name, array in encoder().items()}


@pytest.mark.parametrize("attention_type", ["full", "clustered", "improved-clustered"])
def test_fast_transformers(attention_type):
    state = theirs("net.") | {"head.weight": random(3, 16)}
    assert "net.layers.0.attention.query_projection.weight" in state
    assert "net.layers.1.norm2.bias" in state
    layers = fast_transformers_encoder(
        state, "net", n_heads=4, attention_type=attention_type, clusters=6, topk=5, bits=20, iterations=4, seed=3
    )
    method = {"n_clusters": 6, "n_bits": 20, "n_iterations": 4, "seed": 3, "clustering": "lsh"}
    method = {
        "full": "exact", "clustered": {"method": "clustered", **method},
        "improved-clustered": {"method": "improved-clustered", "topk": 5, **method},
    }[attention_type]  # fmt: skip
    same = from_weights("encoder", encoder(), n_layers=2, n_heads=4, activation="relu", attention=method)
    np.testing.assert_array_equal(layers(X, key_padding_mask=PADDING), same(X, key_padding_mask=PADDING))
    last = fast_transformers_encoder(
        state | {"net.norm.weight": np.ones(16), "net.norm.bias": np.ones(16)}, "net", n_heads=4
    )
    np.testing.assert_allclose(last(X).mean(-1), 1, atol=1e-5)


def test_fast_transformers_that_do_not_fit():
    state = theirs()
    del state["layers.1.norm1.bias"]
    state |= {"layers.0.linear2.weight": random(3, 3), "extra": random(1)}
    with pytest.raises(ModelFormatError) as error:
        fast_transformers_encoder(state, n_heads=4)
    for what in ("missing: layers.1.norm1.bias", "unexpected: extra", "wrong shape: layers.0.linear2.weight"):
        assert what in str(error.value)
    for state, more, message in (
        ({"a": random(1)}, {}, r"layers\.0"),
        (theirs(), {"attention_type": "linear"}, "attention_type must be one of"),
        (theirs(), {"activation": "silu"}, "activation must be"),
    ):
        with pytest.raises(ArgumentError, match=message):
            fast_transformers_encoder(state, n_heads=4, **more)
