"""The pool: numbers, quotas, errors, many callers at once, and life after fork."""

import ctypes
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import compare
import inputs
import numpy as np
import pytest

import pyclattn
from pyclattn import _threads
from pyclattn.errors import ArgumentError, DTypeError
from pyclattn.functional import coclustered


@pytest.fixture(autouse=True)
def short_sequences_too(monkeypatch):
    """Co-clustered attention takes those of these tests exactly otherwise."""
    monkeypatch.setattr(coclustered, "SHORTEST", 64)


# How many threads a call gets


def test_n_threads_as_given(monkeypatch):
    monkeypatch.setenv("PYCLATTN_NUM_THREADS", "5")
    assert _threads.resolve(3) == 3
    assert _threads.resolve(np.int64(2)) == 2
    assert _threads.resolve(None) == 5


def test_the_default_is_what_the_process_may_use(monkeypatch):
    monkeypatch.delenv("PYCLATTN_NUM_THREADS", raising=False)
    monkeypatch.setattr(_threads, "_default", None)
    assert 1 <= _threads.resolve(None) <= len(os.sched_getaffinity(0))
    monkeypatch.setenv("PYCLATTN_NUM_THREADS", " ")
    assert _threads.resolve(None) == _threads.available_cpus()


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "1e3", "²"])
def test_a_bad_environment(monkeypatch, text):
    monkeypatch.setenv("PYCLATTN_NUM_THREADS", text)
    with pytest.raises(
        ArgumentError, match=re.escape(f"PYCLATTN_NUM_THREADS must be a whole number of at least 1, got {text!r}")
    ):
        pyclattn.hash_queries(np.ones((1, 1, 2, 3), np.float32))


@pytest.mark.parametrize("given", [0, -1, -(2**70)])
def test_too_few(given):
    with pytest.raises(ArgumentError, match=f"n_threads must be at least 1, got {given}"):
        _threads.resolve(given)


@pytest.mark.parametrize("given", [4097, 2**70])
def test_too_many(given, monkeypatch):
    """They would be made."""
    with pytest.raises(ArgumentError, match=f"n_threads must be at most 4096, got {given}"):
        _threads.resolve(given)
    monkeypatch.setenv("PYCLATTN_NUM_THREADS", str(given))
    with pytest.raises(ArgumentError, match=f"PYCLATTN_NUM_THREADS must be at most 4096, got '{given}'"):
        _threads.resolve(None)


def test_where_no_more_threads_are_allowed_the_others_do_the_work(monkeypatch):
    """As in a container with a limit of processes."""
    start, pool, calls = threading.Thread.start, _threads._Pool(), []

    def third_fails(thread):
        if len(pool.threads) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", third_fails)
    for _ in range(2):
        pool.run(lambda: calls.append(1), 1000)
    assert len(pool.threads) == 2
    assert pool.jobs.qsize() <= 4
    assert calls


@pytest.mark.parametrize("given", [1.0, "2", True, np.bool_(True), [1], np.array([1, 2]), object()])
def test_no_number(given):
    with pytest.raises(DTypeError, match="n_threads"):
        _threads.resolve(given)


