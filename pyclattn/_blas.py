"""Hold NumPy's BLAS to one thread during a run.

Work is cut over the library's own threads, so that it stays in cache and nothing spins. BLAS must then not start
threads of its own. Its setting belongs to the host: it is put back when the last run ends.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import numpy as np


def _libraries() -> list[Path]:
    """The OpenBLAS that NumPy's wheel carries."""
    home = Path(np.__file__).parent
    found = []
    for folder in (home.parent / "numpy.libs", home / ".dylibs", home / ".libs"):
        if folder.is_dir():
            found += sorted(p for p in folder.iterdir() if "openblas" in p.name)
    return found


def _functions():
    """(get, set) of the number of threads, or None where this BLAS cannot be asked."""
    for path in _libraries():
        try:
            library = ctypes.CDLL(str(path))  # loaded already: the same handle
        except OSError:
            continue
        for prefix in ("scipy_", ""):
            for suffix in ("64_", ""):
                get = getattr(library, f"{prefix}openblas_get_num_threads{suffix}", None)
                put = getattr(library, f"{prefix}openblas_set_num_threads{suffix}", None)
                if get is not None and put is not None:
                    get.restype, get.argtypes = ctypes.c_int, []
                    put.restype, put.argtypes = None, [ctypes.c_int]
                    return get, put
    return None


class _Single:
    """A context manager: inside, BLAS uses one thread. May be entered from many threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: list = []  # what `_functions` found, asked when first needed: it takes a millisecond
        self._inside = 0
        self._before = 1

    @property
    def _functions(self):
        if not self._found:
            self._found = [_functions()]
        return self._found[0]

    @property
    def works(self) -> bool:
        """Whether this BLAS can be held; if not, products are left to its own threads."""
        return self._functions is not None

    def __enter__(self) -> None:
        if self._functions is None:
            return
        with self._lock:
            if self._inside == 0:
                get, put = self._functions
                self._before = get()
                if self._before != 1:
                    put(1)
            self._inside += 1

    def __exit__(self, *exc) -> None:
        if self._functions is None:
            return
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._before != 1:
                self._functions[1](self._before)


single = _Single()
