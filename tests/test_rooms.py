"""The rooms: all are here, each can be forced, and the library works where one is missing."""

import importlib
import os
import platform
import subprocess
import sys

import compare
import inputs
import numpy as np
import pytest

import pyclattn
from pyclattn import _config, _dispatch
from pyclattn.arrays import PANEL
from pyclattn.errors import ArgumentError, BackendError
from pyclattn.functional import coclustered


@pytest.mark.parametrize("room", ["reference", "numba", "cython"])
def test_this_checkout_has_every_room(room):
    """Without this, a missing build would turn the tests of fast rooms into tests of the reference."""
    assert _dispatch.installed(room)


@pytest.mark.parametrize("kernel", _dispatch.OWNERS)
def test_each_kernel_comes_from_its_owner(kernel):
    with _dispatch.forced("auto"):
        assert _dispatch.room_of(kernel) == _dispatch.OWNERS[kernel]
    for room in ("reference", "numba", "cython"):
        with _dispatch.forced(room):
            expected = room if room in ("reference", _dispatch.OWNERS[kernel]) else "reference"
            assert _dispatch.room_of(kernel) == expected


@pytest.mark.parametrize("kernel", _dispatch.OWNERS)
def test_the_reference_has_every_kernel(kernel):
    module, name = kernel.split(".")
    assert callable(getattr(importlib.import_module(f"pyclattn.reference.{module}"), name))


def test_instruction_sets_begin_with_the_baseline():
    from pyclattn._ext import int8, isa

    for levels in (isa.available(), int8.available()):
        assert levels[0] == "baseline"
        assert len(set(levels)) == len(levels)
    assert isa.selected() in isa.available()


def test_work_is_cut_into_whole_panels_of_every_instruction_set(room):
    assert PANEL % _dispatch.panel_lanes() == 0


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="compares with what Linux says of the processor"
)
def test_instruction_sets_are_those_of_the_processor():
    from pyclattn._ext import int8, isa

    with open("/proc/cpuinfo") as info:
        flags = set(next(line for line in info if line.startswith("flags")).split())
    avx2 = {"avx2", "fma"}
    avx512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", *avx2}
    expected = {"avx2": avx2, "avx512": avx512}
    assert isa.available()[1:] == [name for name, needed in expected.items() if needed <= flags]
    expected = {
        "avx2": avx2, "avxvnni": {"avx_vnni", *avx2}, "avx512": avx512, "avx512vnni": {"avx512_vnni", *avx512}
    }  # fmt: skip
    assert int8.available()[1:] == [name for name, needed in expected.items() if needed <= flags]
    with _dispatch.forced(isa=isa.available()[-1]):
        assert (isa.missing_bfloat16() == "") == ({"avx512_bf16", *avx512} <= flags)


def test_forced_ends_with_its_block_whatever_happens():
    from pyclattn._ext import isa

    before, level = _dispatch.room_of("attention.attend"), isa.selected()
    try:
        with _dispatch.forced("reference", isa="baseline"):
            assert _dispatch.room_of("attention.attend") == "reference"
            assert isa.selected() == "baseline"
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert _dispatch.room_of("attention.attend") == before
    assert isa.selected() == level


def test_kernels_launched_together_are_those_launched_one_by_one(room):
    """More of them than threads, some without a task."""
    rng = np.random.default_rng(0)
    launches, wanted, found = [], [], []
    for n in (500, 0, 70, 300):
        labels, spans = rng.integers(0, 5, (2, n)).astype(np.int32), np.array([[0, 0, n]])
        tasks = np.array([[0, 0], [0, 1]])[: min(n, 2)]
        arguments = labels, spans, np.arange(n), np.array([0, 5]), tasks
        for kept in (wanted, found):
            kept.append((np.full((2, n), -7), np.full((2, 6), -7)))
        _dispatch.launch("clustering.sort_by_label", 1, *arguments, *wanted[-1])
        launches.append(("clustering.sort_by_label", *arguments, *found[-1]))
    _dispatch.launch_together(3, *launches)
    for (order, offsets), (other_order, other_offsets) in zip(wanted, found):
        np.testing.assert_array_equal(order, other_order)
        np.testing.assert_array_equal(offsets, other_offsets)
    assert (wanted[0][0] >= 0).all()


