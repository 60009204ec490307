"""The only reader of the environment. Variables are read when asked for, so tests and services may set them late."""

import os
from pathlib import Path

from pyclattn.errors import ArgumentError

# More than any machine has CPUs: a number of threads beyond it is a slip, and they would be made.
MOST_THREADS = 4096
BACKENDS = ("auto", "reference", "numba", "cython")


def _text(name: str, default: str) -> str:
    return os.environ.get(f"PYCLATTN_{name}", "").strip() or default


def backend() -> str:
    """PYCLATTN_BACKEND: the room every kernel comes from; ``auto`` takes each kernel's fast owner."""
    choice = _text("BACKEND", "auto").lower()
    if choice not in BACKENDS:
        raise ArgumentError(f"PYCLATTN_BACKEND must be one of {', '.join(BACKENDS)}, got {choice!r}")
    return choice


def isa() -> str:
    """PYCLATTN_ISA: the instruction set of the compiled kernels; ``auto`` takes the widest this machine runs."""
    return _text("ISA", "auto").lower()


def int8_isa() -> str:
    """PYCLATTN_INT8_ISA: the instructions of int8 products; ``auto`` takes the best that go with the ISA."""
    return _text("INT8_ISA", "auto").lower()


def num_threads() -> int | None:
    """PYCLATTN_NUM_THREADS: the default of ``n_threads``; None where it is not set."""
    text = _text("NUM_THREADS", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or not text.strip("0"):
        raise ArgumentError(f"PYCLATTN_NUM_THREADS must be a whole number of at least 1, got {text!r}")
    if len(text) > len(str(MOST_THREADS)) or int(text) > MOST_THREADS:
        raise ArgumentError(f"PYCLATTN_NUM_THREADS must be at most {MOST_THREADS}, got {text!r}")
    return int(text)


def omp_num_threads() -> int | None:
    """OMP_NUM_THREADS, by which engines (Ray, Dask, Spark, loky) tell a worker its share; None where it tells none."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() and int(first) > 0 else None


def cache_dir() -> Path:
    """PYCLATTN_CACHE: where fetched files, measurements and compiled kernels are kept; default ``~/.cache/pyclattn``.

    For a user without a home it is a path nothing can be written to or read from. (Not a temporary folder: compiled
    kernels are code, and anyone could put theirs there.)
    """
    given = _text("CACHE", "")
    try:
        return Path(given).expanduser() if given else Path.home() / ".cache" / "pyclattn"
    except RuntimeError:  # no home, or ~name of nobody
        return Path(os.devnull) / "pyclattn"
