"""One case of `python -m bench pareto`: inputs as a model makes them, every method at every setting, time and error.

``python -m bench.pareto_case capture|measure|memory NAME ...`` runs one of these in a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import pyclattn
from bench import memory
from bench.cases import Case
from bench.frontier import on_frontier
from bench.others import Others
from bench.rivals import block_sparse_attention, smyrf_attention
from bench.tasks.fetch import ASTRONAUT, HUMAN_GENES, LIGHTERGLUE, SALIENCY, TIS_TRANSFORMER, WIDE_BASELINE, XFEAT
from pyclattn import _config
from pyclattn.arrays import Float32
from pyclattn.functional.coclustered import query_clusters

Layer = tuple[Float32, Float32, Float32]
Settings = dict[str, Any]

# What each task's captures are made of.
SOURCES = {
    "saliency": (SALIENCY, ASTRONAUT),
    "genomics": (TIS_TRANSFORMER, HUMAN_GENES),
    "matching": (XFEAT, LIGHTERGLUE, *WIDE_BASELINE),
}
METHODS: dict[str, Callable[..., Float32]] = {
    "exact": pyclattn.scaled_dot_product_attention,
    "clustered": pyclattn.clustered_attention,
    "improved": pyclattn.improved_clustered_attention,
    "co-clustered": pyclattn.coclustered_attention,
    "SMYRF": smyrf_attention,
    "block-sparse": block_sparse_attention,
}
CLUSTERINGS = ("lsh", "kmeans", "metric")
# Settings of clustered and improved clustered attention; (clusters, keys) for the latter, the published one first.
N_CLUSTERS, PAIRS = (100, 400), ((100, 32), (100, 128), (100, 1024), (256, 512), (512, 1024))
# Of co-clustered: query and key clusters in sqrt(N), exact keys within these shares of all. The groups of structured
# data are few and exact at once: fewer clusters, finer steps.
CLUSTER_FACTORS, N_EXACT, SHARES = ((1, 0.5), (1.5, 0.75), (3, 1)), tuple(2**i for i in range(4, 13)), (1 / 600, 1 / 7)
FOR_GROUPS = ((0.25, 0.2), (0.39, 0.2)), (128, 192, 256, 320, 384, 448, 512, 640, 768, 1024, 2048), (1 / 600, 1 / 60)
SMYRF = ((96, 2), (96, 8), (384, 4), (768, 8))
N_BLOCKS = (4, 16, 64)
# Tokens of a call before the clock runs: it loads code and starts threads.
WARM = 2048
# Exact attention that takes longer than this is timed once: it varies least of all. Nor is a method repeated that takes
# more than this share of exact's time: nobody would choose it.
LONG, SLOW = 4.0, 0.5
# Seconds after which a case begins no further round: with warming up none takes two minutes.
ENOUGH = 30.0


@dataclass(frozen=True)
class Contest:
    """What is measured: attentions of a task's model (or "structured" data of ``n_heads``) at one length."""

    task: str
    n_tokens: int
    size: int  # what the task's `capture` is asked for: pixels, keypoints, tokens
    layers: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.task} {self.n_tokens:,}"

    @property
    def path(self) -> Path:
        """Where its captures lie: a name for all they depend on."""
        parts = (self.task, self.size, self.layers, [(source.sha256) for source in SOURCES[self.task]])
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
        return _config.cache_dir() / "captures" / f"{self.task}-{self.size}-{digest}.npz"

    @property
    def is_synthetic(self) -> bool:
        return self.task not in SOURCES

    def capture(self) -> None:
        """Run the model and keep the layers, unless they are there."""
        if self.is_synthetic or self.path.exists():
            return
        found = import_module(f"bench.tasks.{self.task}").capture(self.size)
        kept = {name: x for name, x in found.items() if name.rpartition(".")[0] in self.layers}
        if len(kept) != 3 * len(self.layers):
            raise RuntimeError(f"{self.name}: asked for {', '.join(self.layers)}, captured {', '.join(found)}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial.npz")
        np.savez(partial, **kept)
        partial.rename(self.path)

    def load(self) -> dict[str, Layer]:
        """Query, key and value (1, H, N, D) of each layer."""
        if self.is_synthetic:
            x = Case(self.n_tokens, n_heads=self.size, structure=self.task).inputs()
            return {self.layers[0]: (x.query, x.key, x.value)}
        with np.load(self.path) as stored:
            return {name: tuple(stored[f"{name}.{part}"][None] for part in "qkv") for name in self.layers}


