"""Paths, and files that are written: asked for before the work, and there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pyclattn.errors import ArgumentError, DTypeError


def as_path(name: str, given: str | os.PathLike) -> Path:
    """The path that an argument gives.

    Examples
    --------
    >>> as_path("path", None)
    Traceback (most recent call last):
    pyclattn.errors.DTypeError: path must be a path, as text or pathlib.Path, got None
    """
    try:
        return Path(given)
    except TypeError:
        raise DTypeError(f"{name} must be a path, as text or pathlib.Path, got {given!r:.60}") from None


def check_target(
    name: str, path: str | os.PathLike, *suffixes: str, others: Iterable[str | os.PathLike] = ()
) -> Path:  # fmt: skip
    """The path, if a file can be written there: asked before long work, not after it.

    ``others`` are what else is read or written.

    Raises
    ------
    ArgumentError
        If it has none of the suffixes (where some are given), is a folder, lies in none that can be written to, or is
        one of the others.
    """
    path = as_path(name, path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise ArgumentError(f"{name} must end in {' or '.join(suffixes)}, got {str(path)!r}")
    if path.is_dir():
        raise ArgumentError(f"{name} must be a file, got the folder {str(path)!r}")
    if not path.parent.is_dir():
        raise ArgumentError(f"{name} must lie in a folder that exists, got {str(path)!r}")
    if not os.access(path.parent, os.W_OK):
        raise ArgumentError(f"{name} must lie in a folder that can be written to, got {str(path)!r}")
    for other in others:
        if _is_same(path, Path(other)):
            raise ArgumentError(f"{name} must be a file of its own, got {str(path)!r}, the same file as {str(other)!r}")
    return path


def _is_same(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def write_atomically(path: str | os.PathLike, write) -> None:
    """Call ``write(file)`` on a new file beside ``path`` and move it there when it is whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename == str(temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error  # the caller's name, not ours
        raise
