"""The bytes of one file, mapped into memory, and its name for messages."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np

from pyclattn.errors import ModelFormatError
from pyclattn.weights.targets import as_path


class Source:
    """A file's bytes, read-only. Readers take every position from the file itself and check it against ``size``.

    Parameters
    ----------
    data : bytes-like
    name : str
        Of the file, for messages.
    """

    def __init__(self, data, name: str):
        self.view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        self.size = len(self.view)
        self.name = name

    @classmethod
    def open(cls, path: str | os.PathLike, mmap: bool = True) -> Source:
        """Map a file, or read it whole.

        Raises
        ------
        ModelFormatError
            If it cannot be read or is not a regular file (a pipe or device could block, or never end).
        """
        path = as_path("path", path)
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise ModelFormatError(f"{path}: not a file")
            if status.st_size == 0:
                return cls(b"", str(path))
            data = np.memmap(path, np.uint8, "r") if mmap else np.fromfile(path, np.uint8)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or emptied since
            if isinstance(error, ModelFormatError):
                raise
            reason = getattr(error, "strerror", None) or error
            raise ModelFormatError(f"{path}: cannot be read ({reason})") from error
        if not mmap:
            data.flags.writeable = False
        return cls(data, str(path))


def beside(base: Path, name: str, where: str) -> Path:
    """The file ``name`` in the folder of ``base``: a plain name that does not lead out of it.

    Links are followed as hubs' caches need them: what a name resolves to must lie in the real folder, or in the one
    the real ``base`` lies in.
    """
    if not name or name in (".", "..") or any(c in name for c in "/\\\0") or ":" in name:
        raise ModelFormatError(f"{where}: {name!r} must be the name of a file in the same folder")
    path = os.path.realpath(base.parent / name)
    homes = {os.path.realpath(base.parent), os.path.dirname(os.path.realpath(base))}
    if os.path.dirname(path) not in homes:
        raise ModelFormatError(f"{where}: {name!r} leads out of the folder")
    return base.parent / name
