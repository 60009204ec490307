"""MultiHeadAttention and rotary embedding beside plain loops; masks, packing and methods."""

import numpy as np
import pytest

from pyclattn.errors import ArgumentError, DTypeError, ShapeError
from pyclattn.layers import Angles, Linear, MultiHeadAttention, Rotary, rotate
from pyclattn.layers.attention import FUSED
from tests.layers import naive
from tests.layers.weights import random

WIDTH, HEADS, DIM = 12, 4, 6


def parts(n_kv=HEADS, context=WIDTH, seed=0):
    """Linears of query, key, value and out."""
    shapes = {"query": (HEADS * DIM, WIDTH), "key": (n_kv * DIM, context), "value": (n_kv * DIM, context)}
    shapes["out"] = (WIDTH, HEADS * DIM)
    return {n: Linear(random(*s, seed=seed + i) / 2, random(s[0], seed=i)) for i, (n, s) in enumerate(shapes.items())}


def pairs(linears):
    return {n: (layer.weight, layer.bias) for n, layer in linears.items()}


def stacked(linears):
    """The fused projection of separate ones."""
    three = [linears[n] for n in ("query", "key", "value")]
    return Linear(np.concatenate([p.weight for p in three]), np.concatenate([p.bias for p in three]))


@pytest.mark.parametrize("n_kv", [1, 2, 4])
@pytest.mark.parametrize("is_cross", [False, True])
def test_separate_projections(n_kv, is_cross):
    linears = parts(n_kv, 9 if is_cross else WIDTH)
    layer = MultiHeadAttention(HEADS, n_kv_heads=n_kv, **linears)
    x = random(2, 11, WIDTH)
    context = random(2, 7, 9) if is_cross else None
    found = layer(x, context)
    for b in range(2):
        expected = naive.multi_head(x[b], x[b] if context is None else context[b], pairs(linears), HEADS, n_kv)
        np.testing.assert_allclose(found[b], expected, atol=1e-5)


@pytest.mark.parametrize("layout", FUSED)
def test_fused_layouts(layout):
    linears = parts()
    fused = stacked(linears)
    split = [a.reshape(3, HEADS, DIM, *a.shape[1:]) for a in (fused.weight, fused.bias)]  # part, head, feature
    order = {"stacked": (0, 1, 2), "per-head": (1, 0, 2), "interleaved": (1, 2, 0)}[layout]
    weight, bias = (a.transpose(*order, *range(3, a.ndim)).reshape(3 * HEADS * DIM, *a.shape[3:]) for a in split)
    layer = MultiHeadAttention.fused(Linear(weight, bias), HEADS, layout=layout, out=linears["out"])
    x = random(2, 11, WIDTH)
    np.testing.assert_array_equal(layer(x), MultiHeadAttention(HEADS, **linears)(x))
    np.testing.assert_array_equal(layer(x, x[:, :5]), MultiHeadAttention(HEADS, **linears)(x, x[:, :5]))


def test_heads_of_a_fused_projection_are_views_of_one_product():
    query, key, value = MultiHeadAttention(HEADS, qkv=stacked(parts())).heads(random(2, 11, WIDTH))
    assert query.shape == key.shape == value.shape == (2, HEADS, 11, DIM)
    assert query.base is not None
    assert query.base is key.base is value.base


def test_grouped_heads_of_a_fused_projection():
    linears = parts(2)
    layer = MultiHeadAttention(HEADS, n_kv_heads=2, qkv=stacked(linears), out=linears["out"])
    x = random(1, 8, WIDTH)
    np.testing.assert_allclose(layer(x)[0], naive.multi_head(x[0], x[0], pairs(linears), HEADS, 2), atol=1e-5)


