"""Peak memory beyond inputs and output: nothing of size L x S is ever made.

Measured in fresh processes as the high-water mark of the resident set, after a small call of the same kind has loaded
what it loads; and as what NumPy has allocated at most (tracemalloc).
"""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys, tracemalloc
from pathlib import Path
import numpy as np
import pyclattn

def status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024

def tensors(n):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, {heads}, n, 64), dtype=np.float32) for _ in range(3)]

small, large = tensors(1200), tensors({n})
call = lambda x: pyclattn.{call}
call(small)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
out = call(large)
resident = status("VmHWM") - before - out.nbytes / 2**20
del out
tracemalloc.start()
out = call(large)
traced = tracemalloc.get_traced_memory()[1] / 2**20 - out.nbytes / 2**20
print(json.dumps([resident, traced]))
"""

EXACT = "scaled_dot_product_attention(*x, n_threads=2)"
HOLES = "np.arange(x[1].shape[2])[None] % 3 == 0"
MASKED = f"scaled_dot_product_attention(*x, n_threads=2, is_causal=True, key_padding_mask={HOLES})"
IMPROVED = "improved_clustered_attention(*x, n_clusters=100, n_threads=2)"
CLUSTERED = "clustered_attention(*x, n_clusters=100, n_threads=2)"
KMEANS = "clustered_attention(*x, n_clusters=100, clustering='kmeans', n_iterations=2, n_threads=2)"
METRIC = "improved_clustered_attention(*x, n_clusters=100, clustering='metric', n_threads=2)"
SURROGATES, GATE = "np.ones((128, {heads}, 64), 'f4')", "np.zeros(x[0].shape[::2], 'f4')"
CAST = f"cast_attention(*x, {SURROGATES}, {GATE}, cluster_size=128, n_threads=2)"
COCLUSTERED = "coclustered_attention(*x, n_exact=64, n_threads=2)"


def peak(call, n, heads):
    """Megabytes beyond inputs and output: resident, and allocated by NumPy."""
    program = PROGRAM.format(call=call, n=n, heads=heads)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


# name -> (call, length, heads, most megabytes). A matrix of 16,384 x 16,384 float32 would be 1,024.
CASES = {
    "exact": (EXACT, 16_384, 1, 32),
    "exact_masked": (MASKED, 16_384, 1, 32),
    "improved": (IMPROVED, 16_384, 12, 64),
    "clustered": (CLUSTERED, 16_384, 12, 64),
    "kmeans": (KMEANS, 16_384, 4, 64),
    "metric": (METRIC, 16_384, 12, 64),
    "coclustered": (COCLUSTERED, 16_384, 12, 96),
    # 32 of them are the queries' logits, which the mixing takes; no more are ever kept
    "cast": (CAST.format(heads=4), 16_384, 4, 64),
    "cast_sa": (CAST.format(heads=4).replace("n_threads", "clustering='sa_topk', n_threads"), 16_384, 4, 64),
    "cast, computed again": (CAST.format(heads=6), 16_384, 6, 48),
}


@pytest.mark.parametrize("name", CASES)
def test_peak(name):
    call, n, heads, most = CASES[name]
    resident, traced = peak(call, n, heads)
    assert resident <= most, f"{resident:.1f} MB resident beyond inputs and output"
    assert traced <= most, f"{traced:.1f} MB allocated beyond inputs and output"


def test_improved_grows_linearly():
    """Eight times the tokens take at most about eight times the memory (a quadratic part would take 64 times)."""
    (_, short), (_, long) = (peak(IMPROVED, n, 1) for n in (16_384, 131_072))
    assert long <= 9 * short


def test_coclustered_grows_linearly():
    """So too in what threads hold, which only the resident set shows: 256 MB are allowed at 131,072 tokens."""
    (_, short), (resident, long) = (peak(COCLUSTERED, n, 1) for n in (8192, 65_536))
    assert long <= 9 * short
    assert resident <= 112, f"{resident:.1f} MB resident beyond inputs and output"
