"""``python -m bench demo``: the kernels at 1k to 32k tokens against exact attention, in under a minute."""

from __future__ import annotations

import argparse
import time

import numpy as np

from bench import memory, peers
from bench.cases import Case
from bench.measure import REST, clock
from bench.subjects import NotInstalledError, Subject, ours

LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
PEER = "ONNX Runtime, exact"
# Seconds a peer may take for one call; beyond, its time is only estimated.
PATIENCE = 20.0
WIDTHS = (7, 22, 9, 9, 12, 10)
HEADINGS = ("tokens", "attention", "time", "speed-up", "peak memory", "agreement")


def _line(cells: tuple[str, ...]) -> str:
    return "  ".join(f"{cell:{'<' if i == 1 else '>'}{w}}" for i, (cell, w) in enumerate(zip(cells, WIDTHS)))


def _agreement(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean cosine between rows."""
    dots, own, other = (np.einsum("bhle,bhle->bhl", a, b) for a, b in
                        ((found, expected), (found, found), (expected, expected)))  # fmt: skip
    return float(np.mean(dots / np.sqrt(np.maximum(own * other, np.finfo(np.float32).tiny))))


def _measure(subject: Subject, case: Case) -> tuple[float, int | None]:
    """Seconds of a call (the best of a few where it is short) and its peak memory beyond inputs and output."""
    taken: list[float] = []
    grown = memory.peak(lambda: taken.append(clock(subject.run))) if memory.is_measurable() else None
    if grown is None:
        taken.append(clock(subject.run))
    if taken[0] < 0.5:
        taken += [clock(subject.run) for _ in range(4)]
    time.sleep(REST)
    return min(taken), None if grown is None else max(0, grown - case.output_bytes)


def main(given: list[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench demo", description=__doc__)
    parser.add_argument("--heads", type=int, default=8, help="of 64 each (%(default)s)")
    parser.add_argument("--n-threads", type=int, default=None, help="of every library (default: the CPUs there are)")
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], help="tokens (%(default)s)")
    options = parser.parse_args(given)
    from pyclattn import _threads

    n_threads = _threads.resolve(options.n_threads)
    print(f"{options.heads} heads x 64, float32, {n_threads} threads, structured inputs; 100 clusters, top 32.")
    print("Agreement: mean cosine with exact attention. Peak memory: beyond inputs and output.\n")
    print(_line(HEADINGS))
    print("-" * (sum(WIDTHS) + 2 * len(WIDTHS) - 2), flush=True)
    slowest: dict[str, float] = {}
    for length in (n for n in LENGTHS if n <= options.longest):
        _rows(Case(length, n_heads=options.heads, structure="structured"), n_threads, slowest)
    return 0


def _rows(case: Case, n_threads: int, slowest: dict[str, float]) -> None:
    """One length: ours, then ONNX Runtime where it is installed; ``slowest`` is each one's time at the last length."""
    x, warm = case.inputs(), Case(256, n_heads=case.n_heads)
    names = {"exact": "exact", "clustered": "clustered", "improved": "improved clustered"}
    seconds, expected = None, None
    subjects = [(names[f], lambda c, i, f=f: ours(f, c, i, n_threads)) for f in names]
    subjects.append((PEER, lambda c, i: peers.onnxruntime_mha(c, i, n_threads)))
    for name, build in subjects:
        if name == PEER and 4 * slowest.get(name, 0.0) > PATIENCE:  # twice the tokens, four times the work
            print(_line((f"{case.length:,}", name, f"(~{4 * slowest[name]:.0f} s)", "", "", "")), flush=True)
            continue
        try:
            build(warm, warm.inputs()).run()  # loads code, starts threads
            subject = build(case, x)
        except NotInstalledError:
            continue
        taken, grown = _measure(subject, case)
        slowest[name] = taken
        if expected is None:
            seconds, expected = taken, subject.output()
        cells = (
            f"{case.length:,}",
            name,
            f"{taken:.3f} s",
            f"{seconds / taken:.1f}x",
            "-" if grown is None else f"{grown / 1e6:.1f} MB",
            f"{_agreement(subject.output(), expected):.4f}",
        )
        print(_line(cells), flush=True)
