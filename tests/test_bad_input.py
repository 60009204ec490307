"""Bad calls: one error of our own, before any work, that names the argument and what was given and expected."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import pyclattn
from pyclattn import _dispatch
from pyclattn.errors import ArgumentError, DTypeError, PyclattnError, ShapeError
from pyclattn.functional import coclustered

SDPA, CLUSTERED, IMPROVED = (
    pyclattn.scaled_dot_product_attention,
    pyclattn.clustered_attention,
    pyclattn.improved_clustered_attention,
)
COCLUSTERED = pyclattn.coclustered_attention
HASH, CLUSTER, KMEANS = pyclattn.hash_queries, pyclattn.cluster_queries, pyclattn.kmeans

B, H, L, S, D, E = 2, 4, 10, 12, 8, 6


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


GOOD = {"query": zeros(B, H, L, D), "key": zeros(B, 2, S, D), "value": zeros(B, 2, S, E)}
PACKED = {"query": zeros(H, L, D), "key": zeros(2, L, D), "value": zeros(2, L, E), "offsets": [0, 4, L]}
NINE = {"key": zeros(2, 9, D), "value": zeros(2, 9, E)}
ROWS = zeros(B, H, L, D)
X = {"query": ROWS}
TEN = {"x": ROWS[0], "offsets": [0, L]}
NONE = zeros(B, S, dtype=bool)
LONG = {  # so that co-clustered attention does not take it exactly
    name: np.broadcast_to(x[:, :, :1], (*x.shape[:2], 1100, x.shape[3])) for name, x in GOOD.items()
}
KEYS, QUERIES = "key_padding_mask", "query_padding_mask"

RAGGED = [[[[1.0, 2.0], [3.0]]]]
OBJECTS = np.full((B, H, L, D), None, object)

# name -> (function, arguments of a good call, what is bad about this one, the error, what its message must hold)
CALLS = {
    # ranks and lengths
    "query_rank_3": (SDPA, GOOD, {"query": zeros(H, L, D)}, ShapeError, "query | rank 4 | (4, 10, 8)"),
    "key_rank_5": (SDPA, GOOD, {"key": zeros(1, B, 2, S, D)}, ShapeError, "key | rank 4 | (1, 2, 2, 12, 8)"),
    "value_scalar": (SDPA, GOOD, {"value": np.float32(1)}, ShapeError, "value | rank 4 | ()"),
    "query_rank_packed": (SDPA, PACKED, {"query": zeros(1, H, L, D)}, ShapeError, "query | rank 3"),
    "batch": (SDPA, GOOD, {"query": zeros(3, H, L, D)}, ShapeError, "batch | (3, 4, 10, 8) | (2, 2, 12, 8)"),
    "lengths": (SDPA, GOOD, {"value": zeros(B, 2, 11, E)}, ShapeError, "length | (2, 2, 12, 8) | (2, 2, 11, 6)"),
    "head_dim": (SDPA, GOOD, {"key": zeros(B, 2, S, 9)}, ShapeError, "head_dim | (2, 4, 10, 8) | (2, 2, 12, 9)"),
    "head_dim_0": (SDPA, GOOD, {"query": zeros(B, H, L, 0), "key": zeros(B, 2, S, 0)}, ShapeError, "head_dim | 1"),
    "kv_heads": (SDPA, GOOD, {"value": zeros(B, 4, S, E)}, ShapeError, "heads | (2, 2, 12, 8) | (2, 4, 12, 6)"),
    "heads_multiple": (
        SDPA,
        GOOD,
        {"key": zeros(B, 3, S, D), "value": zeros(B, 3, S, E)},
        ShapeError,
        "heads | multiple | (2, 4, 10, 8) | (2, 3, 12, 8)",
    ),
    "heads_none": (SDPA, GOOD, {"key": zeros(B, 0, S, D), "value": zeros(B, 0, S, E)}, ShapeError, "heads | (2, 0"),
    "clustered_lengths": (CLUSTERED, GOOD, {"value": zeros(B, 2, 11, E)}, ShapeError, "length | 12 | 11"),
    "improved_lengths": (IMPROVED, GOOD, {"value": zeros(B, 2, 11, E)}, ShapeError, "length | 12 | 11"),
    "coclustered_lengths": (COCLUSTERED, GOOD, {"value": zeros(B, 2, 11, E)}, ShapeError, "length | 12 | 11"),
    "causal_lengths": (IMPROVED, GOOD, {"is_causal": True}, ShapeError, "is_causal | 10 | 12"),
    "hash_rank": (HASH, X, {"query": zeros(L, D)}, ShapeError, "query | rank 4 | (10, 8)"),
    "cluster_width_0": (CLUSTER, X, {"query": zeros(B, H, L, 0)}, ShapeError, "query | 1 | (2, 4, 10, 0)"),
    # types
    "query_int": (SDPA, GOOD, {"query": zeros(B, H, L, D, dtype=np.int32)}, DTypeError, "query | float32 | int32"),
    "query_bool": (SDPA, GOOD, {"query": zeros(B, H, L, D, dtype=bool)}, DTypeError, "query | float32 | bool"),
    "key_complex": (SDPA, GOOD, {"key": zeros(B, 2, S, D, dtype=complex)}, DTypeError, "key | complex128"),
    "value_text": (SDPA, GOOD, {"value": np.full((B, 2, S, E), "a")}, DTypeError, "value | float32"),
    "value_bytes": (SDPA, GOOD, {"value": np.full((B, 2, S, E), b"a")}, DTypeError, "value | float32"),
    "value_dates": (SDPA, GOOD, {"value": zeros(B, 2, S, E, dtype="M8[s]")}, DTypeError, "value | datetime64"),
    "value_structured": (SDPA, GOOD, {"value": zeros(B, 2, S, E, dtype="f4,f4")}, DTypeError, "value | float32"),
    "value_void": (SDPA, GOOD, {"value": zeros(B, 2, S, E, dtype="V4")}, DTypeError, "value | float32"),
    "query_objects": (SDPA, GOOD, {"query": OBJECTS}, DTypeError, "query | float32 | object"),
    "query_none": (SDPA, GOOD, {"query": None}, DTypeError, "query | None"),
    "query_masked": (SDPA, GOOD, {"query": np.ma.masked_equal(ROWS, 0)}, ArgumentError, "query | masked array"),
    "query_ragged": (SDPA, GOOD, {"query": RAGGED}, ShapeError, "query | rank 4"),
    "query_string": (SDPA, GOOD, {"query": "query"}, DTypeError, "query | float32"),
    "x_int": (KMEANS, {"x": ROWS}, {"x": zeros(B, H, L, D, dtype=np.int64)}, DTypeError, "x | int64"),
    # counts
    "clusters_0": (CLUSTERED, GOOD, {"n_clusters": 0}, ArgumentError, "n_clusters | at least 1 | 0"),
    "clusters_negative": (IMPROVED, GOOD, {"n_clusters": -3}, ArgumentError, "n_clusters | at least 1 | -3"),
    "clusters_float": (CLUSTERED, GOOD, {"n_clusters": 2.0}, DTypeError, "n_clusters | whole | 2.0"),
    "clusters_bool": (CLUSTERED, GOOD, {"n_clusters": True}, DTypeError, "n_clusters | whole | True"),
    "clusters_text": (CLUSTERED, GOOD, {"n_clusters": "7"}, DTypeError, "n_clusters | whole | '7'"),
    "clusters_none": (CLUSTERED, GOOD, {"n_clusters": None}, DTypeError, "n_clusters | whole | None"),
    "clusters_array": (CLUSTERED, GOOD, {"n_clusters": np.array([1, 2])}, DTypeError, "n_clusters | whole"),
    "clusters_nan": (KMEANS, {"x": ROWS}, {"n_clusters": float("nan")}, DTypeError, "n_clusters | nan"),
    "topk_0": (IMPROVED, GOOD, {"topk": 0}, ArgumentError, "topk | at least 1 | 0"),
    "topk_float": (IMPROVED, GOOD, {"topk": 32.5}, DTypeError, "topk | whole | 32.5"),
    "exact_negative": (COCLUSTERED, GOOD, {"n_exact": -1}, ArgumentError, "n_exact | at least 0 | -1"),
    "exact_float": (COCLUSTERED, GOOD, {"n_exact": 64.0}, DTypeError, "n_exact | whole | 64.0"),
    "exact_none": (COCLUSTERED, GOOD, {"n_exact": None}, DTypeError, "n_exact | whole | None"),
    "rank_0": (COCLUSTERED, GOOD, {"rank": 0}, ArgumentError, "rank | at least 1 | 0"),
    "rank_text": (COCLUSTERED, GOOD, {"rank": "16"}, DTypeError, "rank | whole | '16'"),
    "query_clusters_0": (COCLUSTERED, GOOD, {"n_query_clusters": 0}, ArgumentError, "n_query_clusters | 1 | 0"),
    "key_clusters_bool": (COCLUSTERED, GOOD, {"n_key_clusters": True}, DTypeError, "n_key_clusters | whole | True"),
    "bits_0": (HASH, X, {"n_bits": 0}, ArgumentError, "n_bits | 1 to 63 | 0"),
    "bits_64": (CLUSTERED, GOOD, {"n_bits": 64}, ArgumentError, "n_bits | 1 to 63 | 64"),
    "iterations_0": (CLUSTERED, GOOD, {"n_iterations": 0}, ArgumentError, "n_iterations | 1 | 0"),
    "iterations_many": (CLUSTER, X, {"n_iterations": 10**9}, ArgumentError, "n_iterations | 10000 | 10000000"),
    "iterations_bool": (KMEANS, {"x": ROWS}, {"n_iterations": np.True_}, DTypeError, "n_iterations | True"),
    "seed_negative": (CLUSTER, X, {"seed": -1}, ArgumentError, "seed | at least 0 | -1"),
    "seed_none": (HASH, X, {"seed": None}, DTypeError, "seed | None"),
    "threads_0": (SDPA, GOOD, {"n_threads": 0}, ArgumentError, "n_threads | at least 1 | 0"),
    "threads_negative": (KMEANS, {"x": ROWS}, {"n_threads": -2}, ArgumentError, "n_threads | at least 1 | -2"),
    "threads_float": (IMPROVED, GOOD, {"n_threads": 2.0}, DTypeError, "n_threads | whole"),
    "threads_bool": (HASH, X, {"n_threads": True}, DTypeError, "n_threads | whole"),
    "threads_array": (SDPA, GOOD, {"n_threads": np.array([1, 2])}, DTypeError, "n_threads | whole"),
    # switches and words
    "causal_int": (SDPA, GOOD, {"is_causal": 1}, DTypeError, "is_causal | True or False | 1"),
    "causal_none": (IMPROVED, GOOD, {"is_causal": None}, DTypeError, "is_causal | None"),
    "clustering_word": (CLUSTER, X, {"clustering": "lshh"}, ArgumentError, "clustering | 'lsh' | 'kmeans' | 'lshh'"),
    "clustering_none": (CLUSTER, X, {"clustering": None}, ArgumentError, "clustering | 'lsh' | None"),
    "clustering_list": (CLUSTER, X, {"clustering": ["lsh"]}, ArgumentError, "clustering | 'lsh'"),
    "clustering_array": (CLUSTER, X, {"clustering": np.array("lsh | kmeans")}, ArgumentError, "clustering | 'lsh'"),
    "clustering_words": (
        CLUSTERED,
        GOOD,
        {"clustering": np.array(["lsh", "kmeans"])},
        ArgumentError,
        "clustering | 'lsh' | 'kmeans'",
    ),
    "precision_words": (SDPA, GOOD, {"precision": np.array(["float32"] * 2)}, ArgumentError, "precision | 'bfloat16'"),
    "on_error_words": (CLUSTERED, GOOD, {"on_error": np.zeros(2)}, ArgumentError, "on_error | 'warn'"),
    "error_text": (COCLUSTERED, GOOD, {"max_error": "0.1"}, DTypeError, "max_error | number | '0.1'"),
    "error_negative": (COCLUSTERED, GOOD, {"max_error": -(10**400)}, ArgumentError, "max_error | at least 0"),
    "scale_nan": (SDPA, GOOD, {"scale": float("nan")}, ArgumentError, "scale | 2.3e38 | nan"),
    "scale_inf": (CLUSTERED, GOOD, {"scale": -np.inf}, ArgumentError, "scale | 2.3e38 | -inf"),
    "scale_big": (IMPROVED, GOOD, {"scale": 1e39}, ArgumentError, "scale | 2.3e38 | 1e+39"),
    "scale_huge_int": (SDPA, GOOD, {"scale": 10**400}, ArgumentError, "scale"),
    "scale_text": (SDPA, GOOD, {"scale": "big"}, DTypeError, "scale | number | 'big'"),
    "scale_number_as_text": (SDPA, GOOD, {"scale": "0.5"}, DTypeError, "scale | number | '0.5'"),
    "scale_complex": (SDPA, GOOD, {"scale": 1j}, DTypeError, "scale | number | 1j"),
    "scale_array": (SDPA, GOOD, {"scale": np.ones(2)}, DTypeError, "scale | number"),
    # masks
    "mask_shape": (SDPA, GOOD, {"attn_mask": zeros(L, 11)}, ShapeError, "attn_mask | (2, 4, 10, 12) | (10, 11)"),
    "mask_rank_5": (SDPA, GOOD, {"attn_mask": zeros(1, B, H, L, S)}, ShapeError, "attn_mask | (1, 2, 4, 10, 12)"),
    "mask_int": (SDPA, GOOD, {"attn_mask": zeros(L, S, dtype=int)}, DTypeError, "attn_mask | bool or float | int64"),
    "mask_objects": (SDPA, GOOD, {"attn_mask": np.full((L, S), None)}, DTypeError, "attn_mask | object"),
    "mask_ragged": (SDPA, GOOD, {"attn_mask": [[True], [True, False]]}, ShapeError, "attn_mask"),
    "mask_text": (SDPA, GOOD, {"attn_mask": "causal"}, DTypeError, "attn_mask | bool or float"),
    "mask_packed": (SDPA, PACKED, {"attn_mask": zeros(L, L)}, ShapeError, "attn_mask | offsets"),
    "padding_shape": (SDPA, GOOD, {KEYS: NONE[:, :L]}, ShapeError, "key_padding_mask | (2, 12) | (2, 10)"),
    "padding_rank": (CLUSTERED, GOOD, {KEYS: NONE[:, None]}, ShapeError, "key_padding_mask | (2, 12) | (2, 1, 12)"),
    "padding_float": (SDPA, GOOD, {KEYS: zeros(B, S)}, DTypeError, "key_padding_mask | bool | float32"),
    "padding_int": (IMPROVED, GOOD, {QUERIES: NONE.view("u1")}, DTypeError, "query_padding_mask | bool | uint8"),
    "padding_query": (IMPROVED, GOOD, {QUERIES: NONE}, ShapeError, "query_padding_mask | (2, 10) | (2, 12)"),
    "padding_ragged": (SDPA, GOOD, {KEYS: [[True], [True, False]]}, ShapeError, "key_padding_mask"),
    "padding_packed": (SDPA, PACKED, {KEYS: NONE[:1, :L]}, ShapeError, "key_padding_mask | offsets"),
    "padding_hash": (HASH, X, {QUERIES: NONE[:, :3]}, ShapeError, "query_padding_mask | (2, 10) | (2, 3)"),
    "padding_kmeans": (KMEANS, {"x": ROWS}, {"padding_mask": NONE}, ShapeError, "padding_mask | (2, 10) | (2, 12)"),
    "bias_shape": (COCLUSTERED, GOOD, {"key_bias": zeros(B, L)}, ShapeError, "key_bias | (2, 12) | (2, 10)"),
    "bias_rank": (COCLUSTERED, GOOD, {"key_bias": zeros(B, 1, S)}, ShapeError, "key_bias | rank 2 | (2, 1, 12)"),
    "bias_int": (COCLUSTERED, GOOD, {"key_bias": zeros(B, S, dtype=int)}, DTypeError, "key_bias | float32 | int64"),
    "bias_packed": (COCLUSTERED, PACKED, {"key_bias": zeros(1, L)}, ShapeError, "key_bias | offsets"),
    "bias_with_padding": (
        COCLUSTERED,
        GOOD,
        {"key_bias": zeros(B, S), KEYS: NONE[:, :3]},
        ShapeError,
        "key_padding_mask | (2, 12) | (2, 3)",
    ),
    "padding_coclustered": (COCLUSTERED, GOOD, {QUERIES: NONE}, ShapeError, "query_padding_mask | (2, 10) | (2, 12)"),
    "padding_with_mask": (
        SDPA,
        GOOD,
        {"attn_mask": np.ones((B, 1, 1, S), bool), KEYS: NONE[:, :3]},
        ShapeError,
        "key_padding_mask | (2, 12) | (2, 3)",
    ),
    # packed batches
    "offsets_fall": (SDPA, PACKED, {"offsets": [0, 7, 4, L]}, ArgumentError, "offsets | 10 | 0"),
    "offsets_short": (SDPA, PACKED, {"offsets": [0, 4, 9]}, ArgumentError, "offsets | 10 | 9"),
    "offsets_long": (CLUSTERED, PACKED, {"offsets": [0, 4, 11]}, ArgumentError, "offsets | 10 | 11"),
    "offsets_start": (IMPROVED, PACKED, {"offsets": [1, 4, L]}, ArgumentError, "offsets | 0 | 10"),
    "offsets_negative": (SDPA, PACKED, {"offsets": [0, -4, L]}, ArgumentError, "offsets | -4"),
    "offsets_none": (SDPA, PACKED, {"offsets": np.zeros(0, np.int64)}, ArgumentError, "offsets | 10"),
    "offsets_empty_list": (SDPA, PACKED, {"offsets": []}, PyclattnError, "offsets"),
    "offsets_float": (SDPA, PACKED, {"offsets": [0.0, 4.0, 10.0]}, DTypeError, "offsets | whole | float64"),
    "offsets_bool": (SDPA, PACKED, {"offsets": [False, True]}, DTypeError, "offsets | whole | bool"),
    "offsets_rank": (SDPA, PACKED, {"offsets": [[0, 4, L]]}, ShapeError, "offsets | rank 1 | (1, 3)"),
    "offsets_ragged": (SDPA, PACKED, {"offsets": [[0], [4, L]]}, ShapeError, "offsets"),
    "offsets_wrap": (SDPA, PACKED, {"offsets": np.array([0, 2**64 - 1, L], np.uint64)}, ArgumentError, "offsets"),
    "offsets_padded": (SDPA, GOOD, {"offsets": [0, L]}, ShapeError, "query | rank 3 | (2, 4, 10, 8)"),
    "key_offsets_alone": (SDPA, GOOD, {"key_offsets": [0, S]}, ShapeError, "key_offsets | offsets"),
    "key_offsets_missing": (SDPA, PACKED, NINE, ShapeError, "9 | 10 | key_offsets"),
    "key_offsets_count": (SDPA, PACKED, {"key_offsets": [0, L]}, ShapeError, "key_offsets | 2 | 1"),
    "key_offsets_coclustered": (COCLUSTERED, PACKED, {"key_offsets": [0, 4, 9]}, ArgumentError, "key_offsets | 10 | 9"),
    "key_offsets_end": (IMPROVED, PACKED, {"key_offsets": [0, 4, 9]}, ArgumentError, "key_offsets | 10 | 9"),
    "offsets_kmeans": (KMEANS, TEN, {"offsets": [0, 3]}, ArgumentError, "offsets | 10 | 3"),
    # results
    "out_shape": (SDPA, GOOD, {"out": zeros(B, H, L, 5)}, ShapeError, "out | (2, 4, 10, 6) | (2, 4, 10, 5)"),
    "out_rank": (IMPROVED, GOOD, {"out": zeros(H, L, E)}, ShapeError, "out | (2, 4, 10, 6) | (4, 10, 6)"),
    "out_packed": (SDPA, PACKED, {"out": zeros(1, H, L, E)}, ShapeError, "out | (4, 10, 6) | (1, 4, 10, 6)"),
    "out_coclustered": (COCLUSTERED, GOOD, {"out": zeros(H, L, E)}, ShapeError, "out | (2, 4, 10, 6) | (4, 10, 6)"),
    "out_dtype": (CLUSTERED, GOOD, {"out": zeros(B, H, L, E, dtype=">f4")}, DTypeError, "out | float32 | >f4"),
    "out_double": (SDPA, GOOD, {"out": zeros(B, H, L, E, dtype=float)}, DTypeError, "out | float32 | float64"),
    "out_list": (SDPA, GOOD, {"out": [0.0]}, DTypeError, "out | float32 | list"),
    "out_frozen": (SDPA, GOOD, {"out": np.broadcast_to(np.float32(0), (B, H, L, E))}, ArgumentError, "out | read-only"),
    "out_columns": (SDPA, GOOD, {"out": zeros(B, H, L, 2 * E)[..., ::2]}, ArgumentError, "out | contiguous | 8"),
    # planes and starts
    "planes_width": (HASH, X, {"planes": zeros(5, D)}, ShapeError, "planes | 9 | (5, 8)"),
    "planes_rank": (CLUSTERED, GOOD, {"planes": zeros(1, 5, D + 1)}, ShapeError, "planes | rank 2 | (1, 5, 9)"),
    "planes_many": (CLUSTER, X, {"planes": zeros(64, D + 1)}, ShapeError, "planes | 63 | (64, 9)"),
    "planes_none": (CLUSTER, X, {"planes": zeros(0, D + 1)}, ShapeError, "planes | 1 | (0, 9)"),
    "planes_int": (HASH, X, {"planes": zeros(5, D + 1, dtype=np.int32)}, DTypeError, "planes | float32 | int32"),
    "planes_ragged": (HASH, X, {"planes": [[1.0], [1.0, 2.0]]}, ShapeError, "planes | rank 2"),
    "start_length": (CLUSTERED, GOOD, {"n_clusters": 3, "start": [0, 1]}, ArgumentError, "start | 3 | 2"),
    "start_repeated": (CLUSTER, X, {"n_clusters": 3, "start": [0, 4, 4]}, ArgumentError, "start | distinct | 4"),
    "start_beyond": (CLUSTERED, GOOD, {"n_clusters": 2, "start": [0, 10]}, ArgumentError, "start | 9 | 10"),
    "start_negative": (KMEANS, {"x": ROWS}, {"n_clusters": 2, "start": [-1, 3]}, ArgumentError, "start | -1"),
    "start_float": (CLUSTER, X, {"n_clusters": 2, "start": [0.0, 3.0]}, DTypeError, "start | whole | float64"),
    "start_rank": (CLUSTER, X, {"n_clusters": 2, "start": [[0, 3]]}, ShapeError, "start | rank 1 | (1, 2)"),
    "start_ragged": (CLUSTER, X, {"n_clusters": 2, "start": [[0], [1, 2]]}, ShapeError, "start"),
    "start_padded": (
        CLUSTER,
        X,
        {"n_clusters": 2, "start": [0, 5], QUERIES: np.arange(L) >= np.array([[10], [5]])},
        ArgumentError,
        "start | 4 | 5",
    ),
    "start_packed": (CLUSTERED, PACKED, {"n_clusters": 2, "start": [0, 4]}, ArgumentError, "start | 3 | 4"),
}  # fmt: skip

MODULES = ("exact", "clustered", "coclustered", "_grouping", "_metric")  # that launch kernels
NEEDS_CLUSTERS = (CLUSTERED, IMPROVED, CLUSTER, KMEANS)


def call(function, arguments):
    if function in NEEDS_CLUSTERS:
        arguments = {"n_clusters": 3, **arguments}
    positional = [arguments[name] for name in ("query", "key", "value", "x") if name in arguments]
    named = {name: value for name, value in arguments.items() if name not in ("query", "key", "value", "x")}
    return function(*positional, **named)


@pytest.mark.parametrize("name", CALLS)
def test_bad_call(name, monkeypatch):
    """The error is of our kind and of Python's, its message tells what is wrong, and no kernel has run."""
    function, good, bad, kind, texts = CALLS[name]
    call(function, good)

    def launched(*_):
        raise AssertionError("a kernel was launched")

    for module in MODULES:
        monkeypatch.setattr(f"pyclattn.functional.{module}.launch", launched)
        monkeypatch.setattr(f"pyclattn.functional.{module}.launch_together", launched, raising=False)
    with pytest.raises(kind) as caught:
        call(function, {**good, **bad})
    assert isinstance(caught.value, ValueError)
    assert not isinstance(caught.value, DTypeError) or isinstance(caught.value, TypeError)
    for text in texts.split(" | "):
        assert text in str(caught.value), f"{text!r} is not in {str(caught.value)!r}"