def test_affinity_binds(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert _threads.available_cpus() == 1


FILES_V2 = {"proc/self/cgroup": "0::/pod/box\n"}
FILES_V1 = {"proc/self/cgroup": "12:cpu,cpuacct:/pod/box\n11:memory:/pod/box\n1:name=systemd:/other\n0::/\n"}
V1 = "sys/fs/cgroup/cpu"

QUOTAS = {
    "v2": ({**FILES_V2, "sys/fs/cgroup/pod/box/cpu.max": "250000 100000\n"}, 2.5),
    "v2_max": ({**FILES_V2, "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n"}, float("inf")),
    "v2_parent": (
        {
            **FILES_V2,
            "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pod/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/cpu.max": "900000 100000\n",
        },
        1.5,
    ),
    "v2_namespace": (  # inside a container its own group is the root
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"},
        0.5,
    ),
    "v2_hidden": (FILES_V2, float("inf")),
    "v2_odd": ({**FILES_V2, "sys/fs/cgroup/pod/box/cpu.max": "what\n", "sys/fs/cgroup/cpu.max": "\n"}, float("inf")),
    "v2_no_period": ({**FILES_V2, "sys/fs/cgroup/pod/box/cpu.max": "100000 0\n"}, float("inf")),
    "v1": (
        {**FILES_V1, f"{V1}/pod/box/cpu.cfs_quota_us": "300000\n", f"{V1}/pod/box/cpu.cfs_period_us": "100000\n"},
        3.0,
    ),
    "v1_unlimited": (
        {**FILES_V1, f"{V1}/pod/box/cpu.cfs_quota_us": "-1\n", f"{V1}/pod/box/cpu.cfs_period_us": "100000\n"},
        float("inf"),
    ),
    "v1_container": (  # the host's path is not to be seen, the mounted root is
        {**FILES_V1, f"{V1}/cpu.cfs_quota_us": "120000\n", f"{V1}/cpu.cfs_period_us": "100000\n"},
        1.2,
    ),
    "nothing": ({}, float("inf")),
    "nonsense": ({"proc/self/cgroup": "::::\n\nabc\n"}, float("inf")),
}


@pytest.mark.parametrize("name", QUOTAS)
def test_cgroup_quota(monkeypatch, tmp_path, name):
    files, want = QUOTAS[name]
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.setattr(_threads, "Path", lambda path: tmp_path / str(path).lstrip("/"))
    assert _threads._cgroup_quota() == want
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert _threads.available_cpus() == (8 if want > 8 else max(1, int(np.ceil(want))))


# One call on several threads


def test_run_calls_on_as_many_threads_as_asked():
    """With a barrier of three, the call can end only if three threads are inside at once."""
    barrier, seen = threading.Barrier(3, timeout=30), set()

    def function():
        seen.add(threading.get_ident())
        barrier.wait()

    _threads.run(function, 3)
    assert len(seen) == 3
    assert threading.get_ident() in seen


def test_run_returns_when_all_are_done():
    done, barrier = [], threading.Barrier(2, timeout=30)

    def function():
        barrier.wait()
        if threading.current_thread().name == "pyclattn":
            time.sleep(0.05)
        done.append(threading.current_thread().name)

    for _ in range(5):
        done.clear()
        _threads.run(function, 2)
        assert sorted(done)[-1] == "pyclattn"
        assert len(done) == 2


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_errors_reach_the_caller(n_threads):
    def function():
        raise KeyError("in a kernel")

    for _ in range(3):
        with pytest.raises(KeyError, match="in a kernel"):
            _threads.run(function, n_threads)


def test_an_error_in_a_helper_reaches_the_caller():
    """The caller's own part is fine; the other thread's is not."""
    barrier = threading.Barrier(2, timeout=30)

    def function():
        barrier.wait()
        if threading.current_thread().name == "pyclattn":
            raise MemoryError("in a helper")

    for _ in range(3):
        with pytest.raises(MemoryError, match="in a helper"):
            _threads.run(function, 2)
    _threads.run(lambda: None, 2)  # and the pool lives on


def test_a_busy_pool_does_not_hold_up_a_call():
    """While every helper is inside another call, the caller does its work alone."""
    inside, release = threading.Barrier(3, timeout=30), threading.Event()

    def long():
        inside.wait()
        release.wait(30)

    other = threading.Thread(target=_threads.run, args=(long, 2))
    other.start()
    try:
        inside.wait()
        calls = []
        _threads.run(lambda: calls.append(1), 1 + len(_threads._pool.threads))
        assert calls
    finally:
        release.set()
        other.join()


def test_a_call_within_a_call():
    """A kernel does not start others; if one did, it must not wait for itself."""
    counts = []
    _threads.run(lambda: _threads.run(lambda: counts.append(1), 3), 3)
    assert counts


def test_threads_are_made_once():
    for _ in range(3):
        _threads.run(lambda: None, 4)
    before = threading.active_count()
    for _ in range(200):
        _threads.run(lambda: None, 4)
    assert threading.active_count() == before


@pytest.fixture
def placed(monkeypatch):
    """What a new pool on CPUs 3 and 5 asks of the system: the caller's CPU in a list to change, and masks by thread."""
    at, masks = [3], {}
    monkeypatch.setattr(_threads, "_pool", _threads._Pool())
    monkeypatch.setattr(_threads, "_current_cpu", lambda: at[0])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", masks.__setitem__, raising=False)
    return at, masks


def test_helpers_are_kept_off_the_callers_cpu(placed):
    at, masks = placed
    _threads.run(lambda: None, 2)
    (helper,) = _threads._pool.threads
    assert masks == {helper.native_id: {5}}
    masks.clear()
    _threads.run(lambda: None, 2)
    assert not masks  # nothing has moved
    at[0] = 5
    _threads.run(lambda: _threads.run(lambda: None, 2), 2)  # of two calls only the first places
    assert masks == {helper.native_id: {3}}
    at[0] = 7  # a CPU that the process may not use
    _threads.run(lambda: None, 3)
    assert masks == {helper.native_id: {3}}
    at[0] = 3
    _threads.run(lambda: None, 2)
    assert masks == {thread.native_id: {5} for thread in _threads._pool.threads}


def test_a_system_that_refuses_to_place_threads_is_left_alone(placed, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    done = []
    for _ in range(2):
        _threads.run(lambda: done.append(1), 2)
    assert done
    assert not _threads._pool.cpus


@pytest.mark.parametrize("cpus", [{0}, set(range(8))])
def test_with_one_cpu_or_many_placing_is_left_to_the_system(placed, monkeypatch, cpus):
    _, masks = placed
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cpus)
    _threads.run(lambda: None, 2)
    assert not masks


def test_idle_threads_do_not_spin():
    """Between calls the pool's threads sleep: their processor time does not move at all."""
    program = (
        "import time\n"
        "from pathlib import Path\n"
        "import numpy as np, pyclattn\n"
        "x = np.ones((1, 4, 1500, 16), np.float32)\n"
        "pyclattn.scaled_dot_product_attention(x, x, x, n_threads=4)\n"
        "def times():\n"
        "    stats = [path.read_text().rsplit(')')[-1].split() for path in Path('/proc/self/task').glob('*/stat')]\n"
        "    return sorted(stat[11:13] for stat in stats if stat[0] != 'R'), len(stats)\n"
        "time.sleep(0.1)\n"
        "before = times()\n"
        "time.sleep(0.3)\n"
        "print(before == times() and before[1] >= 4)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "True"


def cast(tensors, n_threads):
    surrogates, gate = tensors[0][0, :, :9].swapaxes(0, 1), tensors[0][:, 0, :, 0]
    return pyclattn.cast_attention(
        *tensors, surrogates, gate, cluster_size=60, clustering="sa_topk", n_threads=n_threads
    )  # fmt: skip


# Many callers


def test_eight_threads_on_shared_inputs(room):
    tensors = inputs.tensors(batch=2, heads=2, n=150, dim=16)
    for x in tensors:
        x.setflags(write=False)
    calls = [
        lambda: pyclattn.scaled_dot_product_attention(*tensors, n_threads=3),
        lambda: pyclattn.improved_clustered_attention(*tensors, n_clusters=9, topk=8, n_threads=3),
        lambda: pyclattn.clustered_attention(*tensors, n_clusters=9, clustering="kmeans", n_threads=2),
        lambda: pyclattn.improved_clustered_attention(*tensors, n_clusters=9, clustering="metric", n_threads=2),
        lambda: pyclattn.coclustered_attention(*tensors, n_exact=9, n_threads=3),
        lambda: pyclattn.cluster_queries(tensors[0], n_clusters=9, n_threads=2).labels,
        lambda: cast(tensors, 3),
    ]
    want = [call() for call in calls]
    barrier, failures = threading.Barrier(8, timeout=60), []

    def work(number):
        try:
            barrier.wait()
            for turn in range(6):
                which = (number + turn) % len(calls)
                compare.assert_same_bits(calls[which](), want[which])
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures, failures[0]


# Fork


def everything(tensors):
    return [
        pyclattn.scaled_dot_product_attention(*tensors, n_threads=3).tobytes(),
        pyclattn.improved_clustered_attention(*tensors, n_clusters=9, topk=8, n_threads=3).tobytes(),
        pyclattn.coclustered_attention(*tensors, n_exact=9, n_threads=3).tobytes(),
        pyclattn.kmeans(tensors[0], n_clusters=9, n_threads=3).labels.tobytes(),
        cast(tensors, 3).tobytes(),
    ]


def in_child(queue, tensors):
    queue.put(everything(tensors))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_after_use():
    """The child has none of the parent's threads and makes its own; the parent goes on."""
    tensors = inputs.tensors(batch=2, heads=4, n=400, dim=16)
    want = everything(tensors)
    context = multiprocessing.get_context("fork")
    for _ in range(2):
        queue = context.Queue()
        child = context.Process(target=in_child, args=(queue, tensors))
        child.start()
        try:
            assert queue.get(timeout=60) == want
        finally:
            child.join(timeout=10)
            if child.is_alive():
                child.kill()
        assert child.exitcode == 0
        assert everything(tensors) == want


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_during_a_call():
    """The pool's lock may be held and its queue full at the fork: the child must not inherit either."""
    release, inside = threading.Event(), threading.Barrier(3, timeout=30)

    def long():
        inside.wait()
        release.wait(30)

    other = threading.Thread(target=_threads.run, args=(long, 2))
    other.start()
    try:
        inside.wait()
        child = os.fork()
        if child == 0:
            calls = []
            barrier = threading.Barrier(2, timeout=20)
            try:
                _threads.run(lambda: (barrier.wait(), calls.append(1)), 2)
            finally:
                os._exit(0 if len(calls) == 2 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        release.set()
        other.join()


# The host's BLAS

# OpenBLAS under the names that wheels give it.
GETTERS = [f"{head}openblas_get_num_threads{tail}" for head in ("", "scipy_") for tail in ("", "64_", "_64_")]


def loaded_blas():
    """(get, set) of every OpenBLAS this process has loaded."""
    maps = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
    found = []
    for path in sorted(path for path in maps if "blas" in Path(path).name):
        library = ctypes.CDLL(path)
        for name in GETTERS:
            if hasattr(library, name):
                found.append((getattr(library, name), getattr(library, name.replace("get_num", "set_num"))))
                break
    return found


def test_the_hosts_blas_is_as_before(room):
    """Whatever number of threads the host has set, every call leaves it."""
    import scipy.linalg.blas  # noqa: F401  (the second BLAS of a usual process)

    libraries = loaded_blas()
    assert libraries, "no OpenBLAS found: this check needs NumPy's wheels"
    before = [get() for get, _ in libraries]
    tensors = inputs.tensors(batch=2, heads=2, n=200, dim=16)
    try:
        for n_threads in (1, 2):
            for _, put in libraries:
                put(n_threads)
            for mine in (1, 3):
                pyclattn.scaled_dot_product_attention(*tensors, n_threads=mine)
                pyclattn.improved_clustered_attention(*tensors, n_clusters=5, n_threads=mine)
                pyclattn.coclustered_attention(*tensors, n_exact=9, n_threads=mine)
                pyclattn.kmeans(tensors[0], n_clusters=5, n_threads=mine)
                assert [get() for get, _ in libraries] == [n_threads] * len(libraries)
    finally:
        for (_, put), number in zip(libraries, before):
            put(number)
