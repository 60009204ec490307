"""The rows of ``python -m bench scale``, their bars, and the command."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bench.parts import measured
from bench.rows import Row
from bench.scale import curve, engine
from bench.scale.corpus import corpus, model, n_tokens

RESULT = Path(__file__).resolve().parents[1] / "results" / "scale.json"
N_DOCUMENTS = 10_000  # that the bar speaks of
# The job of the curve, and its actors.
JOB = 1_000_000
ACTORS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def killed(data, path: Path, columns: dict[str, np.ndarray], n_threads: int) -> Iterator[Row]:
    """Two actors, one killed in the middle, against one process."""
    n = len(columns["doc"])
    at = f"{n:,}"
    wanted, alone = engine.in_process(path, columns, n_threads)
    yield Row("scale", f"one process, {n_threads} threads", at, n / alone, "/s", note=_tokens(columns, alone))
    found, seconds, pids = engine.with_a_kill(data, path, columns, 2)
    is_complete = np.array_equal(found["doc"], np.arange(n))
    is_same = is_complete and all(np.array_equal(found[name], wanted[name]) for name in wanted)
    note = f"{len(np.unique(found['doc'])):,} documents came back, {len(pids)} actor killed; {seconds:.0f} s"
    yield Row("scale", "two actors, one killed: every document, once", at, is_complete and len(pids) == 1, "", "is",
              True, note, holds_here=n >= N_DOCUMENTS)  # fmt: skip
    yield Row("scale", "two actors, one killed: the bits of one process", at, is_same, "", "is", True,
              f"{', '.join(sorted(set(wanted) - {'doc'}))}", holds_here=n >= N_DOCUMENTS)  # fmt: skip


def _tokens(columns: dict[str, np.ndarray], seconds: float) -> str:
    return f"{n_tokens(columns) / seconds:,.0f} tokens/s"


def actors(data, path: Path, columns: dict[str, np.ndarray]) -> Iterator[Row]:
    """One actor and two, then what that says of more."""
    n = len(columns["doc"])
    at = f"{n:,}"
    (one, asked), (two, _) = (engine.tasks(data, path, columns, n_actors) for n_actors in (1, 2))
    few = {name: column[: 2 * engine.BATCH] for name, column in columns.items()}
    wide, _ = engine.tasks(data, path, few, 1, n_cpus=2)
    is_told = {task.n_threads for task in (*one, *two)} == {1} and {task.n_threads for task in wide} == {2}
    yield Row("scale", "threads of an actor are its num_cpus, 1 and 2", "", is_told, "", "is", True)
    rates = [_rate(tasks) for tasks in (one, two)]
    for number, rate in zip(("one actor", "two actors"), rates):
        yield Row("scale", f"{number} of 1 CPU, once started", at, rate, "/s", note="documents")
    yield Row("scale", "two actors over one", at, rates[1] / rates[0], "x")
    measured = curve.Measured(
        [task.end - task.start for task in one],
        max(1.0, _median(two) / _median(one)),
        engine.engine_seconds(data, columns, 2),
        min(task.start for task in one) - asked,
        _batch_bytes(columns),
    )
    yield from _model(measured, two)


def _model(measured: curve.Measured, two: list[engine.Task]) -> Iterator[Row]:
    """The simulation, first of what was measured."""
    span = max(task.end for task in two) - min(task.start for task in two)
    steady = curve.Measured(measured.seconds, measured.slowdown, measured.hand_out, 0.0, measured.batch_bytes)
    guess = statistics.median(curve.simulate(steady, len(two), 2, has_stragglers=False, seed=seed) for seed in range(9))
    yield Row("scale", "model: seconds of two actors over those measured", "", guess / span, "x", note=f"{span:.1f} s")
    note = (
        f"batch {_median_of(measured.seconds):.2f} s, slowdown {measured.slowdown:.2f}, start {measured.start:.1f} s, "
        f"hand-out {1e3 * measured.hand_out:.1f} ms, {measured.batch_bytes / 1e3:.0f} kB; "
        f"1 in {1 / curve.STRAGGLERS:.0f} takes {curve.SLOW:g}x"
    )
    yield Row("scale", "model: what it draws on", "", None, note=note, detail={"measured": vars(measured)})
    for name, rate in curve.limits(measured).items():
        yield Row("scale", f"model: the {name} alone would allow", "", rate * engine.BATCH, "/s")
    for point in curve.curve(measured, JOB // engine.BATCH, ACTORS):
        yield Row("scale", f"model: {point['actors']} actors on {point['nodes']} nodes", f"{JOB:,}",
                  point["rate"] * engine.BATCH, "/s", note=f"{100 * point['efficiency']:.0f} % of {point['actors']} "
                  "single actors", detail=point)  # fmt: skip


def _rate(tasks: Sequence[engine.Task]) -> float:
    """Documents a second while all actors work: from when the last has done its first batch to when one runs dry."""
    ends = [[task.end for task in tasks if task.pid == pid] for pid in {task.pid for task in tasks}]
    begin, end = max(map(min, ends)), min(map(max, ends))
    inside = sum(task.n_documents for task in tasks if begin < task.end <= end)
    return inside / (end - begin) if end > begin else float("nan")


def _median(tasks: Sequence[engine.Task]) -> float:
    return _median_of([task.end - task.start for task in tasks])


def _median_of(numbers: Sequence[float]) -> float:
    return statistics.median(numbers)


def _batch_bytes(columns: dict[str, np.ndarray]) -> float:
    """Token numbers in, a vector of 384 floats and a number out."""
    n = len(columns["doc"])
    return engine.BATCH * (8 * n_tokens(columns) / n + 4 * 384 + 16)


def main(given: list[str] | None = None) -> int:
    """Print the table and write bench/results/scale.json; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench scale", description=__doc__)
    parser.add_argument("--documents", type=int, default=N_DOCUMENTS, help="with an actor killed (%(default)s)")
    parser.add_argument("--timed", type=int, default=4000, help="documents for one actor and two (%(default)s)")
    parser.add_argument("--n-threads", type=int, default=2)
    parser.add_argument("--only", choices=["killed", "actors"], action="append")
    options = parser.parse_args(given)
    path = model()
    columns = corpus(max(options.documents, options.timed))
    some = [{name: column[:n] for name, column in columns.items()} for n in (options.documents, options.timed)]
    with engine.ray_data(options.n_threads) as data:
        groups = {
            "killed": lambda: killed(data, path, some[0], options.n_threads),
            "actors": lambda: actors(data, path, some[1]),
        }
        return measured(groups, RESULT, options.n_threads, options.only or list(groups))


if __name__ == "__main__":
    sys.exit(main())
