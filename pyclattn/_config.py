"""The only reader of the environment. Variables are read when asked for, so tests and services may set them late."""

import os
from pathlib import Path

from pyclattn.errors import ArgumentError

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
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise ArgumentError(f"PYCLATTN_NUM_THREADS must be a whole number of at least 1, got {text!r}")
    return int(text)


def cache_dir() -> Path:
    """PYCLATTN_CACHE: where fetched files and measurements are kept; default ``~/.cache/pyclattn``."""
    return Path(_text("CACHE", str(Path.home() / ".cache" / "pyclattn"))).expanduser()
