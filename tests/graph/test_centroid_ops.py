"""Operators of centroid attention: what the public functions give, with their options as attributes."""

import numpy as np
import pytest

import pyclattn
from pyclattn.errors import PyclattnError
from pyclattn.functional.centroid import random_positions
from tests.graph.build import run

RNG = np.random.default_rng(0)
QUERY, KEY, VALUE = (RNG.standard_normal((2, 2, n, 4)).astype(np.float32) for n in (5, 30, 30))
POINTS = RNG.standard_normal((2, 30, 3)).astype(np.float32)
PADDING, ABSENT = np.arange(30)[None] >= np.array([[30], [9]]), np.zeros((2, 5), bool)
NEAR = pyclattn.nearest_neighbors(POINTS[:, :5], POINTS, 6)


@pytest.mark.parametrize("optional", [(), (3,), (4,), (3, 4)], ids=str)
@pytest.mark.parametrize("normalize", ["centroids", "inputs", "both"])
def test_centroid_attention(optional, normalize):
    masks = {3: NEAR, 4: PADDING, 5: ABSENT}
    given = [masks[i] for i in masks if i not in optional]
    got = run(
        "pyclattn:centroid_attention",
        [QUERY, KEY, VALUE, *given],
        {"normalize": normalize, "scale": 0.3},
        optional=optional,
    )
    names = {3: "neighbors", 4: "key_padding_mask", 5: "centroid_padding_mask"}
    options = {names[i]: masks[i] for i in masks if i not in optional}
    want = pyclattn.centroid_attention(QUERY, KEY, VALUE, normalize=normalize, scale=0.3, **options)
    np.testing.assert_array_equal(got, want)


def test_centroid_attention_alone():
    got = run("pyclattn:centroid_attention", [QUERY, KEY, VALUE])
    np.testing.assert_array_equal(got, pyclattn.centroid_attention(QUERY, KEY, VALUE))


@pytest.mark.parametrize("masks", [[], [PADDING]], ids=["whole", "padded"])
def test_where_centroids_start(masks):
    tokens, more = KEY[:, 0], {"key_padding_mask": masks[0]} if masks else {}
    few, fewer_masks = tokens[:, :24], [mask[:, :24] for mask in masks]
    pairs = [
        (run("pyclattn:farthest_point_sampling", [POINTS, *masks], {"n_centroids": 12}),
         pyclattn.farthest_point_sampling(POINTS, 12, **more)),
        (run("pyclattn:nearest_neighbors", [POINTS[:, :4], POINTS, *masks], {"n_neighbors": 7}),
         pyclattn.nearest_neighbors(POINTS[:, :4], POINTS, 7, **more)),
        (run("pyclattn:mean_pool_tokens", [tokens, *masks], {"n_centroids": 7}),
         pyclattn.mean_pool_tokens(tokens, 7, **more)),
        (run("pyclattn:mean_pool_tokens", [few, *fewer_masks], {"n_centroids": 6, "grid": [4, 6]}),
         pyclattn.mean_pool_tokens(few, 6, grid=(4, 6), key_padding_mask=fewer_masks[0] if masks else None)),
        (run("pyclattn:random_positions", [tokens, *masks], {"n_centroids": 9, "seed": 5}),
         np.broadcast_to(random_positions(30, 9, 5, **more), (2, 9))),
    ]  # fmt: skip
    for got, want in pairs:
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


def test_fewer_points_than_neighbors():
    """As in the layer and the twin: a model with 32 neighbours runs on 30 points too."""
    got = run("pyclattn:nearest_neighbors", [POINTS[:, :4], POINTS], {"n_neighbors": 32})
    np.testing.assert_array_equal(got, pyclattn.nearest_neighbors(POINTS[:, :4], POINTS, 30))


@pytest.mark.parametrize(
    ("kind", "arrays", "attributes", "said"),
    [
        ("centroid_attention", [QUERY[0], KEY, VALUE], {}, "query must have rank 4"),
        ("centroid_attention", [QUERY, KEY, VALUE, NEAR + 30], {}, "neighbors"),
        ("farthest_point_sampling", [POINTS], {}, "n_centroids"),
        ("farthest_point_sampling", [POINTS], {"n_centroids": 31}, "31 of 30"),
        ("nearest_neighbors", [POINTS, POINTS], {"n_neighbors": 0}, "n_neighbors"),
    ],
)
def test_bad_nodes(kind, arrays, attributes, said):
    with pytest.raises(PyclattnError, match=said):
        run(f"pyclattn:{kind}", arrays, attributes)
