"""Time of each kernel within a call, and the border between rooms: each kernel in every room that has it.

The border is decided here: a kernel's fast owner stays its owner as long as its row says so.
"""

from __future__ import annotations

import copy
import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np

from bench import cases
from bench.cases import Case
from bench.measure import interleave, spread
from bench.rows import Row, tokens
from bench.speed import Settings
from bench.subjects import call
from pyclattn import _dispatch, _threads
from pyclattn.functional import (
    _grouping,
    _metric,
    cast,
    centroid,
    clustered,
    coclustered,
    dense,
    dense_int8,
    exact,
    points,
)

CALLERS: tuple[ModuleType, ...] = (
    _grouping,
    _metric,
    cast,
    centroid,
    clustered,
    coclustered,
    dense,
    exact,
    points,
)
IMPROVED = {
    "hash": ("clustering.hash_rows",),
    "lloyd": ("clustering.hamming_lloyd", "clustering.hamming_assign", "clustering.hamming_update"),
    "sort": ("clustering.sort_by_label",),
    "means": ("clustering.cluster_means",),
    "centroids": ("attention.attend_centroids",),
    "merge": ("attention.merge_partials",),
    "members": ("attention.attend_members",),
}
COCLUSTERED = {
    "axes": ("coclusters.covariances", "coclusters.eigenvectors"),
    "assign": ("clustering.lloyd_along", "clustering.nearest_assign"),
    "sort": ("clustering.sort_by_label",),
    "means": ("clustering.cluster_means",),
    "rows": ("coclusters.sort_rows",),
    "slopes": ("coclusters.moments",),
    "threshold": ("coclusters.score_keys", "coclusters.weigh", "coclusters.thresholds"),
    "attend": ("tails.attend",),
}


@contextmanager
def wrapped(around: Callable[..., None]) -> Iterator[None]:
    """Within the block every launch of a kernel goes through ``around(launch, kernel, n_threads, *arguments)``.

    So does the call of what is bound within it.
    """
    launch, bind = _dispatch.launch, _dispatch.bind

    def unwrapped(*given: Any) -> None:
        bind(*given)()

    def one_by_one(n_threads: int, *launches: tuple[Any, ...]) -> None:
        for kernel, *arguments in launches:
            around(unwrapped, kernel, n_threads, *arguments)

    together = _dispatch.launch_together
    for module in CALLERS:
        module.launch = partial(around, unwrapped)
        if hasattr(module, "launch_together"):
            module.launch_together = one_by_one
    try:
        with patch.object(_dispatch, "bind", partial(partial, around, unwrapped)):
            yield
    finally:
        for module in CALLERS:
            module.launch = launch
            if hasattr(module, "launch_together"):
                module.launch_together = together


def profile(function: Callable[[], object]) -> dict[str, float]:
    """Seconds of each kernel in a call, of the whole ("total"), and what is left ("other")."""
    taken: dict[str, float] = {}

    def timed(launch: Callable[..., None], kernel: str, *arguments: Any) -> None:
        start = time.perf_counter()
        launch(kernel, *arguments)
        taken[kernel] = taken.get(kernel, 0.0) + time.perf_counter() - start

    with wrapped(timed):
        start = time.perf_counter()
        function()
        total = time.perf_counter() - start
    return {**taken, "other": total - sum(taken.values()), "total": total}


def stages(settings: Settings) -> Iterator[Row]:
    """Where clustered attention spends its time, on all threads and on one."""
    for case in settings.wanted([cases.LONG]):
        yield from _stages("improved", IMPROVED, case, settings)
    for case in settings.wanted([cases.LONG_STRUCTURED]):
        yield from _stages("coclustered", COCLUSTERED, case, settings)


def _stages(function: str, parts: dict[str, tuple[str, ...]], case: Case, settings: Settings) -> Iterator[Row]:
    x = case.inputs()
    both = (settings.n_threads, 1)
    functions = {str(n): partial(profile, partial(call, function, case, x, n)) for n in both}
    timings = interleave(functions, min(settings.rounds, 7))
    several: dict[int, list[dict[str, float]]] = {n: timings.results[str(n)] for n in both}
    seconds = {
        stage: {n: spread([sum(p.get(k, 0.0) for k in kernels) for p in own]).median for n, own in several.items()}
        for stage, kernels in {**parts, "other": ("other",), "total": ("total",)}.items()
    }
    total = seconds["total"][settings.n_threads]
    for stage, own in seconds.items():
        here = own[settings.n_threads]
        scaling = f", 1 thread {1e3 * own[1]:.1f} ms, {own[1] / here:.2f}x" if here > 1e-5 else ""
        yield Row("stages", f"{function}, stage {stage}", tokens(case.length), here, "ms",
                  note=f"{100 * here / total:.1f} %{scaling}", detail={"seconds": own})  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """A recorded launch: arguments as they were before it."""

    kernel: str
    arguments: tuple[Any, ...]


def record(function: Callable[[], object], keep: Callable[[Any], Any] = copy.deepcopy) -> list[Launch]:
    """The first launch of each kernel in a call; ``keep`` takes its arguments as they are before it."""
    found: dict[str, Launch] = {}

    def note(launch: Callable[..., None], kernel: str, n_threads: int, *arguments: Any) -> None:
        if kernel not in found:
            found[kernel] = Launch(kernel, keep(arguments))
        launch(kernel, n_threads, *arguments)

    with wrapped(note):
        function()
    return list(found.values())


