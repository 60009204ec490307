"""``python -m bench.weights``: weight files against torch.load, bit for bit, and how long reading takes.

Real files are those of the tasks. Time and memory are measured on 100 MB of many tensors, each reader in a process of
its own: until all arrays are there, and until every number was read once.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench import memory
from bench.rows import Row
from bench.tasks.exported import MINILM, RXNMAPPER
from bench.tasks.fetch import LIGHTERGLUE, TIS_FOLDS, TIS_TRANSFORMER, XFEAT, FetchError, fetch

ROOT = Path(__file__).resolve().parents[1]
FILES = (XFEAT, LIGHTERGLUE, *TIS_FOLDS, TIS_TRANSFORMER, MINILM[0], RXNMAPPER[0])
N_LAYERS, WIDTH = 8, 560  # 12 WIDTH^2 numbers a layer: 120 MB
REPEATS = 15


def ours(path: str) -> dict:
    import pyclattn

    return pyclattn.load_weights(path)


def torch_mapped(path: str) -> dict:
    import torch

    return torch.load(path, mmap=True, map_location="cpu")


def torch_read(path: str) -> dict:
    import torch

    return torch.load(path, map_location="cpu")


def safetensors_numpy(path: str) -> dict:
    from safetensors.numpy import load_file

    return load_file(path)


def safetensors_torch(path: str) -> dict:
    from safetensors.torch import load_file

    return load_file(path)


READERS: dict[str, Callable[[str], dict]] = {
    f.__name__: f for f in (ours, torch_mapped, torch_read, safetensors_numpy, safetensors_torch)
}


def touch(tensors: dict) -> float:
    """Read every number once."""
    return float(sum(np.asarray(tensor).max() for tensor in tensors.values()))


def measure(reader: str, path: str) -> dict:
    """Median seconds to the arrays and to every number read; the peak of the process on first reading all."""
    read = READERS[reader]
    with tempfile.TemporaryDirectory() as folder:  # imports, and what a first call sets up, are not the file's
        small = make(Path(folder), n_layers=1, width=16)[path.endswith("safetensors")]
        touch(read(str(small)))
    grown = memory.peak(lambda: [tensors := read(path), touch(tensors)]) if memory.is_measurable() else None
    loads, reads = [], []
    for _ in range(REPEATS):
        start = time.perf_counter()
        tensors = read(path)
        loads.append(time.perf_counter() - start)
        touch(tensors)
        reads.append(time.perf_counter() - start)
        del tensors
    return {"load": statistics.median(loads), "read": statistics.median(reads), "bytes": grown}


def make(folder: Path, n_layers: int = N_LAYERS, width: int = WIDTH) -> tuple[Path, Path]:
    """The weights of an encoder as a .pt and a .safetensors file."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for i in range(n_layers):
        for name, shape in {"q": (width, width), "k": (width, width), "v": (width, width), "out": (width, width),
                            "up": (4 * width, width), "down": (width, 4 * width)}.items():  # fmt: skip
            tensors[f"layers.{i}.{name}.weight"] = torch.randn(shape, generator=generator)
            tensors[f"layers.{i}.{name}.bias"] = torch.randn(shape[0], generator=generator)
        for name in ("norm1", "norm2"):
            tensors[f"layers.{i}.{name}.weight"] = torch.randn(width, generator=generator)
            tensors[f"layers.{i}.{name}.bias"] = torch.randn(width, generator=generator)
    torch.save(tensors, folder / "w.pt")
    save_file(tensors, folder / "w.safetensors")
    return folder / "w.pt", folder / "w.safetensors"


def equal(path: Path) -> tuple[int, bool]:
    """Number of tensors, and whether all are torch's, bit for bit."""
    import torch

    import pyclattn

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        wanted = load_file(path)
    else:
        loaded = torch.load(path, map_location="cpu", weights_only=False)
        wanted = loaded.get("state_dict", loaded)
    found = pyclattn.load_weights(path)
    same = set(found) == set(wanted) and all(
        found[name].shape == tuple(tensor.shape)
        and found[name].dtype == tensor.numpy().dtype
        and found[name].tobytes() == tensor.numpy().tobytes()
        for name, tensor in wanted.items()
    )
    return len(found), same


def fresh(reader: str, path: Path) -> dict:
    command = [sys.executable, "-m", "bench.weights", "--measure", reader, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def timed(path: Path, against: str, bar: float, others: tuple[str, ...]) -> list[Row]:
    """Our times over a peer's, and our memory over what is used."""
    size = path.stat().st_size
    results = {name: fresh(name, path) for name in ("ours", against, *others)}
    detail = {name: {key: round(value, 5) for key, value in found.items() if value} for name, found in results.items()}
    rows = []
    for key, what in (("load", "time to the arrays"), ("read", "time until all is read")):
        note = ", ".join(f"{name} {found[key] * 1e3:.2f} ms" for name, found in results.items())
        ratio = results["ours"][key] / results[against][key]
        at = f"{size >> 20} MB"
        rows.append(Row("weights", f"{path.suffix}: {what} / {against}", at, ratio, "x", "<=", bar, note, detail))
    grown = results["ours"]["bytes"]
    share = None if grown is None else grown / size
    note = ", ".join(f"{name} {found['bytes'] / 2**20:.0f} MB" for name, found in results.items() if found["bytes"])
    # 2 %: the dict, and pages of the file's directory
    rows.append(Row("weights", f"{path.suffix}: peak memory / file", at, share, "x", "<=", 1.02, note))
    return rows


def main(given: list[str] | None = None) -> int:
    """Print the table; 1 if a row misses its bar."""
    given = sys.argv[1:] if given is None else given
    if given[:1] == ["--measure"]:
        print(json.dumps(measure(*given[1:])))
        return 0
    missed = False
    try:
        paths = fetch(*FILES)
    except FetchError as error:
        print(f"weights: {error}", file=sys.stderr)
        return 1
    for path in paths:
        count, same = equal(path)
        row = Row("weights", path.name, f"{count} tensors", same, "", "is", True)
        missed |= row.verdict == "MISS"
        print(row.line(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        pt, safe = make(Path(folder))
        for rows in (
            timed(pt, "torch_mapped", 1.2, ("torch_read",)),
            timed(safe, "safetensors_numpy", 1.0, ("safetensors_torch",)),
        ):
            for row in rows:
                missed |= row.verdict == "MISS"
                print(row.line(), flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
