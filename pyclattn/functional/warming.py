"""What a first call would wait for, done before it comes: kernels compiled, rates measured, both kept on disk."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile

from pyclattn import _config, _dispatch, _threads
from pyclattn.errors import BackendError
from pyclattn.functional import costs


def prepare(n_threads: int | None = None) -> Path:
    """Compile all kernels and measure rates, or find both in the cache directory.

    Parameters
    ----------
    n_threads : int, optional
        For which rates are measured. Default: PYCLATTN_NUM_THREADS, else the CPUs this process may use.

    Returns
    -------
    Path
        The cache directory.

    Raises
    ------
    BackendError
        If the directory cannot be written, so that all would be lost.
    """
    folder = _config.cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise BackendError(
            f"nothing can be kept in {folder} ({error.strerror}): set PYCLATTN_CACHE to a directory that can be written"
        ) from error
    for kernel in _dispatch.OWNERS:
        _dispatch.room_of(kernel)  # a room's kernels are compiled when it is first looked into
    costs.rates(_threads.resolve(n_threads))
    return folder
