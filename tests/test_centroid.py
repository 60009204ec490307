"""Centroid attention: the public function against the loops, its properties, and its limits."""

import tracemalloc

import compare
import inputs
import naive_centroid as naive
import numpy as np
import pytest
from conftest import ISA_LEVELS, Room
from hypothesis import given
from hypothesis import strategies as st

import pyclattn
from pyclattn._dispatch import launch
from pyclattn.errors import ArgumentError, DTypeError, PyclattnError, ShapeError
from pyclattn.functional import centroid

NORMALIZATIONS = ("centroids", "inputs", "both")


def random_neighbors(rng, batch, n_centroids, n_inputs, k, empty=0.2):
    """Different inputs for each centroid, some places empty."""
    found = np.argsort(rng.random((batch, n_centroids, n_inputs)), axis=-1)[..., :k]
    return np.where(rng.random(found.shape) < empty, -1, found)


@st.composite
def calls(draw):
    """Arrays and options of a call, and the same options for the loops."""
    n = draw(st.integers(1, 30))
    m, heads = draw(st.integers(1, n)), draw(st.integers(1, 3))
    batch, seed = draw(st.integers(1, 2)), draw(st.integers(0, 99))
    tensors = inputs.tensors(
        draw(st.sampled_from(inputs.KINDS)), batch=batch, heads=heads, kv_heads=draw(st.sampled_from([1, heads])),
        n=m, n_keys=n, dim=draw(st.integers(1, 9)), width=draw(st.integers(1, 9)), seed=seed,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    options = {"normalize": draw(st.sampled_from(NORMALIZATIONS)), "scale": draw(st.sampled_from([None, 0.7]))}
    if draw(st.booleans()):
        options["neighbors"] = random_neighbors(rng, batch, m, n, draw(st.integers(1, n)))
    masks = {}
    if draw(st.booleans()):
        masks["key_padding"] = rng.random((batch, n)) < draw(st.sampled_from([0.3, 1.0]))
    if draw(st.booleans()):
        masks["centroid_padding"] = rng.random((batch, m)) < draw(st.sampled_from([0.3, 1.0]))
    return tensors, {**options, **{f"{name}_mask": mask for name, mask in masks.items()}}, {**options, **masks}


@given(calls())
def test_as_the_loops(room, call):
    tensors, options, loops = call
    got = pyclattn.centroid_attention(*tensors, **options)
    compare.assert_close(got, naive.centroid_attention(*tensors, **loops), compare.CLUSTERED)


@pytest.mark.parametrize("isa", ISA_LEVELS)
@pytest.mark.parametrize("normalize", ["centroids", "both"])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (130, 1500), (1050, 1100)])
def test_long_ones_as_the_reference(isa, normalize, m, n):
    """Several panels, blocks, chunks and parts; heads that are views; holes on both sides."""
    query, key, value = inputs.tensors("blobs", batch=2, n=m, n_keys=n, dim=20, width=7, seed=m)
    key = np.ascontiguousarray(key.swapaxes(1, 2)).swapaxes(1, 2)
    masks = {
        "key_padding_mask": inputs.padding(2, n, [n, n // 3]) if n < 1500 else inputs.padding(2, n, holes=0.4),
        "centroid_padding_mask": inputs.padding(2, m, holes=0.3, seed=1),
    }
    for more in ({}, masks):
        with Room("cython", isa).forced():
            got = pyclattn.centroid_attention(query, key, value, normalize=normalize, **more)
        with Room("reference").forced():
            want = pyclattn.centroid_attention(query, key, value, normalize=normalize, **more)
        compare.assert_close(got, want, compare.EXACT)


def test_neighbors_that_are_all_is_no_neighbors(room):
    tensors = inputs.tensors(batch=2, heads=2, n=9, n_keys=40, dim=8)
    everyone = np.broadcast_to(np.arange(40), (2, 9, 40))
    for normalize in NORMALIZATIONS:
        got = pyclattn.centroid_attention(*tensors, normalize=normalize, neighbors=everyone)
        compare.assert_close(got, pyclattn.centroid_attention(*tensors, normalize=normalize), compare.EXACT)


@given(calls())
def test_each_input_is_given_away_once(call):
    """Softmax over centroids: what all centroids hold together is the sum of the inputs that some centroid may hold."""
    (query, key, value), options, _ = call
    options = {**options, "normalize": "centroids"}
    got = pyclattn.centroid_attention(query, key, value, **options).astype(np.float64).sum(axis=2)
    batch, n = len(key), key.shape[2]
    absent = options.get("centroid_padding_mask", np.zeros(query.shape[::2], bool))
    near = options.get("neighbors", np.broadcast_to(np.arange(n), (batch, query.shape[2], n)))
    is_held = np.zeros((batch, n), bool)
    for b in range(batch):
        own = near[b][~absent[b]]
        is_held[b, own[own >= 0]] = True
    is_held &= ~options.get("key_padding_mask", np.zeros((batch, n), bool))
    want = (np.where(is_held[:, None, :, None], value, 0)).astype(np.float64).sum(axis=2)
    np.testing.assert_allclose(got, np.repeat(want, query.shape[1] // key.shape[1], axis=1), rtol=1e-4, atol=1e-4)


@given(calls())
def test_a_divided_centroid_lies_among_its_inputs(call):
    """Weights divided by their sum: each coordinate lies between the least and the greatest value."""
    (query, key, value), options, _ = call
    for normalize in ("inputs", "both"):
        got = pyclattn.centroid_attention(query, key, value, **{**options, "normalize": normalize})
        least, most = min(0, value.min()), max(0, value.max())  # 0: a centroid that holds nothing
        assert (got >= least - 1e-4).all()
        assert (got <= most + 1e-4).all()


@given(calls())
def test_orders_do_not_matter(call):
    """Inputs in another order change nothing; centroids in another order come out in that order."""
    (query, key, value), options, _ = call
    rng = np.random.default_rng(3)
    inputs_order, order = rng.permutation(key.shape[2]), rng.permutation(query.shape[2])
    moved = dict(options)
    if "key_padding_mask" in options:
        moved["key_padding_mask"] = options["key_padding_mask"][:, inputs_order]
    if "centroid_padding_mask" in options:
        moved["centroid_padding_mask"] = options["centroid_padding_mask"][:, order]
    if "neighbors" in options:
        near = options["neighbors"][:, order]
        moved["neighbors"] = np.where(near < 0, -1, np.argsort(inputs_order)[near])
    got = pyclattn.centroid_attention(query[:, :, order], key[:, :, inputs_order], value[:, :, inputs_order], **moved)
    compare.assert_close(got, pyclattn.centroid_attention(query, key, value, **options)[:, :, order], 2e-5)


def test_a_step_goes_down_the_objective():
    """With values u-gradients of a dot-product similarity, the output is the objective's negative gradient."""
    rng = np.random.default_rng(0)
    x, u = rng.standard_normal((1, 1, 60, 5)).astype(np.float32), rng.standard_normal((1, 1, 6, 5)).astype(np.float32)

    def objective(u):  # -(1/a) sum_i log sum_j exp(a x_i . u_j), a = 0.5
        return -2 * np.log(np.exp(0.5 * x[0, 0].astype(np.float64) @ u.T).sum(axis=1)).sum()

    got = pyclattn.centroid_attention(u, x, x, scale=0.5)[0, 0]
    for j in range(6):
        for d in range(5):
            ends = [u[0, 0].astype(np.float64) for _ in range(2)]
            ends[0][j, d] -= 1e-5
            ends[1][j, d] += 1e-5
            slope = (objective(ends[1]) - objective(ends[0])) / 2e-5
            assert abs(got[j, d] + slope) < 1e-3


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_padding_is_never_read(room, normalize):
    query, key, value = inputs.tensors(batch=2, heads=2, n=10, n_keys=50, dim=8)
    padding, absent = inputs.padding(2, 50, holes=0.4), inputs.padding(2, 10, [10, 4])
    near = random_neighbors(np.random.default_rng(0), 2, 10, 50, 20)
    options = {"normalize": normalize, "key_padding_mask": padding, "centroid_padding_mask": absent}
    for more in ({}, {"neighbors": near}):
        want = pyclattn.centroid_attention(query, key, value, **options, **more)
        wild = [
            np.where(mask[:, None, :, None], np.nan, x)
            for x, mask in ((query, absent), (key, padding), (value, padding))
        ]
        compare.assert_same_bits(pyclattn.centroid_attention(*wild, **options, **more), want)
        assert (want[1, :, 4:] == 0).all()


def test_nothing_to_gather(room):
    tensors = inputs.tensors(batch=2, heads=2, n=3, n_keys=7, dim=4)
    nothing, nobody = np.ones((2, 7), bool), np.ones((2, 3), bool)
    for normalize in NORMALIZATIONS:
        for more in ({}, {"neighbors": np.full((2, 3, 2), -1)}):
            assert not pyclattn.centroid_attention(
                *tensors, normalize=normalize, key_padding_mask=nothing, **more
            ).any()
            assert not pyclattn.centroid_attention(
                *tensors, normalize=normalize, centroid_padding_mask=nobody, **more
            ).any()
    empty = pyclattn.centroid_attention(tensors[0][:, :, :0], *tensors[1:])
    assert empty.shape == (2, 2, 0, 4)
    assert pyclattn.centroid_attention(*(x[:0] for x in tensors)).shape == (0, 2, 3, 4)


def test_large_and_far_logits(room):
    """Logits near 1000 and centroids far from every input: finite, and weights far below 2^-100 count as none."""
    query, key, value = inputs.tensors(n=4, n_keys=30, dim=4)
    query = query * np.float32(300)
    got = pyclattn.centroid_attention(query, key, value)
    compare.assert_close(got, naive.centroid_attention(query, key, value), 1e-4)
    query[0, 0, 0], key[..., 0] = [-1e4, 0, 0, 0], 1
    assert not pyclattn.centroid_attention(query, key, value, normalize="both")[0, 0, 0].any()


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_same_bits_for_any_number_of_threads(room, normalize):
    query, key, value = inputs.tensors(batch=2, heads=2, n=60, n_keys=2500, dim=16)
    near = random_neighbors(np.random.default_rng(0), 2, 60, 2500, 700)
    for more in ({}, {"neighbors": near}, {"key_padding_mask": inputs.padding(2, 2500, holes=0.2)}):
        want = pyclattn.centroid_attention(query, key, value, normalize=normalize, n_threads=1, **more)
        for n_threads in (2, 5):
            got = pyclattn.centroid_attention(query, key, value, normalize=normalize, n_threads=n_threads, **more)
            compare.assert_same_bits(got, want)


@pytest.mark.parametrize("normalize", ["centroids", "both"])
@pytest.mark.parametrize("n_neighbors", [None, 16])
def test_a_call_holds_no_more_than_it_says(normalize, n_neighbors):
    """What NumPy allocates: the sums of all chunks, or the pairs; far less than (M, N) weights."""
    query, key, value = inputs.tensors(heads=4, n=256, n_keys=8192, dim=16)
    near = None if n_neighbors is None else np.broadcast_to(np.arange(n_neighbors), (1, 256, n_neighbors))
    options = {"normalize": normalize, "neighbors": near, "n_threads": 1}
    pyclattn.centroid_attention(query, key, value, **options)
    tracemalloc.start()
    out = pyclattn.centroid_attention(query, key, value, **options)
    peak = tracemalloc.get_traced_memory()[1] - out.nbytes
    tracemalloc.stop()
    said = centroid.working_bytes(query.shape, key.shape, value.shape, n_neighbors=n_neighbors, n_threads=1)
    assert peak <= said + 50_000
    assert said < 4 * 256 * 8192 * 4 / 4


GOOD = dict(zip(("query", "key", "value"), inputs.tensors(batch=2, heads=2, n=5, n_keys=20, dim=4)))
NEAR = np.zeros((2, 5, 1), np.int64)
TWICE = np.tile([7, -1, -1, 2], (2, 5, 1))
TWICE[1, 3, 2] = 7
BAD = {
    "more_centroids": ({"query": GOOD["key"][:, :, [*range(20), 0]]}, ShapeError, "21 > 20"),
    "head_dim": ({"query": GOOD["query"][..., :3]}, ShapeError, "head_dim"),
    "normalize": ({"normalize": "rows"}, ArgumentError, "normalize | 'centroids' | 'rows'"),
    "too_far": ({"neighbors": NEAR + 20}, ArgumentError, "neighbors | 20 inputs | 20 to 20"),
    "too_low": ({"neighbors": NEAR - 2}, ArgumentError, "neighbors | -2"),
    "twice": ({"neighbors": np.zeros((2, 5, 2), int)}, ArgumentError, "neighbors | different | 0 twice"),
    "twice_later": ({"neighbors": TWICE}, ArgumentError, "7 twice for centroid 3 of batch entry 1"),
    "neighbors_shape": ({"neighbors": NEAR[:, :4]}, ShapeError, "neighbors | (2, 5, K) | (2, 4, 1)"),
    "neighbors_type": ({"neighbors": NEAR + 0.5}, DTypeError, "neighbors | float64"),
    "key_mask": ({"key_padding_mask": np.zeros((2, 5), bool)}, ShapeError, "key_padding_mask | (2, 20) | (2, 5)"),
    "key_mask_type": ({"key_padding_mask": np.zeros((2, 20))}, DTypeError, "key_padding_mask | bool"),
    "centroid_mask": ({"centroid_padding_mask": np.zeros((2, 20), bool)}, ShapeError, "centroid_padding_mask | (2, 5)"),
    "scale": ({"scale": "big"}, DTypeError, "scale"),
    "threads": ({"n_threads": 0}, ArgumentError, "n_threads"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls(name, monkeypatch):
    """Before any work, with what was given and what was expected."""

    def launched(kernel, *rest):
        if kernel != "centroid.find_repeated":
            raise AssertionError("work was begun")
        launch(kernel, *rest)

    monkeypatch.setattr(centroid, "launch", launched)
    change, kind, said = BAD[name]
    with pytest.raises(kind) as error:
        pyclattn.centroid_attention(**{**GOOD, **change})
    assert isinstance(error.value, PyclattnError)
    for word in said.split(" | "):
        assert word in str(error.value), (word, str(error.value))