def test_queries_and_keys_may_share_a_projection():
    linears = parts()
    del linears["key"]
    layer = MultiHeadAttention(HEADS, **linears)
    same = {**linears, "key": linears["query"]}
    x, context = random(1, 8, WIDTH), random(1, 5, WIDTH, seed=4)
    np.testing.assert_allclose(layer(x)[0], naive.multi_head(x[0], x[0], pairs(same), HEADS), atol=1e-5)
    np.testing.assert_allclose(layer(x, context)[0], naive.multi_head(x[0], context[0], pairs(same), HEADS), atol=1e-5)


def test_a_shared_projection_turns_once():
    linears = parts()
    del linears["key"]
    x, rotary = random(1, 8, WIDTH), Rotary.of(DIM)
    turns = np.arange(8)[:, None] * rotary.frequencies.astype(np.float64)
    expected = naive.multi_head(x[0], x[0], pairs({**linears, "key": linears["query"]}), HEADS, turns=turns)
    np.testing.assert_allclose(MultiHeadAttention(HEADS, rotary=rotary, **linears)(x)[0], expected, atol=1e-5)


def test_a_context_has_angles_and_offsets_of_its_own():
    linears = parts()
    layer, rotary = MultiHeadAttention(HEADS, **linears), Rotary.of(DIM, layout="interleaved")
    x, context = random(7, WIDTH), random(9, WIDTH, seed=1)
    angles = rotary.angles([3, 1, 4, 1, 5, 9, 2]), rotary.angles([2, 7, 1, 8, 2, 8, 1, 8, 2])
    packed = layer(x, context, offsets=[0, 4, 7], key_offsets=[0, 2, 9], angles=angles)
    for a, b in ((slice(0, 4), slice(0, 2)), (slice(4, 7), slice(2, 9))):
        own = tuple(Angles(each.cos[i], each.sin[i], "interleaved") for each, i in zip(angles, (a, b)))
        np.testing.assert_array_equal(layer(x[None, a], context[None, b], angles=own)[0], packed[a])
    # only differences of positions count
    later = rotary.angles([103, 101, 104, 101]), rotary.angles([102, 107])
    own = tuple(Angles(each.cos[i], each.sin[i], "interleaved") for each, i in zip(angles, (slice(4), slice(2))))
    np.testing.assert_allclose(
        layer(x[None, :4], context[None, :2], angles=later),
        layer(x[None, :4], context[None, :2], angles=own),
        atol=1e-4,
    )


@pytest.mark.parametrize("n_rotated", [2, 4, 6])
@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rotary(layout, n_rotated):
    linears, rotary = parts(), Rotary.of(n_rotated, layout=layout)
    x, at = random(2, 9, WIDTH), np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8], [5, 3, 90, 4, 1, 0, 2, 7, 7]])
    turns = at[..., None] * 10000.0 ** (-np.arange(0, n_rotated, 2) / n_rotated)

    layer = MultiHeadAttention(HEADS, rotary=rotary, **linears)
    found = layer(x, positions=at)
    for b in range(2):
        expected = naive.multi_head(x[b], x[b], pairs(linears), HEADS, turns=turns[b], layout=layout)
        np.testing.assert_allclose(found[b], expected, atol=1e-5)
    cos, sin = np.cos(turns), np.sin(turns)
    twice = np.repeat(cos, 2, -1), np.repeat(sin, 2, -1)
    if layout == "half":
        twice = np.concatenate([cos, cos], -1), np.concatenate([sin, sin], -1)
    for angles in (Angles(cos, sin, layout), Angles.of_twice(*twice, layout)):
        np.testing.assert_allclose(MultiHeadAttention(HEADS, **linears)(x, angles=angles), found, atol=1e-6)
    np.testing.assert_array_equal(layer(x)[0], found[0])  # 0, 1, 2 ... by default


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rotation_keeps_lengths_and_only_differences_count(layout):
    rotary = Rotary.of(8, layout=layout)
    q, k = random(1, 2, 300, 8), random(1, 2, 300, 8, seed=1)
    scores = []
    for shift in (0, 1000):
        angles = rotary.angles(np.arange(300) + shift)
        a, b = rotate(q.copy(), angles, 2), rotate(k.copy(), angles)
        np.testing.assert_allclose(np.linalg.norm(a, axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-5)
        scores.append(a @ b.swapaxes(-1, -2))
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)


