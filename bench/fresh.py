"""Measurements that need a process of their own: imports, first calls, peak memory.

``python -m bench.fresh WHAT ARGUMENTS`` measures once and prints JSON; the functions below start it and read that.
Nothing heavy is imported before the clock runs.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def ask(*arguments: object, timeout: float = 600) -> dict:
    """Run one measurement in a fresh process."""
    command = [sys.executable, "-m", "bench.fresh", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} ended with {done.returncode}:\n{done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _import(module: str) -> dict:
    start = time.perf_counter()
    __import__(module)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "heavy": [name for name in ("numba", "scipy") if name in sys.modules]}


def _first(function: str, length: str, n_threads: str) -> dict:
    """The first, second and third call; making the inputs comes before the clock and imports no more than NumPy."""
    imported = _import("pyclattn")["seconds"]
    from bench.cases import Case
    from bench.subjects import call

    case = Case(int(length))
    x = case.inputs()
    calls = []
    for _ in range(3):
        start = time.perf_counter()
        call(function, case, x, int(n_threads))
        calls.append(time.perf_counter() - start)
    return {"import": imported, "calls": calls}


def _memory(subject: str, length: str, n_threads: str) -> dict:
    """Peak memory beyond inputs and output. A short call before has loaded code and started threads."""
    from bench import memory, peers
    from bench.cases import Case
    from bench.subjects import FUNCTIONS, call

    if not memory.is_measurable():
        return {"bytes": None}
    case, small = Case(int(length)), Case(1200)  # co-clustered attention takes shorter ones exactly
    if subject in FUNCTIONS:
        call(subject, small, small.inputs(), int(n_threads))
        x = case.inputs()
        grown = memory.peak(lambda: call(subject, case, x, int(n_threads)))
    else:
        build = peers.PEERS[subject]
        build(small, small.inputs(), int(n_threads)).run()
        built = build(case, case.inputs(), int(n_threads))
        grown = memory.peak(built.run)
    return {"bytes": max(0, grown - case.output_bytes)}


def _encoder(name: str, length: str, n_threads: str) -> dict:
    """Peak memory of an encoder beyond what goes in and comes out; weights were there before."""
    from bench import encoders, memory

    if not memory.is_measurable():
        return {"bytes": None}
    built = encoders.subject(name, int(length), int(n_threads))
    encoders.subject(name, 256, int(n_threads))(encoders.tokens(256))
    x = encoders.tokens(int(length))
    return {"bytes": max(0, memory.peak(lambda: built(x)) - x.nbytes)}


def _layer(name: str, length: str, n_threads: str) -> dict:
    """The same of an attention layer alone: CAST by its clustering, or PyTorch's with its matrix kept."""
    from bench import encoders, memory

    if not memory.is_measurable():
        return {"bytes": None}

    def build(n: int):
        w, x = encoders.weights(encoders.n_clusters(n)), encoders.tokens(n)
        if name == encoders.MATRIX:
            run = encoders.torch_layer(w, int(n_threads), keeps_matrix=True)
            return lambda: run(x)
        layer = encoders.cast_attention(w, n, name)
        return lambda: layer(x, n_threads=int(n_threads))

    build(256)()
    run = build(int(length))
    return {"bytes": max(0, memory.peak(run) - 4 * int(length) * encoders.DIM)}


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    measure = {"import": _import, "first": _first, "memory": _memory, "encoder": _encoder, "layer": _layer}[what]
    print(json.dumps(measure(*rest)))
