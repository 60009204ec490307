"""``python -m bench models``: whole models, time, peak memory and agreement, against ONNX Runtime and OpenVINO.

Each engine holds its model in a process of its own; the processes are asked in turn, so every round is fair, and each
tells its peak memory. A case that is finished is kept in bench/results/models.json and not measured again without
``--again``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine, model_files
from bench.measure import REST, fma_peak
from bench.model_cases import CASES, Case, Found, rows
from bench.rows import Row, heading, tally
from pyclattn import _threads
from pyclattn._ext import isa

RESULTS = Path(__file__).parent / "results" / "models.json"
ROOT = Path(__file__).resolve().parents[1]
# A first run does not count, unless it takes more than LONG seconds: that is warm by itself. The runs of an engine that
# count take about BUDGET seconds together: ROUNDS of quick ones, at least two, one where that takes BUDGET by itself.
ROUNDS, LONG, BUDGET = 5, 20.0, 30.0


class Worker:
    """A process that holds one engine."""

    def __init__(self, engine: str, path: Path, case: str, n_threads: int, folder: Path) -> None:
        self.engine, self.output = engine, folder / f"{engine}.npy"
        command = [sys.executable, "-m", "bench.model_worker", engine, str(path), case, str(n_threads)]
        self._errors = open(folder / f"{engine}.txt", "w+")  # noqa: SIM115  (closed in stop)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [*command, str(self.output)], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=self._errors, text=True
        )
        self._answer()

    def _answer(self) -> dict[str, Any]:
        for line in self._process.stdout:  # type: ignore[union-attr]  # a pipe was asked for
            if line.startswith("{"):
                return json.loads(line)
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        raise RuntimeError(f"{self.engine} ended: {lines[-1] if lines else self._process.wait()}")

    def ask(self, line: str = "") -> dict[str, Any]:
        """One run of the model, or an answer to "about"."""
        self._process.stdin.write(line + "\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        return self._answer()

    def stop(self) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()
        self._errors.close()


def measure(case: Case, n_threads: int, rounds: int = ROUNDS) -> Found:
    """Time and memory of the engines of a case, asked in turn.

    Returns
    -------
    dict
        For each engine ``seconds`` (a list, one a run that counts), ``bytes``, ``correlation`` and ``difference`` (of
        its output from the first engine's, relative to the largest number), ``products`` (pyclattn's seconds in them),
        and what it tells about itself; or ``failed``.
    """
    found: Found = {engine: {"seconds": [], "products": []} for engine in case.engines}
    with tempfile.TemporaryDirectory() as folder:
        workers = started(case, n_threads, Path(folder), found)
        workers = [worker for worker in workers if ran(worker, found[worker.engine])]
        is_timed = case.memory_share_bar is None
        wanted = {worker: counted(found[worker.engine], rounds) if is_timed else 1 for worker in workers}
        for _ in range(rounds):
            due = [worker for worker in workers if len(found[worker.engine]["seconds"]) < wanted[worker]]
            failed = [worker for worker in due if not ran(worker, found[worker.engine])]
            workers = [worker for worker in workers if worker not in failed]
        for worker in workers:
            if is_timed and not worker.engine.startswith(("openvino", "onnxruntime", "torch")):
                found[worker.engine].update(worker.ask("about"))
            worker.stop()
        compare(found, {worker.engine: np.load(worker.output) for worker in workers}, case.engines[0])
    return found


def started(case: Case, n_threads: int, folder: Path, found: Found) -> list[Worker]:
    """The engines that load."""
    workers = []
    for engine in case.engines:
        try:
            path = model_files.made(engine, case.name)
            workers.append(Worker(engine, path, case.name, n_threads, folder))
        except (RuntimeError, ImportError) as error:  # an engine that is missing is one row less
            found[engine] = {"failed": str(error)}
    return workers


def counted(own: dict[str, Any], rounds: int) -> int:
    """How many runs of an engine shall count, by its first; that one is dropped where it does not."""
    first = own["seconds"][0]
    if first <= LONG:
        own["seconds"].clear()
        own["products"].clear()
    return 1 if first >= BUDGET else int(min(max(BUDGET // first, 2), rounds))


def ran(worker: Worker, own: dict[str, Any]) -> bool:
    """Run once and keep the figures; False if it failed."""
    try:
        answer = worker.ask()
    except RuntimeError as error:
        answer = {"failed": str(error)}
    if "failed" in answer:
        own.clear()
        own.update(answer)
        worker.stop()
        return False
    own["bytes"] = answer["bytes"]
    own["seconds"].append(answer["seconds"])
    own["products"].append(answer.get("products", 0.0))
    time.sleep(REST)
    return True


def compare(found: Found, outputs: dict[str, np.ndarray], first: str) -> None:
    """How near each output is to the first engine's."""
    want = outputs.get(first)
    for engine, output in outputs.items():
        if want is not None:
            found[engine]["difference"] = float(np.abs(output - want).max() / np.abs(want).max())
            found[engine]["correlation"] = float(np.corrcoef(output.ravel(), want.ravel())[0, 1])


def main(given: list[str] | None = None) -> int:
    """Print the table; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench models", description=__doc__)
    parser.add_argument("--n-threads", type=int, default=_threads.available_cpus())
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--case", nargs="+", help="words that a case's name must begin with, as in: --case saliency 1022"
    )
    parser.add_argument("--again", action="store_true", help="measure what is kept already, too; so does --case")
    options = parser.parse_args(given)
    wanted = " ".join(options.case or ()).split()
    chosen = [case for case in CASES if case.name.split()[: len(wanted)] == wanted]
    if not chosen:
        parser.error(f"no case begins with {' '.join(wanted)!r}; there are: {', '.join(case.name for case in CASES)}")
    kept = json.loads(RESULTS.read_text())["found"] if RESULTS.exists() else {}
    about, peak = machine.describe(options.n_threads), fma_peak(isa.selected(), options.n_threads)
    print(heading(), flush=True)
    for case in chosen:
        if options.again or options.case or case.name not in kept:
            kept[case.name] = measure(case, options.n_threads, options.rounds)
            write(kept, about, peak)
        for row in rows(case, kept[case.name], peak):
            print(row.line(), flush=True)
    shown = write(kept, about, peak)
    print(f"\n{tally(shown)}; {options.n_threads} threads")
    return int(any(row.verdict == "MISS" for row in shown))


def write(kept: dict[str, Found], about: dict, peak: float) -> list[Row]:
    """Keep what was found, and its rows."""
    shown = [row for case in CASES if case.name in kept for row in rows(case, kept[case.name], peak)]
    content = {"machine": about, "peak": peak, "found": kept, "rows": [row.as_dict() for row in shown]}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    return shown


if __name__ == "__main__":
    sys.exit(main())