def test_rotary_of_coordinates():
    rotary = Rotary(random(3, 2), "interleaved")
    places = random(4, 2, seed=3)
    angles = rotary.angles(places)
    np.testing.assert_allclose(angles.cos, np.cos(naive.linear(places, rotary.frequencies)), atol=1e-6)


def test_far_positions_turn_right():
    angle = 30001 * np.float64(np.float32(10000 ** (-2 / 64)))
    np.testing.assert_allclose(Rotary.of(64).angles([30001]).sin[0, 1], np.sin(angle), atol=1e-6)


ATTENTIONS = [
    "exact",
    {"method": "improved-clustered", "n_clusters": 5, "topk": 4},
    {"method": "clustered", "n_clusters": 5},
]


@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
def test_padding_is_never_seen_and_packed_is_the_same(attention):
    layer = MultiHeadAttention(HEADS, rotary=Rotary.of(DIM), **parts())
    lengths = [20, 13, 1]
    padding = np.arange(20) >= np.array(lengths)[:, None]
    x = random(3, 20, WIDTH)
    found = layer(x, key_padding_mask=padding, attention=attention)
    other = np.where(padding[..., None], np.float32(1e30), x)
    np.testing.assert_array_equal(
        layer(other, key_padding_mask=padding, attention=attention)[~padding], found[~padding]
    )
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    np.testing.assert_array_equal(layer(x[~padding], offsets=offsets, attention=attention), found[~padding])
    for b, n in enumerate(lengths):
        np.testing.assert_array_equal(layer(x[b : b + 1, :n], attention=attention)[0], found[b, :n])


def test_masks():
    linears = parts()
    layer, x = MultiHeadAttention(HEADS, **linears), random(1, 10, WIDTH)
    causal = np.tril(np.ones((10, 10), bool))
    for options in ({"is_causal": True}, {"attn_mask": causal}):
        for attention in ATTENTIONS[:1] + ATTENTIONS[2:]:  # what clustering cannot mask runs exactly
            expected = naive.multi_head(x[0], x[0], pairs(linears), HEADS, allowed=causal)
            np.testing.assert_allclose(layer(x, attention=attention, **options)[0], expected, atol=1e-5)


def test_scale_and_the_result_without_projection():
    linears = parts()
    del linears["out"]
    x = random(1, 6, WIDTH)
    found = MultiHeadAttention(HEADS, scale=0.7, **linears)(x)
    assert found.shape == (1, 6, HEADS * DIM)
    np.testing.assert_allclose(found[0], naive.multi_head(x[0], x[0], pairs(linears), HEADS, scale=0.7), atol=1e-5)
    np.testing.assert_array_equal(MultiHeadAttention(HEADS, scale=0.7, **linears)(x, add=found), found + found)


def test_attention_is_chosen_by_layer_by_name_or_by_call():
    linears, x = parts(), random(1, 40, WIDTH)
    method = {"method": "clustered", "n_clusters": 3}
    exact = MultiHeadAttention(HEADS, name="here", **linears)
    clustered = MultiHeadAttention(HEADS, attention=method, **linears)(x)
    assert not np.allclose(exact(x), clustered)
    np.testing.assert_array_equal(exact(x, attention=method), clustered)
    np.testing.assert_array_equal(exact(x, attention={"here": method}), clustered)
    np.testing.assert_array_equal(exact(x, attention={"elsewhere": method}), exact(x))


def test_order_of_tokens_does_not_matter_without_positions():
    layer, x = MultiHeadAttention(HEADS, **parts()), random(1, 30, WIDTH)
    order = np.random.default_rng(0).permutation(30)
    np.testing.assert_allclose(layer(x[:, order]), layer(x)[:, order], atol=1e-5)