def test_the_kernels_would_have_run(monkeypatch):
    """The trap of `test_bad_call` catches good calls."""
    for function, good in (
        (SDPA, GOOD), (CLUSTERED, GOOD), (COCLUSTERED, LONG), (COCLUSTERED, GOOD), (HASH, X), (KMEANS, {"x": ROWS}),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            for module in MODULES:
                patch.setattr(f"pyclattn.functional.{module}.launch", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                call(function, good)


def test_unknown_arguments_are_pythons_business():
    with pytest.raises(TypeError):
        SDPA(*GOOD.values(), causal=True)


# Whatever the arrays: a right answer or an error of ours

ANY_DTYPE = st.one_of(
    hnp.floating_dtypes(endianness="?"),
    hnp.scalar_dtypes(),
    st.just(np.dtype(object)),
    st.just(np.dtype(ml_dtypes.bfloat16)),
)


@st.composite
def arrays(draw, shape):
    """An array of about this shape: of another type, order or stride, now and then of another shape."""
    shape = list(shape)
    for axis in range(len(shape)):
        if draw(st.integers(0, 19)) == 0:
            shape[axis] = draw(st.integers(0, 3))
    if draw(st.integers(0, 19)) == 0:
        shape = shape[draw(st.integers(0, len(shape))) :]
    if draw(st.integers(0, 19)) == 0:
        shape = [1, *shape]
    dtype = draw(ANY_DTYPE) if draw(st.integers(0, 4)) == 0 else np.dtype(np.float32)
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    with np.errstate(all="ignore"):
        if dtype.kind in "mMVO":
            array = np.zeros(shape, dtype)
        else:
            array = (rng.standard_normal(shape) * 3).astype(dtype)
    if array.ndim:
        order = draw(st.permutations(range(array.ndim)))
        array = np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))
        array = array[tuple(slice(None, None, draw(st.sampled_from([1, 1, -1]))) for _ in range(array.ndim))]
        if draw(st.booleans()):
            array = np.repeat(array, 2, axis=draw(st.integers(0, array.ndim - 1)))
        if draw(st.integers(0, 3)) == 0:
            array = np.broadcast_to(array[..., :1], array.shape)
    if draw(st.booleans()):
        array.setflags(write=False)
    return array


