"""`Model.estimate` beside what a fresh process takes: from before loading to the highest mark of its first run."""

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import pyclattn
from pyclattn import _dispatch
from pyclattn.functional import _scratch, coclustered
from pyclattn.functional._memory import library_bytes
from pyclattn.functional.clustered import working_bytes
from pyclattn.graph.program import Op, Program, Value
from pyclattn.model import Model

HEADS, DEPTH, LENGTH = 8, 64, 12_288
WIDTH = HEADS * DEPTH

PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
import pyclattn, pyclattn.model

def status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024

path, attention, length, width = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
model = pyclattn.load(path, attention=attention, n_threads=2)
x = np.random.default_rng(0).standard_normal((length, width), dtype=np.float32)
result = model(x=x)
print(json.dumps([status("VmHWM") - before, model.estimate(x=x.shape)]))
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """One layer: projections, attention, projection, residual."""
    rng = np.random.default_rng(1)
    constants = {n: (rng.standard_normal((WIDTH, WIDTH)) * 0.05).astype(np.float32) for n in ("wq", "wk", "wv", "wo")}
    constants["split"], constants["join"] = np.array([1, -1, HEADS, DEPTH]), np.array([-1, WIDTH])
    ops = []
    for n in "qkv":
        ops += [Op("pyclattn:Linear", ("x", f"w{n}"), (n,)), Op("Reshape", (n, "split"), (f"{n}h",))]
    ops += [
        Op("pyclattn:Attention", ("qh", "kh", "vh"), ("a",), {"layout": "blhd"}, "attention"),
        Op("Reshape", ("a", "join"), ("joined",)),
        Op("pyclattn:Linear", ("joined", "wo"), ("p",)),
        Op("Add", ("p", "x"), ("y",)),
    ]
    shape = ("n", WIDTH)
    program = Program([Value("x", "float32", shape)], [Value("y", "float32", shape)], ops, constants)
    path = tmp_path_factory.mktemp("estimate") / "layer.safetensors"
    Model(program).save(path)
    return path


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """Kernels in Numba's cache: the estimate does not count what compiling them takes."""
    rows = np.ones((1, 1, 1024, 8), np.float32)
    pyclattn.improved_clustered_attention(rows, rows, rows, n_clusters=4)
    pyclattn.coclustered_attention(rows, rows, rows, n_exact=4)


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is read and reset through /proc")
@pytest.mark.parametrize("attention", ["exact", "clustered", "improved-clustered", "coclustered"])
def test_estimate_is_the_measured_peak(path, attention):
    command = [sys.executable, "-c", PROGRAM, str(path), json.dumps(attention), str(LENGTH), str(WIDTH)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    measured, estimate = json.loads(run.stdout)
    assert 0.85 <= estimate / measured <= 1.15, f"estimate {estimate / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB"


SHAPES = {
    "improved": ((1, 6, 5330, 64), {"n_clusters": 100, "topk": 32}),
    "clustered": ((2, 2, 20_000, 16), {"n_clusters": 100}),
    "keys in parts": ((1, 1, 30_000, 16), {"n_clusters": 300, "topk": 64}),
    "kmeans": ((1, 4, 8192, 32), {"n_clusters": 50, "topk": 8, "clustering": "kmeans", "n_iterations": 2}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_working_bytes_are_those_allocated(name):
    shape, parameters = SHAPES[name]
    query = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    out = np.empty_like(query)
    function = pyclattn.improved_clustered_attention if "topk" in parameters else pyclattn.clustered_attention
    _dispatch.room_of("attention.merge_partials")  # what Numba holds is counted apart
    tracemalloc.start()
    try:
        function(query, query, query, **parameters, n_threads=2, out=out)
        allocated = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    libraries = library_bytes("attention.merge_partials")
    told = working_bytes(shape, shape, shape, n_threads=2, **parameters) - libraries
    assert libraries > 0
    assert 0.85 <= told / allocated <= 1.15, f"told {told / 1e6:.2f} MB, allocated {allocated / 1e6:.2f} MB"


# batch, heads, length, head_dim; heads of keys; width of values
COCLUSTERED = {
    "heads": ((1, 6, 5330, 64), 6, 64, {}),
    "heads in rounds": ((1, 12, 16_384, 64), 12, 64, {"n_exact": 64}),
    "entries in rounds": ((8, 4, 6000, 32), 4, 16, {"n_exact": 64}),
    "grouped": ((2, 8, 6000, 32), 2, 32, {"n_query_clusters": 300, "n_key_clusters": 200, "rank": 5}),
    "wide heads": ((1, 2, 1024, 256), 2, 256, {}),
    "more key clusters": ((1, 2, 2048, 32), 2, 48, {"n_query_clusters": 8, "n_key_clusters": 1500}),
}


@pytest.mark.parametrize("name", COCLUSTERED)
def test_coclustered_bytes_are_those_allocated(name):
    """Without what a thread holds, which NumPy does not know of."""
    shape, n_kv_heads, width, parameters = COCLUSTERED[name]
    rng = np.random.default_rng(0)
    shapes = shape, (shape[0], n_kv_heads, *shape[2:]), (shape[0], n_kv_heads, shape[2], width)
    tensors = [rng.standard_normal(s, dtype=np.float32) for s in shapes]
    out = np.empty((*shape[:3], width), np.float32)
    pyclattn.coclustered_attention(*tensors, **parameters, n_threads=2, out=out)
    _scratch._forget()  # what is kept from call to call is not seen again
    tracemalloc.start()
    try:
        pyclattn.coclustered_attention(*tensors, **parameters, n_threads=2, out=out)
        allocated = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    told = coclustered.working_bytes(*shapes, n_threads=0, **parameters)
    assert 0.95 <= told / allocated <= 1.05, f"told {told / 1e6:.2f} MB, allocated {allocated / 1e6:.2f} MB"


@pytest.mark.parametrize("shape", [(0, 4, 2000, 64), (1, 0, 2000, 64)], ids=str)
def test_no_sequence_and_no_head_can_be_told(shape):
    """A converted model asks before it runs an empty batch."""
    assert coclustered.working_bytes(shape, shape, shape, n_threads=2) <= 1 << 20


PROGRAM_OF_COCLUSTERS = """
import json, sys
import numpy as np
import pyclattn
from pyclattn.functional.coclustered import working_bytes

def status(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

shape, n_exact = json.loads(sys.argv[1])
rng = np.random.default_rng(0)
rows = [rng.standard_normal(shape, dtype=np.float32) for _ in range(3)]
pyclattn.coclustered_attention(*(x[:, :, :1100] for x in rows), n_exact=16, n_threads=2)  # what is loaded once
out = np.ones(shape, np.float32)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
pyclattn.coclustered_attention(*rows, n_exact=n_exact, n_threads=2, out=out)
print(json.dumps([status("VmHWM") - before, working_bytes(shape, shape, shape, n_exact=n_exact, n_threads=2)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is read and reset through /proc")
@pytest.mark.parametrize("case", [((1, 6, 5330, 64), 128), ((1, 4, 3000, 128), 128), ((1, 1, 65_536, 64), 64)], ids=str)
def test_coclustered_bytes_are_those_resident(case):
    """With what threads hold: of long sequences the lists of keys, for rows without structure the most."""
    command = [sys.executable, "-c", PROGRAM_OF_COCLUSTERS, json.dumps(case)]
    taken, told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 1 <= told / taken <= 1.2, f"told {told / 1e6:.1f} MB, taken {taken / 1e6:.1f} MB"


PROGRAM_OF_POINTS = """
import json, sys
import numpy as np
import pyclattn
from pyclattn.functional.points import working_bytes

def status(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

n, k, is_masked = json.loads(sys.argv[1])
rng = np.random.default_rng(0)
queries, points = (rng.standard_normal((1, n, 3), dtype=np.float32) for _ in range(2))
how = {"n_threads": 2, "key_padding_mask": rng.random((1, n)) < 0.3 if is_masked else None}
pyclattn.nearest_neighbors(queries[:, :99], points[:, :99], 9, n_threads=2)  # what is loaded once
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
found = pyclattn.nearest_neighbors(queries, points, k, **how)
taken = status("VmHWM") - before - found.nbytes
print(json.dumps([taken, working_bytes(points.shape, n, k, n_threads=2), found.nbytes]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is read and reset through /proc")
@pytest.mark.parametrize("case", [(30_000, 64, False), (30_000, 64, True), (30_000, 500, True)], ids=str)
def test_neighbors_take_no_more_than_is_told(case):
    command = [sys.executable, "-c", PROGRAM_OF_POINTS, json.dumps(case)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    taken, told, output = json.loads(run.stdout)
    assert taken <= told + 500_000, f"took {taken / 1e6:.2f} MB, told {told / 1e6:.2f} MB"  # stacks, the allocator
    assert told < 0.3 * output
