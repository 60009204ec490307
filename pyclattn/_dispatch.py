"""Which room a kernel comes from. Only `pyclattn.functional` asks.

Each kernel has a reference in NumPy and one fast owner; where the owner is not installed the reference stands in.
PYCLATTN_BACKEND forces a room for every kernel it owns (the others stay with the reference).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from pyclattn import _config, _threads
from pyclattn.errors import BackendError

ROOMS = {"reference": "pyclattn.reference", "numba": "pyclattn.kernels", "cython": "pyclattn._ext"}

OWNERS = {
    "attention.attend": "cython",
    "attention.attend_bfloat16": "cython",
    "attention.attend_centroids": "cython",
    "attention.merge_partials": "numba",
    "attention.attend_members": "cython",
    "attention.spread_members": "cython",
    "cast.attend_clusters": "cython",
    "cast.mix": "cython",
    "centroid.gather_inputs": "cython",
    "centroid.weigh_pairs": "cython",
    "centroid.gather_pairs": "cython",
    "centroid.find_repeated": "cython",
    "clustering.hash_rows": "cython",
    "clustering.hamming_lloyd": "numba",
    "clustering.hamming_assign": "numba",
    "clustering.hamming_update": "numba",
    "clustering.nearest_assign": "cython",
    "clustering.lloyd_along": "cython",
    "clustering.sort_by_label": "cython",
    "clustering.cluster_means": "cython",
    "coclusters.covariances": "cython",
    "coclusters.eigenvectors": "cython",
    "coclusters.sort_rows": "cython",
    "coclusters.moments": "cython",
    "coclusters.score_keys": "cython",
    "coclusters.weigh": "cython",
    "coclusters.thresholds": "cython",
    "conv.convolve": "cython",
    "conv.convolve_bfloat16": "cython",
    "conv.pair_channels": "cython",
    "dense.multiply": "cython",
    "rows.apply": "cython",
    "rows.normalise": "cython",
    "dense.multiply_bfloat16": "cython",
    "int8.multiply": "cython",
    "int8.sum_products": "cython",
    "memberships.affinities": "cython",
    "memberships.select": "cython",
    "memberships.assign": "cython",
    "memberships.invert": "cython",
    "points.choose_farthest": "cython",
    "points.find_nearest": "cython",
    "tails.attend": "cython",
    "tails.attend_bfloat16": "cython",
    "winograd.upsample": "cython",
    "winograd.upsample_bfloat16": "cython",
}

_forced_backend: str | None = None
_resolved: dict[tuple[str, str], tuple[Callable[..., None], bool]] = {}


def installed(room: str) -> bool:
    """Whether a room's compiler or compiled files are there."""
    try:
        importlib.import_module("numba" if room == "numba" else f"{ROOMS[room]}.attention")
    except ImportError:
        return False
    return True


def _resolve(kernel: str, backend: str) -> tuple[Callable[..., None], bool]:
    """The function of a kernel, and whether several threads may run it."""
    owner = OWNERS[kernel]
    module, name = kernel.split(".")
    room = owner if backend in ("auto", owner) else "reference"
    if room != "reference" and not installed(room):
        if backend != "auto":
            raise BackendError(f"PYCLATTN_BACKEND={backend} was asked for, but {ROOMS[room]} is not installed")
        room = "reference"
    if backend not in ("auto", "reference") and not installed(backend):
        raise BackendError(f"PYCLATTN_BACKEND={backend} was asked for, but {ROOMS[backend]} is not installed")
    function = getattr(importlib.import_module(f"{ROOMS[room]}.{module}"), name)
    return function, room != "reference"


def room_of(kernel: str) -> str:
    """The room a kernel is taken from now: "reference", "numba" or "cython"."""
    function, _ = _resolve(kernel, _forced_backend or _config.backend())
    return next(room for room, package in ROOMS.items() if (function.__module__ or "").startswith(package))


def launch(kernel: str, n_threads: int, *arguments: Any) -> None:
    """Run a kernel over all its tasks, on up to ``n_threads`` threads."""
    bind(kernel, n_threads, *arguments)()


def launch_together(n_threads: int, *launches: tuple[Any, ...]) -> None:
    """Run kernels, each with its arguments, that need nothing of one another: a thread that finds no more tasks in one
    goes on to the next, and all wait for each other but once."""
    runs = []
    for kernel, *arguments in launches:
        function, is_threaded = _in_use(kernel)
        runs.append(_run_of(function, arguments))
        n_threads = n_threads if is_threaded else 1

    def run() -> None:
        for each in runs:
            each()

    _threads.run(run, n_threads)


def _in_use(kernel: str) -> tuple[Callable[..., None], bool]:
    backend = _forced_backend or _config.backend()
    found = _resolved.get((kernel, backend))
    if found is None:
        found = _resolved[kernel, backend] = _resolve(kernel, backend)
    return found


def _run_of(function: Callable[..., None], arguments: Iterable[Any]) -> Callable[[], None]:
    """One run of a kernel, for any number of threads to call: they draw its tasks from one counter."""
    return partial(function, *arguments, np.zeros(1, np.int64))


def bind(kernel: str, n_threads: int, *arguments: Any) -> Callable[[], None]:
    """A launch to be made later, perhaps often, from the room in use now."""
    function, is_threaded = _in_use(kernel)
    if not is_threaded:
        n_threads = 1

    def run() -> None:
        _threads.run(_run_of(function, arguments), n_threads)

    return run


def panel_lanes() -> int:
    """Columns of a panel for the instruction set in use; any number is right for the reference."""
    return importlib.import_module("pyclattn._ext.isa").lanes() if installed("cython") else 16


@contextmanager
def forced(backend: str | None = None, isa: str | None = None) -> Iterator[None]:
    """Within the block, take kernels from one room, compiled ones at one instruction set. For tests and benches."""
    global _forced_backend
    before = _forced_backend
    _forced_backend = backend or before
    chosen = None
    if isa is not None:
        tiles = importlib.import_module("pyclattn._ext.isa")
        chosen = tiles.selected()
        tiles.select(isa)
    try:
        yield
    finally:
        _forced_backend = before
        if chosen is not None:
            tiles.select(chosen)
