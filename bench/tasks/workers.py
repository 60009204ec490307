"""One run of a model in a process of its own, so that its peak memory is its own.

A task's module has ``prepare(request, inputs)``: it loads what it needs and returns a call that gives a dict of
arrays. ``ask`` starts a process that prepares, runs a few times, and sends back arrays, seconds and bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.tasks.fetch import FetchError

# The first run plans and allocates; the best of the next ones is what a service sees. A long run is not repeated.
RUNS, LONG = 3, 10.0
ROOT = Path(__file__).resolve().parents[2]


class Answer(NamedTuple):
    """What a process sent back."""

    outputs: dict[str, np.ndarray]
    seconds: float
    peak_bytes: int


def ask(module: str, request: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> Answer:
    """Run a task's model in a fresh process.

    Raises
    ------
    FetchError
        With the last line the process wrote, if it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "request.json").write_text(json.dumps(dict(request)))
        np.savez(place / "inputs.npz", **inputs)
        command = [sys.executable, "-m", "bench.tasks.workers", module, folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise FetchError(f"{module} failed: {lines[-1] if lines else f'exit code {done.returncode}'}")
        figures = json.loads(done.stdout.splitlines()[-1])
        with np.load(place / "outputs.npz") as outputs:
            return Answer(dict(outputs), figures["seconds"], figures["bytes"])


def work(module: str, folder: Path) -> None:
    """What the process does."""
    request = json.loads((folder / "request.json").read_text())
    with np.load(folder / "inputs.npz") as inputs:
        run = import_module(module).prepare(request, dict(inputs))
    seconds: list[float] = []
    while len(seconds) < 1 + RUNS and sum(seconds) < LONG:
        start = time.perf_counter()
        outputs = run()
        seconds.append(time.perf_counter() - start)
    figures = {"seconds": min(seconds[1:] or seconds), "bytes": peak_memory()}
    np.savez(folder / "outputs.npz", **outputs)
    print(json.dumps(figures))


def peak_memory() -> int:
    """The most memory this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage also counts what the parent held when it started this process
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]))
