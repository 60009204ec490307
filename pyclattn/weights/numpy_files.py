"""Arrays in .npy and .npz files: what command lines read and write."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping

import numpy as np

from pyclattn.errors import ModelFormatError


def read_arrays(path: str | os.PathLike) -> np.ndarray | dict[str, np.ndarray]:
    """The array of a .npy file, or those of a .npz by name; pickled objects are refused.

    Raises
    ------
    ModelFormatError
        If the file cannot be read, is of another kind, truncated or altered.

    Examples
    --------
    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "a.npz")
    >>> np.savez(path, a=np.arange(3))
    >>> read_arrays(path)
    {'a': array([0, 1, 2])}
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {name: np.asarray(loaded[name]) for name in loaded.files}
    except OSError as error:
        raise ModelFormatError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # damaged files raise what zipfile, zlib, lzma, tokenize and the allocator have
        raise ModelFormatError(f"{path}: not a .npy or .npz file of plain arrays: {error}") from error


def write_npz(file, arrays: Mapping[str, np.ndarray]) -> None:
    """What ``np.savez`` writes, for arrays of any name (its own parameters have names too)."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