def test_unknown_instruction_set():
    with pytest.raises(BackendError, match="sse9"), _dispatch.forced(isa="sse9"):
        pass
    assert _dispatch.room_of("attention.attend") == _dispatch.OWNERS["attention.attend"]


def test_unknown_backend(monkeypatch):
    monkeypatch.setenv("PYCLATTN_BACKEND", "fortran")
    with pytest.raises(ArgumentError, match=r"PYCLATTN_BACKEND.*fortran"):
        pyclattn.hash_queries(np.ones((1, 1, 2, 3), np.float32))


def test_environment_chooses_the_room(monkeypatch):
    for room in ("reference", "numba", "cython"):
        monkeypatch.setenv("PYCLATTN_BACKEND", f" {room.upper()} ")
        assert _config.backend() == room
        assert _dispatch.room_of("clustering.hamming_lloyd") == ("numba" if room == "numba" else "reference")
        assert _dispatch.room_of("attention.attend") == ("cython" if room == "cython" else "reference")


def test_environment_chooses_the_instruction_set():
    program = "from pyclattn._ext import isa; print(isa.selected())"
    environment = dict(os.environ, PYCLATTN_ISA="baseline")
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert ran.stdout.strip() == "baseline"
    environment["PYCLATTN_ISA"] = "sse9"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert ran.returncode == 1
    assert "BackendError" in ran.stderr
    assert "sse9" in ran.stderr


def every_method(tensors):
    """What each attention gives for query (2, 4, 70, 16), key and value (2, 2, 90, 16)."""
    query, *others = tensors
    neighbors = pyclattn.nearest_neighbors(query[:, 0], others[0][:, 0], 9)
    own = [x[:, :, :70].repeat(2, axis=1) for x in others]
    return [
        pyclattn.scaled_dot_product_attention(*tensors),
        pyclattn.clustered_attention(*tensors, n_clusters=7),
        pyclattn.improved_clustered_attention(*tensors, n_clusters=7, topk=9),
        pyclattn.improved_clustered_attention(*tensors, n_clusters=7, topk=9, clustering="kmeans"),
        pyclattn.improved_clustered_attention(*tensors, n_clusters=7, topk=9, clustering="metric"),
        pyclattn.coclustered_attention(*tensors, n_exact=9),
        pyclattn.centroid_attention(*tensors),
        pyclattn.centroid_attention(*tensors, neighbors=neighbors),
        pyclattn.cast_attention(query, *own, query[0, :, :7].swapaxes(0, 1), query[:, 0, :, 0], cluster_size=10),
    ]


MISSING = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None  # importing it raises ImportError
import numpy as np
sys.path.insert(0, {tests!r})
import inputs
import test_rooms
import pyclattn
from pyclattn import _dispatch
from pyclattn.functional import coclustered
coclustered.SHORTEST = 64
tensors = inputs.tensors(batch=2, heads=4, kv_heads=2, n=70, n_keys=90, dim=16)
found = test_rooms.every_method(tensors)
assert all(_dispatch.room_of(kernel) != {room!r} for kernel in _dispatch.OWNERS)
try:
    with _dispatch.forced({room!r}):
        pyclattn.hash_queries(tensors[0])
except pyclattn.errors.BackendError as error:
    assert {room!r} in str(error), error
else:
    raise AssertionError("a forced room that is missing must raise")
np.savez({out!r}, *found)
"""


@pytest.mark.parametrize(
    ("room", "blocked"),
    [
        ("numba", ["numba"]),
        (
            "cython",
            ["pyclattn._ext.isa", "pyclattn._ext.attention", "pyclattn._ext.clustering", "pyclattn._ext.coclusters"],
        ),
    ],
)
def test_a_missing_room_costs_time_only(room, blocked, tmp_path, monkeypatch):
    """Without Numba or without the compiled files: the same results, and a forced room that is missing raises."""
    monkeypatch.setattr(coclustered, "SHORTEST", 64)
    out = str(tmp_path / "found.npz")
    tests = os.path.dirname(os.path.abspath(__file__))
    program = MISSING.format(room=room, blocked=blocked, out=out, tests=tests)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYCLATTN_")}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    tensors = inputs.tensors(batch=2, heads=4, kv_heads=2, n=70, n_keys=90, dim=16)
    want = every_method(tensors)
    with np.load(out) as found:
        for number, expected in enumerate(want):
            compare.assert_close(found[f"arr_{number}"], expected, compare.CLUSTERED)
