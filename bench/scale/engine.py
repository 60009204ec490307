"""The documents through a model: in this process, and with Ray Data."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyclattn import BatchEncoder

OUTPUTS = {"outputs": ["pooler_output"]}  # a vector of each document
BATCH = 250  # documents of a batch and of a block: some seconds of work, so that a lost one costs little


class Timed(BatchEncoder):
    """The encoder that also tells when and where a batch ran."""

    def __call__(self, batch):
        self._loaded()
        start = time.time()
        found = super().__call__(batch)
        n = len(batch["doc"])
        told = {"start": start, "end": time.time(), "pid": os.getpid(), "n_threads": self._loaded()[0].n_threads}
        return {"doc": found["doc"], **{name: np.full(n, value) for name, value in told.items()}}


class Nothing:
    """No work: what the engine itself takes."""

    def __call__(self, batch):
        now = time.time()
        return {"doc": batch["doc"], "start": np.full(len(batch["doc"]), now)}


@dataclass(frozen=True)
class Task:
    """A batch that an actor ran, in seconds of the clock."""

    pid: int
    n_documents: int
    start: float
    end: float
    n_threads: int


def in_process(path: Path, columns: dict[str, np.ndarray], n_threads: int) -> tuple[dict[str, np.ndarray], float]:
    """The outputs of one process, and the seconds, the model loaded before."""
    encoder = BatchEncoder(path, n_threads=n_threads, **OUTPUTS)
    encoder({name: column[:1] for name, column in columns.items()})
    start = time.perf_counter()
    found = encoder(columns)
    return found, time.perf_counter() - start


@contextmanager
def ray_data(n_cpus: int) -> Iterator:
    """Ray on this machine, and the module ray.data."""
    import ray
    import ray.data

    ray.init("local", num_cpus=n_cpus, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray.data
    finally:
        ray.shutdown()


def dataset(data, columns: dict[str, np.ndarray]):
    """The documents in blocks of a batch each."""
    import pyarrow as pa

    n = len(columns["doc"])
    tables = []
    for i in range(0, n, BATCH):
        ids = pa.array([row.tolist() for row in columns["input_ids"][i : i + BATCH]], pa.list_(pa.int64()))
        tables.append(pa.table({"doc": columns["doc"][i : i + BATCH], "input_ids": ids}))
    return data.from_arrow(tables)


def applied(data, columns: dict[str, np.ndarray], encoder: type, path: Path, n_actors: int, n_cpus: int = 1):
    """The documents' outputs, to be computed by actors as they are asked for."""
    return dataset(data, columns).map_batches(
        encoder, fn_constructor_args=(path,), fn_constructor_kwargs=OUTPUTS, batch_size=BATCH,
        concurrency=n_actors, num_cpus=n_cpus,
    )  # fmt: skip


def tasks(data, path: Path, columns: dict[str, np.ndarray], n_actors: int, n_cpus: int = 1) -> tuple[list[Task], float]:
    """What each batch took, and when the run was asked for."""
    asked = time.time()
    mapped = applied(data, columns, Timed, path, n_actors, n_cpus)
    found = []
    for rows in mapped.iter_batches(batch_size=None):
        for start in np.unique(rows["start"]):
            own = rows["start"] == start
            pid, end, n_threads = (rows[name][own][0] for name in ("pid", "end", "n_threads"))
            found.append(Task(int(pid), int(own.sum()), float(start), float(end), int(n_threads)))
    return sorted(found, key=lambda task: task.start), asked


def engine_seconds(data, columns: dict[str, np.ndarray], n_actors: int) -> float:
    """Seconds between batches when there is nothing to do: what handing out and fetching one takes."""
    mapped = dataset(data, columns).map_batches(Nothing, batch_size=BATCH, concurrency=n_actors, num_cpus=1)
    starts = np.unique(np.concatenate([rows["start"] for rows in mapped.iter_batches(batch_size=None)]))
    return float(starts[-1] - starts[0]) / max(1, len(starts) - 1)


def with_a_kill(data, path: Path, columns: dict[str, np.ndarray], n_actors: int) -> tuple[dict, float, list[int]]:
    """The outputs in the order of the documents, with an actor killed when a third was there; seconds; its pid."""
    start, killed, parts, n_found = time.perf_counter(), [], [], 0
    mapped = applied(data, columns, BatchEncoder, path, n_actors)
    for rows in mapped.iter_batches(batch_size=None):
        parts.append(rows)
        n_found += len(rows["doc"])
        if not killed and 3 * n_found >= len(columns["doc"]):
            killed = workers()[:1]
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
    seconds = time.perf_counter() - start
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(found["doc"], kind="stable")
    return {name: column[order] for name, column in found.items()}, seconds, killed


def workers() -> list[int]:
    """Process ids of this program's actors that run an encoder."""
    parents, named = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(folder.name)
            parents[pid] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if b"MapWorker(MapBatches(BatchEncoder))" in (folder / "cmdline").read_bytes():
                named.append(pid)
        except OSError:  # it has ended
            continue
    return [pid for pid in named if _descends(pid, os.getpid(), parents)]


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != ancestor:
        pid = parents[pid]
    return pid == ancestor