@st.composite
def calls(draw):
    """A call of a public function with about the right arguments, and a plain version of the same."""
    batch, heads, n, dim, width = (draw(st.integers(0, most)) for most in (3, 4, 20, 9, 9))
    n_keys = n if draw(st.booleans()) else draw(st.integers(0, 20))
    function = draw(st.sampled_from([SDPA, CLUSTERED, IMPROVED, COCLUSTERED, HASH, CLUSTER, KMEANS]))
    lead = [batch] if draw(st.integers(0, 3)) else []
    query = draw(arrays([*lead, heads, n, dim]))
    tensors, options = [query], {}
    if function in (SDPA, CLUSTERED, IMPROVED, COCLUSTERED):
        tensors += [draw(arrays([*lead, heads, n_keys, dim])), draw(arrays([*lead, heads, n_keys, width]))]
    small = st.integers(-1, 40)
    if not lead:
        cuts = sorted(draw(st.lists(st.integers(0, max(n, 1)), max_size=3)))
        options["offsets"] = [0, *cuts, n]
        if function in (SDPA, CLUSTERED, IMPROVED, COCLUSTERED) and n_keys != n and draw(st.booleans()):
            options["key_offsets"] = [0, *[min(cut, n_keys) for cut in cuts], n_keys]
    if function in NEEDS_CLUSTERS:
        options["n_clusters"] = draw(small)
        options["n_iterations"] = draw(st.integers(0, 3))
    if function is IMPROVED:
        options["topk"] = draw(small)
    if function is COCLUSTERED:
        options["n_exact"] = draw(st.integers(-1, 8))
        for name in ("n_query_clusters", "n_key_clusters", "rank"):
            if draw(st.booleans()):
                options[name] = draw(small)
        if lead and draw(st.integers(0, 2)) == 0:
            options["key_bias"] = draw(arrays([batch, n_keys]))
    if function in (SDPA, IMPROVED) and draw(st.booleans()):
        options["is_causal"] = True
    if function in (CLUSTERED, IMPROVED, CLUSTER):
        options["clustering"] = draw(st.sampled_from(["lsh", "lsh", "kmeans", "metric"]))
    masks = {
        SDPA: ["key"],
        CLUSTERED: ["key", "query"],
        IMPROVED: ["key", "query"],
        COCLUSTERED: ["key", "query"],
        HASH: ["query"],
        CLUSTER: ["query"],
    }
    for which in masks.get(function, []):
        if draw(st.integers(0, 2)) == 0:
            length = n_keys if which == "key" else n
            options[f"{which}_padding_mask"] = (
                np.random.default_rng(draw(st.integers(0, 99))).random((batch, length)) < 0.4
            )
    if function is SDPA and draw(st.integers(0, 2)) == 0:
        options["attn_mask"] = draw(arrays([n, n_keys]))
    if draw(st.integers(0, 9)) == 0:
        options["start"] = draw(st.lists(small, max_size=5))
    if function in (SDPA, COCLUSTERED, HASH, KMEANS):
        options.pop("start", None)
    options["n_threads"] = draw(st.integers(1, 3))
    return function, tensors, options