def implementations(kernel: str) -> dict[str, Callable[..., None]]:
    """The kernel in every room that has it."""
    module, name = kernel.split(".")
    found = {}
    for room, package in _dispatch.ROOMS.items():
        try:
            found[room] = getattr(importlib.import_module(f"{package}.{module}"), name)
        except (ImportError, AttributeError):
            continue
    return found


def border(settings: Settings) -> Iterator[Row]:
    """Each kernel in its owner's room against the other rooms, one thread each, on the same recorded arguments."""
    long, wide = Case(8192, n_heads=2), Case(2048, n_heads=12)
    recorded: dict[str, tuple[Case, Launch]] = {}
    for case, function, more in (
        (long, "improved", {}),
        (wide, "improved", {}),
        (wide, "clustered", {}),
        (wide, "clustered", {"clustering": "kmeans"}),
        (replace(long, structure="structured"), "coclustered", {}),
        (replace(wide, length=1024, n_heads=4), "exact", {}),
    ):
        small = case.scaled(settings.divisor)
        x = small.inputs()
        # as many threads as make a long sequence be cut over its tokens
        n_threads = 2 if case is long else 1
        for launch in record(partial(call, function, small, x, n_threads, **more)):
            recorded.setdefault(launch.kernel, (small, launch))
    layer = Case(512, n_heads=1)
    for product in (_dense_layer, _int8_layer):
        for launch in record(partial(product, layer.length), keep=tuple):  # a copy of panels would not be aligned
            recorded[launch.kernel] = layer, launch
    cloud = Case(8192 // settings.divisor, n_heads=2)
    for launch in record(partial(_centroids, cloud.length)):
        recorded[launch.kernel] = cloud, launch
    text = Case(1024 // settings.divisor, n_heads=2)
    for launch in record(partial(_clusters, text.length)):
        recorded[launch.kernel] = text, launch
    for kernel, owner in _dispatch.OWNERS.items():
        if kernel not in recorded:
            yield Row("border", kernel, "", None, note="no case launches it")
            continue
        case, launch = recorded[kernel]
        yield _border_row(kernel, owner, case, launch, settings.rounds)


def _dense_layer(n_rows: int) -> None:
    """The widest layer of a small transformer."""
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape, dtype=np.float32) for shape in ((n_rows, 384), (384, 1536)))
    dense.linear(x, dense.pack_weight(weight), np.zeros(1536, np.float32), activation="gelu", n_threads=1)


def _int8_layer(n_rows: int) -> None:
    """The same on an int8 weight, and its sums alone."""
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape, dtype=np.float32) for shape in ((n_rows, 384), (384, 1536)))
    packed = dense_int8.pack_int8(*dense_int8.quantise_weight(weight))
    packed.bind(x, np.zeros(1536, np.float32), activation="gelu", n_threads=1)()
    packed.bind_sums(rng.integers(0, 256, x.shape, np.uint8), n_threads=1)()


def _centroids(n_points: int) -> None:
    """A cloud of points gathered into a sixteenth of them, from all points and from neighbours."""
    rng = np.random.default_rng(0)
    cloud, key = (rng.standard_normal(shape, dtype=np.float32) for shape in ((1, n_points, 3), (1, 2, n_points, 32)))
    chosen = points.farthest_point_sampling(cloud, n_points // 16, n_threads=1)
    near = points.nearest_neighbors(cloud[:, chosen[0]], cloud, 16, n_threads=1)
    for neighbors in (None, near):
        centroid.centroid_attention(key[:, :, chosen[0]], key, key, neighbors=neighbors, n_threads=1)


def _clusters(n_tokens: int) -> None:
    """CAST with about sqrt(N) clusters, by both clusterings."""
    rng = np.random.default_rng(0)
    n = int(n_tokens**0.5)
    shapes = [(1, 2, n_tokens, 64)] * 3 + [(n, 2, 64), (1, n_tokens)]
    arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    for clustering in cast.CLUSTERINGS:
        cast.cast_attention(*arrays, cluster_size=-(-n_tokens // n), clustering=clustering, n_threads=1)


def _border_row(kernel: str, owner: str, case: Case, launch: Launch, rounds: int) -> Row:
    rooms = implementations(kernel)
    functions = {room: partial(_replay, function, launch.arguments) for room, function in rooms.items()}
    timings = interleave(functions, min(rounds, 5), budget=8.0)
    medians = {room: timings.median(room) for room in rooms}
    at = f"{case.n_heads} x {case.length}"
    note = ", ".join(f"{room} {1e3 * seconds:.3g} ms" for room, seconds in medians.items())
    if owner not in rooms or "reference" not in rooms:
        return Row("border", f"{kernel}: {owner}", at, None, note=f"{note}; {owner} has it not")
    ratio = timings.ratio("reference", owner).median
    best = min(medians, key=medians.get)
    what = f"{kernel}: reference / {owner}"
    return Row("border", what, at, ratio, note=f"{note}; fastest {best}", detail={"seconds": timings.summary()})


def _replay(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Run a kernel on its recorded arguments, on one thread. What a kernel both reads and writes is copied first."""
    own = list(arguments)
    if function.__name__ == "hamming_lloyd":
        own[-1] = own[-1].copy()  # centroids: the start goes in, the final codes come out
    if function.__name__ == "select":
        own[-1] = np.zeros_like(own[-1])  # counts: nothing is selected yet
    _threads.run(partial(function, *own, np.zeros(1, np.int64)), 1)
