"""CASTAttention beside plain loops; packing, masks, weights by name; as an operator of a graph."""

from dataclasses import replace

import numpy as np
import pytest

from pyclattn.errors import ArgumentError, DTypeError, ModelFormatError, ShapeError
from pyclattn.functional import _scratch, cast
from pyclattn.layers import CASTAttention, Linear, from_weights
from tests import compare, naive_cast
from tests.graph.build import run
from tests.layers import naive
from tests.layers.weights import linear, random

WIDTH, HEADS, CLUSTERS = 12, 3, 5
PROJECTIONS = ("query_proj", "key_proj", "value_proj", "out_proj")


def tensors(seed=0):
    """A state dict of the layer."""
    found = {"surrogate_tokens": random(CLUSTERS, HEADS, WIDTH // HEADS, seed=seed, scale=2.0)}
    for i, name in enumerate(PROJECTIONS):
        found |= linear(name, WIDTH, WIDTH, seed=seed + 10 * i)
    return found | linear("gate", 1, WIDTH, seed=seed + 50)


def expected(weights, x, members, **options):
    """The whole layer in float64."""
    query, key, value = (
        naive.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
        .reshape(*x.shape[:2], HEADS, WIDTH // HEADS)
        .swapaxes(1, 2)
        for name in PROJECTIONS[:3]
    )
    gate = naive.linear(x, weights["gate.weight"], weights["gate.bias"])[..., 0]
    out, chosen, margin = naive_cast.cast_attention(
        query, key, value, weights["surrogate_tokens"], gate, members=members, **options
    )
    joined = out.swapaxes(1, 2).reshape(x.shape)
    return naive.linear(joined, weights["out_proj.weight"], weights["out_proj.bias"]), chosen, margin


@pytest.mark.parametrize("clustering", cast.CLUSTERINGS)
@pytest.mark.parametrize("attention", cast.ATTENTIONS)
@pytest.mark.parametrize("gate_temperature", [True, False])
def test_beside_loops(clustering, attention, gate_temperature):
    weights, x = tensors(), random(2, 23, WIDTH)
    padding = np.arange(23) >= np.array([[23], [9]])
    how = {"cluster_size": 6, "clustering": clustering, "attention": attention, "gate_temperature": gate_temperature}
    layer = from_weights("cast_attention", weights, **how)
    found = layer.memberships(x, key_padding_mask=padding)
    members = [[np.flatnonzero(own[:, c]).tolist() for c in range(CLUSTERS)] for own in found]
    want, _, _ = expected(weights, x, members, key_padding=padding, **how)
    compare.assert_close(layer(x, key_padding_mask=padding), want, 1e-5)
    _, chosen, margin = expected(weights, x, None, key_padding=padding, **how)
    assert chosen == members or margin < 1e-5


@pytest.mark.parametrize("clustering", cast.CLUSTERINGS)
def test_working_memory_leaves_no_trace(monkeypatch, clustering):
    """Whatever was left in the arrays that are kept, and a result is not the next one's memory."""
    layer = from_weights("cast_attention", tensors(), cluster_size=6, clustering=clustering)
    x, padding = random(2, 23, WIDTH), np.arange(23) >= np.array([[20], [9]])
    monkeypatch.setattr(_scratch, "_free", [])
    for one in (layer, replace(layer, out_proj=None)):
        want = one(x, key_padding_mask=padding)
        monkeypatch.setattr(_scratch, "LEAST", 1)
        got = one(x, key_padding_mask=padding)
        assert _scratch._free
        for memory in _scratch._free:
            memory[...] = np.nan
        again = one(x, key_padding_mask=padding)
        compare.assert_same_bits(got, want)
        compare.assert_same_bits(again, want)


def test_packed_and_added():
    """Packed tokens give the bits of sequences alone; a residual is added last."""
    layer = from_weights("cast_attention", tensors(), cluster_size=4)
    x = random(30, WIDTH)
    packed = layer(x, offsets=[0, 12, 30])
    alone = np.concatenate([layer(x[None, :12])[0], layer(x[None, 12:])[0]])
    compare.assert_same_bits(packed, alone)
    compare.assert_same_bits(layer(x, offsets=[0, 12, 30], add=x), packed + x)
    bare = CASTAttention(layer.query_proj, layer.key_proj, layer.value_proj, layer.surrogate_tokens, layer.gate)
    joined = bare(x[None], add=x[None])
    np.testing.assert_array_equal(joined, bare(x[None]) + x)
    assert layer.memberships(x, offsets=[0, 12, 30]).shape == (30, CLUSTERS)


def test_all_that_is_wrong_with_a_state_dict_is_said_at_once():
    weights = tensors()
    del weights["key_proj.bias"]
    weights["gate.weight"] = np.ones((2, WIDTH), np.float32)
    weights["norm.weight"] = np.ones(3, np.float32)
    with pytest.raises(ModelFormatError) as raised:
        from_weights("cast_attention", weights, cluster_size=4)
    for words in ("missing: key_proj.bias", "unexpected: norm.weight", "gate.weight must be (1, width) = (1, 12)"):
        assert words in str(raised.value)
    with pytest.raises(ArgumentError, match="cast_attention needs cluster_size"):
        from_weights("cast_attention", tensors())


WIDE, NARROW = Linear(random(WIDTH, WIDTH)), Linear(random(WIDTH - 1, WIDTH))
GOOD = {
    "query_proj": WIDE, "key_proj": WIDE, "value_proj": WIDE, "out_proj": WIDE, "gate": Linear(random(1, WIDTH)),
    "surrogate_tokens": random(CLUSTERS, HEADS, 4), "cluster_size": 4,
}  # fmt: skip
BAD = {
    "query": ({"query_proj": NARROW}, ShapeError, "query_proj.*11.*3 heads of 4"),
    "value": ({"value_proj": NARROW}, ShapeError, "value_proj.*11.*3 equal heads"),
    "out": ({"out_proj": Linear(random(WIDTH, 9))}, ShapeError, "out_proj.*12.*got 9"),
    "gate": ({"gate": WIDE}, ShapeError, "gate.*1 feature, got 12"),
    "widths": ({"gate": Linear(random(1, 7))}, ShapeError, r"same features, got \[12, 12, 12, 7\]"),
    "surrogates": ({"surrogate_tokens": random(CLUSTERS, 12)}, ShapeError, r"surrogate_tokens.*\(5, 12\)"),
    "no surrogates": ({"surrogate_tokens": random(0, HEADS, 4)}, ShapeError, r"surrogate_tokens.*\(0, 3, 4\)"),
    "size": ({"cluster_size": 0}, ArgumentError, "cluster_size.*got 0"),
    "clustering": ({"clustering": "lsh"}, ArgumentError, "clustering.*'lsh'"),
    "temperature": ({"gate_temperature": 1}, DTypeError, "gate_temperature.*got 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_layers(name):
    bad, error, words = BAD[name]
    with pytest.raises(error, match=words):
        CASTAttention(**{**GOOD, **bad})


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("with_mask", [False, True])
def test_in_a_graph(dtype, with_mask):
    """The operator is the function; an attribute that is left out has the function's default."""
    arrays = [random(2, HEADS, 20, 4, seed=i).astype(dtype) for i in range(3)]
    arrays += [random(CLUSTERS, HEADS, 4), random(2, 20).astype(dtype)]
    padding = {"key_padding_mask": np.arange(20) >= np.array([[20], [9]])} if with_mask else {}
    for more in ({}, {"clustering": "sa_topk", "attention": "laplace", "gate_temperature": 0, "scale": 0.3}):
        got = run("pyclattn:cast_attention", [*arrays, *padding.values()], {"cluster_size": 6, **more}, n_threads=2)
        options = {n: bool(v) if n == "gate_temperature" else v for n, v in more.items()}
        want = cast.cast_attention(*arrays, cluster_size=6, **options, **padding)
        assert got.dtype == dtype
        compare.assert_same_bits(got, want.astype(dtype))


def test_an_operator_of_the_wrong_rank():
    with pytest.raises(ShapeError, match="gate must have rank 2"):
        run("pyclattn:cast_attention", [*[random(1, 2, 5, 4)] * 3, random(3, 2, 4), random(5)], {"cluster_size": 2})


def test_a_layer_without_its_last_projection():
    """What names leave out is not asked for, where the layer can do without it."""
    state, x = tensors(), random(2, 20, WIDTH)
    kept = {name: array for name, array in state.items() if not name.startswith("out_proj")}
    whole, bare = (
        from_weights("cast_attention", own, names=names, cluster_size=8)
        for own, names in ((state, None), (kept, {"out_proj": None}))
    )
    assert bare.out_proj is None
    compare.assert_same_bits(whole.out_proj(bare(x)), whole(x))
    for name in ("query_proj", "surrogate_tokens", "gate.weight"):
        fewer = {n: array for n, array in state.items() if not n.startswith(name)}
        with pytest.raises(ArgumentError, match=f"names must not be None for {name}"):
            from_weights("cast_attention", fewer, names={name: None}, cluster_size=8)
