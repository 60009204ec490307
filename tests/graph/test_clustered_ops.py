"""Operators of clustered attention, and shapes of what all the methods' operators give."""

import numpy as np
import pytest

import pyclattn
from pyclattn.errors import PyclattnError
from pyclattn.graph.passes.edit import Editor
from pyclattn.graph.passes.shapes import Shapes
from pyclattn.graph.program import Op, Program, Value
from tests.graph.build import run

RNG = np.random.default_rng(0)
QUERY, KEY, VALUE = (RNG.standard_normal((2, 2, 30, n)).astype(np.float32) for n in (4, 4, 6))
PADDING = np.arange(30)[None] >= np.array([[30], [9]])
MASKS = {3: "key_padding_mask", 4: "query_padding_mask"}
OPTIONS = {"n_clusters": 5, "n_bits": 20, "n_iterations": 3, "clustering": "lsh", "seed": 2, "scale": 0.4}


@pytest.mark.parametrize("given", [(), (3,), (4,), (3, 4)], ids=str)
@pytest.mark.parametrize("more", [{}, {"topk": 3}, {"topk": 3, "is_causal": True}], ids=str)
def test_as_the_functions(given, more):
    name = "improved_clustered_attention" if more else "clustered_attention"
    optional = tuple(i for i in MASKS if i not in given)
    arrays = [QUERY, KEY, VALUE, *(PADDING for _ in given)]
    got = run(f"pyclattn:{name}", arrays, {**OPTIONS, **more}, optional=optional)
    want = getattr(pyclattn, name)(QUERY, KEY, VALUE, **OPTIONS, **more, **{MASKS[i]: PADDING for i in given})
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("arrays", "attributes"),
    [
        ([QUERY[0], KEY, VALUE], {"n_clusters": 5}),
        ([QUERY, KEY[:, :, :, :3], VALUE], {"n_clusters": 5}),
        ([QUERY, KEY, VALUE], {"n_clusters": 0}),
        ([QUERY, KEY, VALUE], {}),
    ],
)
def test_what_does_not_fit(arrays, attributes):
    with pytest.raises(PyclattnError, match="the_node"):
        run("pyclattn:clustered_attention", arrays, attributes)


SHAPES = {
    "cast_attention": (((2, 4, "n", 8), (2, 4, "n", 8), (2, 4, "n", 6)), {}, (2, 4, "n", 6)),
    "centroid_attention": (((2, 4, 5, 8), (2, 4, "n", 8), (2, 4, "n", 6)), {}, (2, 4, 5, 6)),
    "clustered_attention": (((2, 4, "n", 8), (2, 4, 9, 8), (2, 4, 9, 6)), {}, (2, 4, "n", 6)),
    "farthest_point_sampling": (((2, "n", 3),), {"n_centroids": 5}, (2, 5)),
    "random_positions": (((2, "n", 3),), {"n_centroids": 5}, (2, 5)),
    "nearest_neighbors": (((2, 5, 3), (2, "n", 3)), {"n_neighbors": 7}, (2, 5, 7)),
    "mean_pool_tokens": (((2, "n", 3),), {"n_centroids": 5}, (2, 5, 3)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    given, attributes, wanted = SHAPES[name]
    inputs = [Value(f"x{i}", "float32", shape) for i, shape in enumerate(given)]
    op = Op(f"pyclattn:{name}", tuple(value.name for value in inputs), ("y",), attributes)
    known = Shapes(Editor(Program(inputs, [Value("y", "", ("...",))], [op])))
    named = next((n for value in inputs for n, size in zip(known.shape(value.name), value.shape) if size == "n"), None)
    assert known.shape("y") == tuple(named if size == "n" else size for size in wanted)
    assert known.dtype("y") == ("int64" if len(wanted) == 2 or name == "nearest_neighbors" else "float32")
