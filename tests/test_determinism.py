"""The same bits for any number of threads, from run to run, and a sequence the same in any company."""

import subprocess
import sys
from pathlib import Path

import compare
import inputs
import numpy as np
import pytest
from conftest import ROOMS

import pyclattn
from pyclattn import cluster_queries, hash_queries, kmeans
from pyclattn.functional import coclustered


@pytest.fixture(autouse=True)
def short_ones_too(monkeypatch):
    """Sequences that would be computed exactly are clustered."""
    monkeypatch.setattr(coclustered, "SHORTEST", 64)


def public(tensors, n_threads, **options):
    """Every array that the public functions make of these tensors."""
    more = {"n_threads": n_threads, **options}
    found = []
    for causal in (False, True):
        found.append(pyclattn.scaled_dot_product_attention(*tensors, is_causal=causal, **more))
        found.append(pyclattn.improved_clustered_attention(*tensors, n_clusters=30, topk=8, is_causal=causal, **more))
    for clustering in ("lsh", "kmeans"):
        how = {"n_clusters": 30, "n_iterations": 3, "clustering": clustering}
        found.append(pyclattn.clustered_attention(*tensors, **how, **more))
        clusters = cluster_queries(tensors[0], **how, **more)
        found += [clusters.labels, clusters.counts, clusters.centroids]
    how = {"n_clusters": 30, "topk": 8, "clustering": "metric"}
    found.append(pyclattn.improved_clustered_attention(*tensors, **how, **more))
    found.append(pyclattn.coclustered_attention(*tensors, n_exact=16, **more))
    query, group = tensors[0], tensors[0].shape[1] // tensors[1].shape[1]
    own = [np.repeat(x, group, axis=1) for x in tensors[1:]]
    surrogates, gate = query[0, :, :4].swapaxes(0, 1), query[:, 0, :, 0]
    size = -(-query.shape[2] // 4)
    for clustering in ("topk", "sa_topk"):
        how = {"cluster_size": size, "clustering": clustering}
        found.append(pyclattn.cast_attention(query, *own, surrogates, gate, **how, **more))
    few, near = tensors[0][:, :, :5], np.arange(15).reshape(1, 5, 3) % tensors[1].shape[2]
    for neighbors in (None, np.broadcast_to(near, (len(few), 5, 3))):
        found.append(pyclattn.centroid_attention(few, *tensors[1:], neighbors=neighbors, **more))
    clusters = kmeans(tensors[0], n_clusters=9, n_iterations=3, **more)
    return [*found, clusters.labels, clusters.counts, clusters.centroids, hash_queries(tensors[0], **more)]


SHAPES = {
    "many_heads": {"batch": 3, "heads": 4, "kv_heads": 2, "n": 300, "dim": 32},
    "many_sequences": {"batch": 17, "heads": 1, "n": 70, "dim": 16},
    "one_long": {"batch": 1, "heads": 1, "n": 9000, "dim": 4, "width": 3},
    "two_heads": {"batch": 1, "heads": 2, "n": 2500, "dim": 16},
    "short": {"batch": 2, "heads": 1, "n": 5, "dim": 8},
}


# The reference is slow, and on one thread whatever the number: there the cutting into tasks is what may differ.
SMALL = ("many_sequences", "short")
CASES = [(room, shape) for room in ROOMS for shape in SHAPES if shape in SMALL or room.backend in ("cython", "auto")]


@pytest.mark.parametrize(("room", "shape"), CASES, ids=str)
def test_same_bits_for_any_number_of_threads(room, shape):
    tensors = inputs.tensors(**SHAPES[shape])
    with room.forced():
        want = public(tensors, 1)
        for n_threads in (2, 3, 7, 1):
            for number, (got, expected) in enumerate(zip(public(tensors, n_threads), want)):
                assert got.tobytes() == expected.tobytes(), f"array {number} with {n_threads} threads"


def test_same_bits_for_long_keys():
    """Above 8,192 keys the centroids' work is cut over the keys, by their number and not by the threads."""
    tensors = inputs.tensors(n=20, n_keys=40_000, dim=8)
    options = {"n_clusters": 10, "topk": 20}
    want = pyclattn.improved_clustered_attention(*tensors, n_threads=1, **options)
    for n_threads in (2, 3, 7):
        got = pyclattn.improved_clustered_attention(*tensors, n_threads=n_threads, **options)
        compare.assert_same_bits(got, want)


def test_same_bits_with_masks(room):
    n = 300 if room.backend in ("reference", "numba") else 700
    tensors = inputs.tensors(batch=2, heads=2, n=n, dim=32)
    rng = np.random.default_rng(0)
    bias = rng.standard_normal((n, n)).astype(np.float32)
    holes = inputs.padding(2, n, holes=0.3)
    for options in ({"attn_mask": bias}, {"attn_mask": bias > 0}, {"key_padding_mask": holes, "is_causal": True}):
        want = pyclattn.scaled_dot_product_attention(*tensors, n_threads=1, **options)
        for n_threads in (2, 3, 7):
            got = pyclattn.scaled_dot_product_attention(*tensors, n_threads=n_threads, **options)
            compare.assert_same_bits(got, want)


PROGRAM = """
import hashlib, sys
sys.path.insert(0, {tests!r})
import inputs, test_determinism
test_determinism.coclustered.SHORTEST = 64
digest = hashlib.sha256()
for array in test_determinism.public(inputs.tensors(batch=2, heads=2, n=150, dim=16), n_threads={n_threads}):
    digest.update(array.tobytes())
print(digest.hexdigest())
"""


def test_same_bits_from_process_to_process():
    """Another process, another hash seed, another number of threads."""
    tests = str(Path(__file__).parent)
    programs = [PROGRAM.format(tests=tests, n_threads=n_threads) for n_threads in (1, 3)]
    ran = [subprocess.run([sys.executable, "-c", p], capture_output=True, text=True, check=True) for p in programs]
    assert len({r.stdout for r in ran}) == 1
    assert len(ran[0].stdout.strip()) == 64


def test_a_sequence_is_the_same_in_any_company(room):
    """Draws depend on the seed and the sequence's length only: labels to the bit, outputs to rounding."""
    lengths = [70, 5, 33, 70, 1]
    n = sum(lengths)
    query, key, value = (x[0] for x in inputs.tensors(heads=2, n=n, dim=8))
    offsets = np.cumsum([0, *lengths])
    for clustering in ("lsh", "kmeans"):
        how = {"n_clusters": 40, "n_bits": 6, "n_iterations": 6, "seed": 3, "clustering": clustering}
        together = cluster_queries(query, offsets=offsets, **how)
        output = pyclattn.improved_clustered_attention(query, key, value, offsets=offsets, topk=8, **how)
        for s in range(len(lengths)):
            own = slice(*offsets[s : s + 2])
            alone = cluster_queries(query[None, :, own], **how)
            compare.assert_same_bits(together.labels[:, own], alone.labels[0])
            own_clusters = alone.counts.shape[2]
            compare.assert_same_bits(together.counts[s, :, :own_clusters], alone.counts[0])
            compare.assert_same_bits(together.centroids[s, :, :own_clusters], alone.centroids[0])
            tensors = (x[None, :, own] for x in (query, key, value))
            got = pyclattn.improved_clustered_attention(*tensors, topk=8, **how)[0]
            compare.assert_close(got, output[:, own], 1e-6)


def test_seeds_matter():
    x, _, _ = inputs.tensors(n=200, dim=8)
    found = [cluster_queries(x, n_clusters=10, seed=seed).labels.tobytes() for seed in (0, 0, 1, 2)]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_inputs_and_the_global_generator_are_left_alone(room):
    """No call writes into what it is given, and none draws from NumPy's global generator."""
    tensors = inputs.tensors(batch=2, heads=2, n=40, dim=8)
    before = [x.copy() for x in tensors]
    np.random.seed(5)  # noqa: NPY002
    state = np.random.get_state()[1].tobytes()  # noqa: NPY002
    public(tensors, 2)
    assert np.random.get_state()[1].tobytes() == state  # noqa: NPY002
    for mine, other in zip(tensors, before):
        compare.assert_same_bits(mine, other)
