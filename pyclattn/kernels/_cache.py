"""Where compiled kernels are kept: PYCLATTN_CACHE, and nowhere else.

Numba's own places will not do for a service: it refuses a directory that it cannot write, and so would compile again in
every container whose image was warmed up and whose disk is read-only. Here such a directory is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import caching

from pyclattn import _config

_ROOM = Path(__file__).parent


def folder() -> Path:
    """Of what these sources and this Numba compile: another version's lies beside it, and is left alone."""
    return _config.cache_dir() / "kernels" / _stamp()


@cache
def _stamp() -> str:
    """Of all sources of this room: kernels take pieces from each other."""
    sources = [path.read_bytes() for path in sorted(_ROOM.glob("*.py"))]
    return hashlib.sha256(b"\0".join([numba.__version__.encode(), *sources])).hexdigest()[:16]


class _Locator(caching._CacheLocator):
    """`folder` for all kernels."""

    def __init__(self, function: Callable):
        self._line = function.__code__.co_firstlineno

    @classmethod
    def from_function(cls, function: Callable, file: str) -> _Locator:
        return cls(function)

    def get_cache_path(self) -> str:
        return str(folder())

    def get_source_stamp(self) -> str:
        return _stamp()

    def get_disambiguator(self) -> str:
        return str(self._line)


class _Form(caching.CompileResultCacheImpl):
    _locator_classes = [_Locator]  # type: ignore[list-item]  # noqa: RUF012


class Store(caching.FunctionCache):
    """A kernel's compiled form on disk. Whatever is wrong with the directory or a file in it costs time, no error."""

    _impl_class = _Form

    def load_overload(self, *arguments: Any) -> Any:
        try:
            return super().load_overload(*arguments)
        except Exception:  # what a torn or foreign file raises may be anything
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, *arguments: Any) -> None:
        with suppress(OSError):
            super().save_overload(*arguments)
