"""EncoderLayer and Encoder beside plain loops."""

import numpy as np
import pytest

from pyclattn.errors import ArgumentError
from pyclattn.layers import Encoder, LayerNorm, from_weights
from tests.layers import naive
from tests.layers.weights import encoder, norm, random

SETTINGS = {"n_layers": 2, "n_heads": 2, "epsilon": 1e-3}


def expected(tensors, x, n, is_pre_norm=False, activation="gelu", has_norm=False):
    """The layers one after the other on the first ``n`` tokens of one sequence."""
    y = x[:n].astype(np.float64)
    for i in range(2):
        own = {name.removeprefix(f"layers.{i}."): a for name, a in tensors.items() if name.startswith(f"layers.{i}.")}
        y = naive.encoder_layer(y, own, 2, activation, 1e-3, is_pre_norm)
    return naive.layer_norm(y, tensors["norm.weight"], tensors["norm.bias"], 1e-3) if has_norm else y


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("is_pre_norm", [False, True])
def test_padded_and_packed_batches(is_pre_norm, activation):
    tensors = encoder() | (norm("norm", 16) if is_pre_norm else {})
    how = {"is_pre_norm": is_pre_norm, "activation": activation, "has_norm": is_pre_norm}
    layers = from_weights("encoder", tensors, **SETTINGS, **how)
    x, lengths = random(3, 9, 16), [9, 4, 1]
    padding = np.arange(9) >= np.array(lengths)[:, None]
    found = layers(x, key_padding_mask=padding)
    for b, n in enumerate(lengths):
        np.testing.assert_allclose(found[b, :n], expected(tensors, x[b], n, **how), atol=2e-5)
    packed = layers(x[~padding], offsets=np.concatenate([[0], np.cumsum(lengths)]))
    np.testing.assert_array_equal(packed, found[~padding])


def test_attention_is_chosen_by_name():
    layers, x = from_weights("encoder", encoder(), **SETTINGS), random(1, 40, 16)
    assert layers.attentions == ["layers.0.attention", "layers.1.attention"]
    method = {"method": "clustered", "n_clusters": 3}
    one, all_, none = (layers(x, attention=a) for a in ({"layers.1.attention": method}, method, "exact"))
    assert not np.allclose(one, none)
    assert not np.allclose(one, all_)
    first = Encoder(layers.layers[:1])(x)
    np.testing.assert_array_equal(layers.layers[1](first, attention=method), one)
    with pytest.raises(ArgumentError, match=r"layers.2.attention.*layers.0.attention"):
        layers(x, attention={"layers.2.attention": "exact"})


def test_layers_may_share_weights():
    layer = from_weights("encoder", encoder(), **SETTINGS).layers[0]
    x = random(1, 5, 16)
    np.testing.assert_array_equal(Encoder((layer, layer))(x), layer(layer(x)))
    np.testing.assert_array_equal(Encoder([], LayerNorm(np.ones(16)))(x), LayerNorm(np.ones(16))(x))


def test_the_number_of_threads_changes_no_bit():
    layers, x = from_weights("encoder", encoder(), **SETTINGS), random(2, 1500, 16)
    np.testing.assert_array_equal(layers(x, n_threads=1), layers(x, n_threads=3))