def _every(numbers: tuple[int, ...], *parts: str) -> tuple[str, ...]:
    return tuple(f"{i}.{part}" for i in numbers for part in parts)


CONTESTS = (
    Contest("saliency", 5_330, 1022, _every((0, 2, 4, 6, 8, 10, 11), "self")),
    Contest("saliency", 11_882, 1526, _every((0, 3, 6, 9, 11), "self")),
    Contest("saliency", 21_317, 2044, _every((0, 4, 8, 11), "self")),
    Contest("genomics", 6_752, 6_752, _every(tuple(range(8)), "global")),
    Contest("genomics", 30_002, 30_002, _every((0, 3, 5, 7), "global")),
    Contest("matching", 4_096, 4_096, _every(tuple(range(6)), "self", "cross")),
    Contest("matching", 8_192, 8_192, _every(tuple(range(6)), "self", "cross")),
    Contest("structured", 65_536, 2, ("2 heads",)),
    Contest("structured", 131_072, 1, ("1 head",)),
)


def ladder(contest: Contest) -> Iterator[tuple[str, str, Settings]]:
    """(curve, method, settings) of everything but exact attention."""
    for clustering in CLUSTERINGS:
        for n in N_CLUSTERS:
            yield f"clustered, {clustering}", "clustered", {"clustering": clustering, "n_clusters": n}
        for n, topk in PAIRS:
            settings = {"clustering": clustering, "n_clusters": n, "topk": topk}
            yield f"improved, {clustering}", "improved", settings
    n_tokens, ours = contest.n_tokens, (CLUSTER_FACTORS, N_EXACT, SHARES)
    factors, numbers, (least, most) = FOR_GROUPS if contest.is_synthetic else ours
    for factor, key_factor in factors:
        clusters = {
            "n_query_clusters": query_clusters(n_tokens, factor),
            "n_key_clusters": max(16, round(key_factor * n_tokens**0.5)),
        }
        for n_exact in numbers:
            if least <= n_exact / n_tokens <= most:
                yield "co-clustered", "co-clustered", {**clusters, "n_exact": n_exact}
    for size, n_rounds in SMYRF:
        yield "SMYRF", "SMYRF", {"cluster_size": size, "n_rounds": n_rounds}
    for scoring in ("mean", "bounds"):
        for n in N_BLOCKS:
            yield "block-sparse", "block-sparse", {"n_blocks": n, "scoring": scoring}


def error(found: Float32, exact: Float32) -> float:
    """Relative Frobenius error.

    Examples
    --------
    >>> error(np.array([3.0, 4.0]), np.array([3.0, 5.0])).__round__(4)
    0.1715
    """
    difference = np.subtract(found, exact, dtype=np.float32)
    return float(np.linalg.norm(difference.ravel()) / np.linalg.norm(exact.ravel()))