def test_the_number_of_threads_changes_no_bit():
    layer, x = MultiHeadAttention(HEADS, rotary=Rotary.of(DIM), **parts()), random(2, 2000, WIDTH)
    np.testing.assert_array_equal(layer(x, n_threads=1), layer(x, n_threads=3))


P = parts()
LAYER = MultiHeadAttention(HEADS, **P)
X = np.ones((1, 3, WIDTH), np.float32)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: MultiHeadAttention(HEADS), ArgumentError, ("qkv", "query and value")),
        (lambda: MultiHeadAttention(HEADS, qkv=P["query"], query=P["query"]), ArgumentError, ("both",)),
        (lambda: MultiHeadAttention(5, qkv=stacked(P)), ShapeError, ("qkv", "72", "15")),
        (lambda: MultiHeadAttention(HEADS, n_kv_heads=3, **P), ArgumentError, ("4", "3")),
        (lambda: MultiHeadAttention(HEADS, n_kv_heads=2, **P), ShapeError, ("4 heads", "2 heads")),
        (lambda: MultiHeadAttention(HEADS, **{**P, "out": P["query"]}), ShapeError, ("24", "12")),
        (lambda: MultiHeadAttention(HEADS, attention="fast", **P), ArgumentError, ("fast", "clustered")),
        (lambda: MultiHeadAttention.fused(stacked(P), HEADS, layout="mixed"), ArgumentError, ("mixed", "per-head")),
        (lambda: MultiHeadAttention.fused(stacked(P), 5, layout="per-head"), ShapeError, ("72", "5")),
        (lambda: LAYER(X[0]), ShapeError, ("(batch, length, 12)", "(3, 12)")),
        (lambda: LAYER(X, offsets=[0, 3]), ShapeError, ("(tokens, 12)", "(1, 3, 12)")),
        (lambda: LAYER(X[0], offsets=[0, 2]), ArgumentError, ("offsets", "3")),
        (lambda: LAYER(X, X[..., :5]), ShapeError, ("context", "(1, 3, 5)")),
        (lambda: LAYER(X, positions=[0, 1, 2]), ArgumentError, ("rotary",)),
        (lambda: LAYER(X, angles=Rotary.of(DIM).angles(4)), ShapeError, ("3", "(4, 3)")),
        (lambda: LAYER(X, angles=Rotary.of(8).angles(3)), ShapeError, ("6", "4")),
        (lambda: LAYER(X, attention={"method": "clustered", "topk": 3}), ArgumentError, ("topk",)),
        (lambda: MultiHeadAttention(HEADS, rotary=Rotary.of(DIM), **P)(X, X), ArgumentError, ("angles",)),
        (lambda: LAYER(X, angles=(X, X)), DTypeError, ("Angles", "ndarray")),
        (lambda: LAYER(X[0], offsets=[0, 3], key_padding_mask=np.zeros((1, 3), bool)), ShapeError, ("offsets",)),
        (lambda: Rotary.of(3), ArgumentError, ("even", "3")),
        (lambda: Rotary(X), ShapeError, ("frequencies", "(1, 3, 12)")),
        (lambda: Rotary(P["query"].weight).angles(3), ShapeError, ("12", "(3,)")),
        (lambda: Rotary.of(4, layout="whole"), ArgumentError, ("whole", "interleaved")),
        (lambda: Angles(X, X[0]), ShapeError, ("cos and sin", "(3, 12)")),
        (lambda: Angles.of_twice(X[..., :3], X[..., :3]), ShapeError, ("even", "(1, 3, 3)")),
        (lambda: LAYER(X, key_padding_mask=np.zeros((1, 4), bool)), ShapeError, ("key_padding_mask", "(1, 3)")),
    ],
)  # fmt: skip
def test_errors_say_what_was_given(call, kind, words):
    with pytest.raises(kind) as found:
        call()
    assert all(word in str(found.value) for word in words), found.value