def plain(x):
    """A new C-contiguous copy, in float32 where it is a float."""
    return np.array(x, dtype=np.float32 if x.dtype.kind == "f" or x.dtype.name == "bfloat16" else None, order="C")


def check_same(function, options, got, want):
    """The answers of two rooms, where no choice hangs on a tie."""
    if isinstance(got, np.ndarray):
        got, want = [got], [want]
    else:
        got, want = [got.labels, got.counts], [want.labels, want.counts]
    for mine, other in zip(got, want):
        assert mine.shape == other.shape
        assert mine.dtype == other.dtype
        if mine.dtype != np.float32:
            if function is not KMEANS and options.get("clustering") not in ("kmeans", "metric"):
                assert (mine == other).all()
        elif options.get("clustering") not in ("kmeans", "metric") and function not in (IMPROVED, COCLUSTERED):
            assert np.allclose(mine, other, rtol=1e-4, atol=1e-5, equal_nan=True)
        else:
            assert (np.isfinite(mine) == np.isfinite(other)).all()


def test_any_arrays(monkeypatch):
    """No crash and no foreign exception; and an answer is that of the reference for plain copies of the arrays."""
    monkeypatch.setattr(coclustered, "SHORTEST", 3)
    outcomes = {"answered": 0, "refused": 0}

    @settings(max_examples=450)
    @given(drawn=calls())
    def run(drawn):
        function, tensors, options = drawn
        with np.errstate(all="ignore"):
            try:
                got = function(*tensors, **options)
            except PyclattnError:
                outcomes["refused"] += 1
                return
            outcomes["answered"] += 1
            if "attn_mask" in options:
                options = {**options, "attn_mask": plain(options["attn_mask"])}
            with _dispatch.forced("reference"):
                want = function(*(plain(x) for x in tensors), **options)
        check_same(function, options, got, want)

    run()
    assert min(outcomes.values()) > 50, outcomes  # else this says little
