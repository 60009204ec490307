"""``python -m bench models``: whole models in float32, time and peak memory, against ONNX Runtime and OpenVINO.

Each engine holds its model in a process of its own; the processes are asked in turn, so every round is fair, and each
tells its peak memory. A case that is finished is kept in bench/results/models.json and not measured again without
``--again``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.measure import REST
from bench.rows import Row, heading, tally
from pyclattn import _threads

RESULTS = Path(__file__).parent / "results" / "models.json"
ROOT = Path(__file__).resolve().parents[1]
# Rounds after a first run that does not count; a run longer than LONG is warm by itself, and counts from the first.
ROUNDS, LONG, LONG_ROUNDS = 5, 8.0, 2


@dataclass(frozen=True)
class Case:
    """A model and input, the engines it runs in (ours first), and how many times faster than each we must be."""

    name: str
    engines: tuple[str, ...]
    bars: dict[str, float] = field(default_factory=dict)
    is_memory_barred: bool = False  # at most OpenVINO's
    products_bar: float | None = None  # time at most so many times that of the products within


SALIENCY_BARS = {"openvino": 1.1, "onnxruntime": 1.8}
PEERS = ("openvino", "onnxruntime")
CASES = (
    Case("minilm 32 128", ("pyclattn", *PEERS), {"onnxruntime": 1.0}),
    Case("minilm 1 512", ("pyclattn", *PEERS), {"onnxruntime": 1.0}),
    Case("saliency 1022", ("pyclattn", *PEERS), SALIENCY_BARS, True),
    Case("saliency 1526", ("pyclattn", *PEERS), SALIENCY_BARS, True),
    Case("saliency 2044", ("pyclattn", "openvino"), SALIENCY_BARS, True),  # ONNX Runtime cannot allocate it
    Case("saliency 2044 coclustered", ("coclustered",), products_bar=1.5),
)


class Worker:
    """A process that holds one engine."""

    def __init__(self, engine: str, case: str, n_threads: int, folder: Path) -> None:
        self.engine, self.output = engine, folder / f"{engine}.npy"
        command = [sys.executable, "-m", "bench.model_worker", engine, case, str(n_threads), str(self.output)]
        self._errors = open(folder / f"{engine}.txt", "w+")  # noqa: SIM115  (closed in stop)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=self._errors, text=True)
        self._answer()

    def _answer(self) -> dict[str, Any]:
        for line in self._process.stdout:  # type: ignore[union-attr]  # a pipe was asked for
            if line.startswith("{"):
                return json.loads(line)
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        raise RuntimeError(f"{self.engine} ended: {lines[-1] if lines else self._process.wait()}")

    def run(self) -> dict[str, Any]:
        """One run of the model."""
        self._process.stdin.write("\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        return self._answer()

    def stop(self) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()
        self._errors.close()


def measure(case: str, engines: Sequence[str], n_threads: int, rounds: int = ROUNDS) -> dict[str, dict[str, Any]]:
    """Time and memory of engines on one case, asked in turn.

    Returns
    -------
    dict
        For each engine ``seconds`` (a list, one a round), ``bytes``, ``difference`` (of its output from the first
        engine's, relative to the largest number) and ``products`` (pyclattn's seconds in products); or ``failed``.
    """
    name = " ".join(word for word in case.split() if word not in engines)
    found: dict[str, dict[str, Any]] = {engine: {"seconds": [], "products": []} for engine in engines}
    with tempfile.TemporaryDirectory() as folder:
        workers = []
        for engine in engines:
            try:
                workers.append(Worker(engine, name, n_threads, Path(folder)))
            except RuntimeError as error:
                found[engine] = {"failed": str(error)}
        number = 0
        while workers and number < rounds + 1:
            for worker in list(workers):
                own = found[worker.engine]
                try:
                    answer = worker.run()
                except RuntimeError as error:
                    found[worker.engine] = {"failed": str(error)}
                    workers.remove(worker)
                    continue
                own["bytes"] = answer["bytes"]
                if number or answer["seconds"] > LONG:
                    own["seconds"].append(answer["seconds"])
                    own["products"].append(answer.get("products", 0.0))
                time.sleep(REST)
            number += 1
            if all(len(found[w.engine]["seconds"]) >= LONG_ROUNDS and found[w.engine]["seconds"][-1] > LONG / 2
                   for w in workers):  # fmt: skip
                break
        outputs = {worker.engine: np.load(worker.output) for worker in workers}
        for worker in workers:
            worker.stop()
    first = outputs.get(engines[0])
    for engine, output in outputs.items():
        if first is not None:
            found[engine]["difference"] = float(np.abs(output - first).max() / np.abs(first).max())
    return found


def rows(case: Case, found: dict[str, dict[str, Any]]) -> Iterator[Row]:
    """What the case shows, beside its bars."""
    ours = found[case.engines[0]]
    if "failed" in ours:
        yield Row("models", f"{case.name}: {case.engines[0]}", "", None, note=ours["failed"])
        return
    median = statistics.median(ours["seconds"])
    yield Row("models", f"{case.name}: {case.engines[0]}", "", median, "s", note=f"{ours['bytes'] / 1e6:,.0f} MB")
    for engine in case.engines[1:]:
        own, bar = found[engine], case.bars.get(engine)
        if "failed" in own:
            yield Row("models", f"{case.name}: against {engine}", "", None, bar=bar, note=own["failed"])
            continue
        rounds = min(len(own["seconds"]), len(ours["seconds"]))
        ratio = statistics.median(a / b for a, b in zip(own["seconds"][-rounds:], ours["seconds"][-rounds:]))
        note = f"{statistics.median(own['seconds']):.3g} s, {own['bytes'] / 1e6:,.0f} MB, "
        note += f"outputs within {own['difference']:.1e} of the largest"
        yield Row("models", f"{case.name}: against {engine}", "", ratio, bar=bar, note=note)
        if engine == "openvino" and case.is_memory_barred:
            share = ours["bytes"] / own["bytes"]
            yield Row("models", f"{case.name}: peak memory over {engine}'s", "", share, sense="<=", bar=1.0)
    if case.products_bar is not None:
        shares = [a / b for a, b in zip(ours["seconds"], ours["products"])]
        what = f"{case.name}: time over its products'"
        yield Row("models", what, "", statistics.median(shares), sense="<=", bar=case.products_bar)


def main(given: list[str] | None = None) -> int:
    """Print the table; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench models", description=__doc__)
    parser.add_argument("--threads", type=int, default=_threads.available_cpus())
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--case", nargs="+", help="words that a case's name must begin with, as in: --case saliency 1022"
    )
    parser.add_argument("--again", action="store_true", help="measure what is kept already, too")
    options = parser.parse_args(given)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    shown = []
    print(heading(), flush=True)
    for case in CASES:
        if options.case and case.name.split()[: len(options.case)] != options.case:
            continue
        key = f"{case.name}, {options.threads} threads"
        if options.again or key not in kept:
            kept[key] = measure(case.name, case.engines, options.threads, options.rounds)
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
        for row in rows(case, kept[key]):
            shown.append(row)
            print(row.line(), flush=True)
    print(f"\n{tally(shown)}; {options.threads} threads")
    return int(any(row.verdict == "MISS" for row in shown))


if __name__ == "__main__":
    sys.exit(main())
