"""CentroidAttention against its definition, written with the loops; its starts; what it refuses; its weights."""

import numpy as np
import pytest

import pyclattn
from pyclattn.errors import ArgumentError, DTypeError, ModelFormatError, ShapeError
from pyclattn.layers import CentroidAttention, Centroids, Linear, from_weights
from tests import compare, naive_centroid
from tests.layers import naive

WIDTH, HEADS, N, M = 8, 2, 20, 5
PROJECTIONS = ("query_proj", "key_proj", "value_proj", "out_proj")


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    found = {}
    for name in PROJECTIONS:
        found[f"{name}.weight"] = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 3
        found[f"{name}.bias"] = rng.standard_normal(WIDTH).astype(np.float32) / 3
    return found


@pytest.fixture
def tokens():
    return np.random.default_rng(1).standard_normal((2, N, WIDTH)).astype(np.float32)


@pytest.fixture
def coordinates():
    return np.random.default_rng(2).standard_normal((2, N, 3)).astype(np.float32)


MASK = np.arange(N)[None] >= np.array([[N], [3]])  # the second sequence has fewer tokens than centroids


def made(weights, **settings):
    return from_weights("centroid_attention", weights, n_heads=HEADS, n_centroids=M, **settings)


def definition(weights, x, start, *, n_steps=1, eps=1.0, padding=None, **options):
    """The formula of a step, in float64."""

    def project(name, rows):
        return naive.linear(rows, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def heads(rows):
        return rows.reshape(*rows.shape[:2], HEADS, -1).swapaxes(1, 2)

    u, absent = np.asarray(start.tokens, np.float64), start.padding_mask
    key, value = heads(project("key_proj", x)), heads(project("value_proj", x))
    for _ in range(n_steps):
        gathered = naive_centroid.centroid_attention(
            heads(project("query_proj", u)), key, value, neighbors=start.neighbors, key_padding=padding,
            centroid_padding=absent, **options,
        )  # fmt: skip
        u = u + eps * project("out_proj", gathered.swapaxes(1, 2).reshape(*u.shape))
    return u if absent is None else np.where(absent[..., None], 0, u)


@pytest.mark.parametrize("padding", [None, MASK], ids=["whole", "padded"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_neighbors": 6, "n_steps": 2},
        {"init": "random", "n_neighbors": 4, "normalize": "both", "seed": 3},
        {"init": "random", "has_class_token": True, "eps": 0.5},
        {"init": "mean_pool", "n_steps": 3, "eps": 0.3, "scale": 0.2},
        {"init": "mean_pool", "grid": (2, 10), "normalize": "inputs"},
        {"init": "mean_pool", "has_class_token": True},
    ],
    ids=str,
)
def test_as_its_definition(weights, tokens, coordinates, settings, padding):
    settings = dict(settings)
    layer = made(weights, **settings)
    more = (coordinates,) if settings.get("init", "farthest") == "farthest" or "n_neighbors" in settings else ()
    start = layer.begin(tokens, *more, key_padding_mask=padding)
    options = {n: settings[n] for n in ("n_steps", "eps", "normalize", "scale") if n in settings}
    want = definition(weights, tokens, start, padding=padding, **options)
    got = layer(tokens, *more, key_padding_mask=padding)
    compare.assert_close(got, want, compare.CLUSTERED)
    compare.assert_same_bits(layer(tokens, start=start, key_padding_mask=padding, n_threads=1), got)


def test_where_centroids_start(weights, tokens, coordinates):
    start = made(weights, n_neighbors=4).begin(tokens, coordinates, key_padding_mask=MASK)
    want = pyclattn.farthest_point_sampling(coordinates, M, key_padding_mask=MASK)
    compare.assert_same_bits(start.indices, want)
    compare.assert_same_bits(start.tokens[0], tokens[0, want[0]])
    assert start.padding_mask.tolist() == (want < 0).tolist() == [[False] * 5, [False] * 3 + [True] * 2]
    assert (start.tokens[1, 3:] == 0).all()
    near = pyclattn.nearest_neighbors(coordinates[:1][:, want[0]], coordinates[:1], 4)
    compare.assert_same_bits(start.neighbors[:1], near)

    pooled = made(weights, init="mean_pool").begin(tokens, key_padding_mask=MASK)
    compare.assert_same_bits(pooled.tokens, pyclattn.mean_pool_tokens(tokens, M, key_padding_mask=MASK))
    assert pooled.padding_mask.tolist() == [[False] * 5, [False] + [True] * 4]

    classed = made(weights, init="random", has_class_token=True).begin(tokens)
    assert (classed.indices[:, 0] == 0).all()
    assert (classed.indices[:, 1:] > 0).all()
    compare.assert_same_bits(classed.tokens, np.take_along_axis(tokens, classed.indices[..., None], axis=1))


def test_pools_beside_a_class_token(weights, tokens):
    """It is carried along, and in nobody's mean."""
    start = made(weights, init="mean_pool", has_class_token=True).begin(tokens, key_padding_mask=MASK)
    compare.assert_same_bits(start.tokens[:, 0], tokens[:, 0])
    want = pyclattn.mean_pool_tokens(tokens[:, 1:], M, key_padding_mask=MASK[:, 1:])
    compare.assert_same_bits(start.tokens[:, 1:], want)
    assert start.padding_mask.tolist() == [[False] * 6, [False] * 2 + [True] * 4]


@pytest.mark.parametrize("settings", [{"n_neighbors": 4}, {"init": "mean_pool", "n_steps": 2}, {"init": "random"}])
def test_an_empty_batch(weights, tokens, coordinates, settings):
    assert made(weights, **settings)(tokens[:0], coordinates[:0]).shape == (0, M, WIDTH)


def test_a_given_start(weights, tokens):
    start = Centroids(tokens[:, :M] * 2, np.zeros((2, M), bool))
    compare.assert_close(made(weights, init="given")(tokens, start=start), definition(weights, tokens, start), 1e-5)


def test_padding_is_never_read(weights, tokens, coordinates):
    for settings in ({"n_neighbors": 3}, {"init": "mean_pool"}, {"init": "random"}):
        layer = made(weights, **settings)
        want = layer(tokens, coordinates, key_padding_mask=MASK)
        wild = np.where(MASK[..., None], np.nan, tokens)
        compare.assert_same_bits(layer(wild, coordinates, key_padding_mask=MASK), want)
        assert np.isfinite(want).all()


def test_a_sequence_of_nothing_but_padding(weights, tokens, coordinates):
    """Its centroids start and end as zeros, whatever stands in the padding; the other sequence does not change."""
    padding = np.array([[False] * N, [True] * N])
    for settings in (
        {"n_neighbors": 3},
        {"init": "mean_pool", "has_class_token": True},
        {"init": "random", "has_class_token": True},
    ):
        layer = made(weights, **settings)
        want = layer(tokens[:1], coordinates[:1])
        wild = [np.where(padding[..., None], np.nan, x) for x in (tokens, coordinates)]
        start, got = layer.begin(*wild, key_padding_mask=padding), layer(*wild, key_padding_mask=padding)
        assert start.padding_mask[1].all()
        assert (start.tokens[1] == 0).all()
        assert (got[1] == 0).all()
        compare.assert_close(got[:1], want, 1e-6)


def test_all_that_is_wrong_in_a_file_is_said_at_once(weights):
    del weights["key_proj.bias"]
    weights["out_proj.weight"], weights["gate.weight"] = np.zeros((WIDTH, 3), np.float32), np.zeros(2, np.float32)
    with pytest.raises(ModelFormatError) as error:
        made(weights)
    for said in ("missing: key_proj.bias", "unexpected: gate.weight", "wrong shape: out_proj.weight"):
        assert said in str(error.value)


ONE = Linear(np.ones((4, 4), np.float32))
BAD = {
    "init": ({"init": "nowhere"}, ArgumentError, "init | 'nowhere'"),
    "normalize": ({"normalize": "rows"}, ArgumentError, "normalize | 'rows'"),
    "steps": ({"n_steps": 0}, ArgumentError, "n_steps"),
    "eps": ({"eps": np.inf}, ArgumentError, "eps | inf"),
    "neighbors": ({"init": "mean_pool", "n_neighbors": 2}, ArgumentError, "n_neighbors | 'mean_pool'"),
    "grid": ({"grid": (2, 2)}, ArgumentError, "grid | 'farthest'"),
    "class_token": ({"has_class_token": True}, ArgumentError, "has_class_token | 'farthest'"),
    "heads": ({"n_heads": 3}, ShapeError, "3 equal heads | 4, 4 and 4"),
    "widths": ({"key_proj": Linear(np.ones((4, 5)))}, ShapeError, "one width | 4, 5, 4"),
    "out": ({"out_proj": Linear(np.ones((4, 5)))}, ShapeError, "out_proj | 4 | 5"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_fields(name):
    change, kind, said = BAD[name]
    good = {"n_heads": 2, "n_centroids": 3, **dict.fromkeys(PROJECTIONS, ONE)}
    CentroidAttention(**good)
    with pytest.raises(kind) as error:
        CentroidAttention(**{**good, **change})
    for word in said.split(" | "):
        assert word in str(error.value), (word, str(error.value))


def test_bad_calls(weights, tokens, coordinates):
    layer, given = made(weights), made(weights, init="given")
    calls = [
        (lambda: layer(tokens), ArgumentError, "coordinates"),
        (lambda: layer(tokens, coordinates[:, :5]), ShapeError, "coordinates | (2, 20, 'P') | (2, 5, 3)"),
        (lambda: layer(tokens[:, :3], coordinates[:, :3]), ArgumentError, "n_centroids | 5 of 3"),
        (lambda: layer(tokens[0], coordinates), ShapeError, "(batch, length, 8)"),
        (lambda: given(tokens), ArgumentError, "start"),
        (lambda: given(tokens, start=tokens), DTypeError, "Centroids | ndarray"),
        (lambda: given(tokens, start=Centroids(tokens)), ShapeError, "(2, 5, 8) | (2, 20, 8)"),
        (lambda: layer(tokens, coordinates, key_padding_mask=MASK[:1]), ShapeError, "key_padding_mask | (1, 20)"),
    ]
    for call, kind, said in calls:
        with pytest.raises(kind) as error:
            call()
        for word in said.split(" | "):
            assert word in str(error.value), (word, str(error.value))
