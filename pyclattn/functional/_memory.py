"""What calls hold in memory beside inputs and output, as far as several methods share it."""

from __future__ import annotations

from importlib.util import find_spec

from pyclattn import _config
from pyclattn._dispatch import OWNERS
from pyclattn.functional._grouping import CHUNK

# Resident from the first launch of a Numba kernel on: Numba and LLVM 74 MB, objects and compiled kernels 48 MB. As
# measured with kernels in the cache (Numba 0.68, Linux x86-64); a first call that compiles them takes 100 MB more.
NUMBA_BYTES = 122 << 20


def library_bytes(*kernels: str) -> int:
    """Bytes that stay with the process once these kernels have run, counted as if nothing else had loaded them."""
    needed = any(OWNERS[kernel] == "numba" for kernel in kernels) and _config.backend() in ("auto", "numba")
    return NUMBA_BYTES if needed and find_spec("numba") is not None else 0


def grouping_bytes(
    n_sequences: int, n_heads: int, length: int, depth: int, n_clusters: int, clustering: str, n_iterations: int,
    n_threads: int,
) -> tuple[int, int]:  # fmt: skip
    """Bytes of a `Grouping` of sequences of one length, and those that making it takes besides."""
    n_heads_in_all = n_sequences * n_heads
    kept = 8 * n_sequences * length + n_heads_in_all * (12 * length + 8 * (n_clusters + 1))
    if clustering != "lsh":
        return kept, 2 * 4 * n_heads_in_all * n_clusters * depth
    counts = 0 if n_heads_in_all >= 4 * n_threads else 4 * 65 * -(-length // CHUNK) * n_clusters
    return kept, n_heads_in_all * (8 * length + counts) + 16 * n_clusters * n_iterations