class Measurement:
    """Times and errors of all points on all layers, in rounds; later rounds repeat what is on its curve's frontier."""

    def __init__(self, layers: dict[str, Layer], points: list[tuple[str, str, Settings]], n_threads: int) -> None:
        self.layers, self.points, self.n_threads = layers, points, n_threads
        self.exact: dict[str, list[float]] = {name: [] for name in layers}
        self.seconds: dict[tuple[int, str], list[float]] = {}
        self.errors: dict[tuple[int, str], float] = {}
        self.outputs: dict[str, Float32] = {}

    def _call(self, method: str, settings: Settings, layer: Layer) -> tuple[float, Float32]:
        start = time.perf_counter()
        out = METHODS[method](*layer, n_threads=self.n_threads, **settings)
        return time.perf_counter() - start, out

    def warm(self) -> None:
        """Every point once, on a piece."""
        for layer in self.layers.values():
            piece = tuple(np.ascontiguousarray(x[:, :, :WARM]) for x in layer)
            for _, method, settings in self.points:
                self._call(method, settings, piece)
            break

    def round(self, note: Callable[[], None]) -> None:
        """One round of all that is due."""
        for name, layer in self.layers.items():
            if not self.exact[name] or self.exact[name][0] < LONG:
                taken, self.outputs[name] = self._call("exact", {}, layer)
                self.exact[name].append(taken)
            for number in self._due(name):
                _, method, settings = self.points[number]
                taken, out = self._call(method, settings, layer)
                self.seconds.setdefault((number, name), []).append(taken)
                if (number, name) not in self.errors:
                    self.errors[number, name] = error(out, self.outputs[name])
            note()

    def _due(self, layer: str) -> list[int]:
        numbers = range(len(self.points))
        if (0, layer) not in self.seconds:
            return list(numbers)
        due = []
        for curve in dict.fromkeys(curve for curve, _, _ in self.points):
            own = [n for n in numbers if self.points[n][0] == curve]
            kept = on_frontier([self._median(n, layer) for n in own], [self.errors[n, layer] for n in own])
            due += [n for n, keep in zip(own, kept) if keep and self._median(n, layer) < SLOW * self.exact[layer][0]]
        return due

    def _median(self, number: int, layer: str) -> float:
        return statistics.median(self.seconds[number, layer])

    def result(self) -> dict[str, Any]:
        """As JSON: lists run over the layers."""
        return {
            "layers": list(self.layers),
            "shape": list(next(iter(self.layers.values()))[0].shape),
            "exact": [statistics.median(own) for own in self.exact.values()],
            "points": [
                {
                    "curve": curve, "method": method, "settings": settings,
                    "seconds": [self._median(number, name) for name in self.layers],
                    "errors": [self.errors[number, name] for name in self.layers],
                }
                for number, (curve, method, settings) in enumerate(self.points)
            ],
        }  # fmt: skip


def measure(contest: Contest, n_threads: int, rounds: int, note: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """All methods on all layers; medians of at most so many rounds."""
    measurement = Measurement(contest.load(), list(ladder(contest)), n_threads)
    measurement.warm()
    others, start, done = Others(), time.perf_counter(), 0
    while done < rounds and time.perf_counter() - start < ENOUGH:
        measurement.round(note)
        done += 1
    share = others.share()
    return {
        "task": contest.task,
        "n_tokens": contest.n_tokens,
        "rounds": done,
        "others": share,
    } | measurement.result()


def peak(n_tokens: int, settings: Settings, n_threads: int) -> dict[str, int | None]:
    """Bytes that co-clustered attention takes beyond inputs and output, on structured data of 12 heads."""
    if not memory.is_measurable():
        return {"bytes": None}
    case, small = Case(n_tokens, structure="structured"), Case(WARM, structure="structured").inputs()
    call = METHODS["co-clustered"]
    call(small.query, small.key, small.value, n_threads=n_threads)
    x = case.inputs()
    grown = memory.peak(lambda: call(x.query, x.key, x.value, n_threads=n_threads, **settings))
    return {"bytes": max(0, grown - case.output_bytes)}


def main(given: list[str] | None = None) -> int:
    """Do one thing and print JSON; a line "layer" on stderr whenever a layer is done."""
    parser = argparse.ArgumentParser(prog="python -m bench.pareto_case")
    parser.add_argument("what", choices=("capture", "measure", "memory"))
    parser.add_argument("name", choices=[contest.name for contest in CONTESTS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--n-threads", type=int, default=2)
    parser.add_argument("--settings", type=json.loads, default={})
    options = parser.parse_args(given)
    contest = next(contest for contest in CONTESTS if contest.name == options.name)
    if options.what == "capture":
        contest.capture()
        print("{}")
    elif options.what == "memory":
        print(json.dumps(peak(contest.n_tokens, options.settings, options.n_threads)))
    else:
        print(json.dumps(measure(contest, options.n_threads, options.rounds, lambda: print("layer", file=sys.stderr))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
