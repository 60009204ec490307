"""The bars of CAST's and Centroid's parts: a layer alone, its memory, selection, points, and what was trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

import pyclattn
from bench import encoders, stages
from bench.fresh import ROOT, ask
from bench.measure import interleave, spread
from bench.rows import Row, tokens
from bench.speed import Settings

CLUSTERINGS = ("topk", "sa_topk")
LAYER_BARS = {1024: 1.5, 4096: 6.0, 16384: 25.0}
# torch.nn.MultiheadAttention keeps all weights by default: 4 GB at 16K.
LONGEST_MODULE = 4096
MEMORY_LENGTH, MEMORY_BAR = 4096, 0.10
SELECTION_LENGTH, SELECTION_BAR = 16384, 0.15
SELECTION = ("memberships.select", "memberships.assign")
N_INPUTS, N_CENTROIDS, N_HEADS, HEAD_DIM = 16384, 256, 8, 32
N_POINTS, N_CHOSEN = 65536, 1024

TRAINED = ROOT / "tests" / "data" / "trained"
CAST_EXAMPLES, CAST_BEHIND = ("listops", "pixels", "pixels_longer"), 0.02
CENTROID_BEHIND, CENTROID_TIME = 0.01, 0.25
LARGEST_DIFFERENCE = 1e-4  # of a logit


def cast_layer(settings: Settings) -> Iterator[Row]:
    """The attention layer with its projections, d 256, 4 heads, against PyTorch's exact one."""
    for full, bar in LAYER_BARS.items():
        length = full // settings.divisor
        x, w = encoders.tokens(length), encoders.weights(encoders.n_clusters(length))
        runs = {c: partial(encoders.cast_attention(w, length, c), x, n_threads=settings.n_threads) for c in CLUSTERINGS}
        runs["exact"] = partial(encoders.exact_attention(w), x, n_threads=settings.n_threads)
        runs["PyTorch"] = partial(encoders.torch_layer(w, settings.n_threads), x)
        if full <= LONGEST_MODULE:
            runs["module"] = partial(encoders.torch_module(w, settings.n_threads), x)
        # outputs are dropped at once, as by a network's next layer: kept ones would be fresh memory in every call
        timings = interleave({name: partial(_dropped, run) for name, run in runs.items()}, 5, 25.0)
        for name in (*CLUSTERINGS, "exact"):
            ratio = timings.ratio("PyTorch", name)
            note = f"{1e3 * timings.median(name):.1f} ms, {ratio.low:.2f} to {ratio.high:.2f}"
            what = f"{name} layer vs PyTorch's exact layer" if name == "exact" else f"CAST {name} layer vs PyTorch's"
            yield Row("layer", what, tokens(length), ratio.median, bar=bar if name != "exact" else None,
                      note=note + ("" if timings.is_quiet else ", noisy"))  # fmt: skip
            if "module" in runs and name != "exact":
                ratio = timings.ratio("module", name)
                note = f"{1e3 * timings.median('module'):.1f} ms, {ratio.low:.2f} to {ratio.high:.2f}"
                what = f"CAST {name} layer vs torch.nn.MultiheadAttention"
                yield Row("layer", what, tokens(length), ratio.median, note=note)


def _dropped(run: Callable[[], object]) -> None:
    run()


def cast_memory(settings: Settings) -> Iterator[Row]:
    """Peak memory of the encoder's attention against one that keeps its matrix of scores."""
    length = MEMORY_LENGTH // settings.divisor
    peaks = {n: ask("layer", n, length, settings.n_threads)["bytes"] for n in (*CLUSTERINGS, encoders.MATRIX)}
    for clustering in CLUSTERINGS:
        what = f"CAST {clustering} layer: memory of one that keeps its matrix"
        if None in peaks.values():
            yield Row("layer_memory", what, tokens(length), None, "%", "<=", MEMORY_BAR, "no /proc/self/clear_refs")
            continue
        note = f"{peaks[clustering] / 1e6:.1f} of {peaks[encoders.MATRIX] / 1e6:.1f} MB"
        share = peaks[clustering] / max(1, peaks[encoders.MATRIX])
        yield Row("layer_memory", what, tokens(length), share, "%", "<=", MEMORY_BAR, note)


def selection(settings: Settings) -> Iterator[Row]:
    """Share of choosing members in the layer's time."""
    length = SELECTION_LENGTH // settings.divisor
    x, w = encoders.tokens(length), encoders.weights(encoders.n_clusters(length))
    for clustering in CLUSTERINGS:
        layer = encoders.cast_attention(w, length, clustering)
        run = partial(stages.profile, partial(layer, x, n_threads=settings.n_threads))
        profiles = interleave({clustering: run}, 5, 10.0).results[clustering]
        share = spread([sum(p.get(kernel, 0.0) for kernel in SELECTION) / p["total"] for p in profiles])
        parts = {kernel: spread([p.get(kernel, 0.0) for p in profiles]).median for kernel in profiles[0]}
        note = ", ".join(f"{kernel} {1e3 * seconds:.1f} ms" for kernel, seconds in parts.items())
        what = f"CAST {clustering}: selection's share of the layer"
        yield Row("selection", what, tokens(length), share.median, "%", "<=", SELECTION_BAR, note, {"seconds": parts})


def centroid(settings: Settings) -> Iterator[Row]:
    """Centroid attention against PyTorch doing the same formula."""
    import torch

    n_inputs, n_centroids = N_INPUTS // settings.divisor, N_CENTROIDS // settings.divisor
    rng = np.random.default_rng(0)
    query = rng.standard_normal((1, N_HEADS, n_centroids, HEAD_DIM), np.float32)
    key, value = (rng.standard_normal((1, N_HEADS, n_inputs, HEAD_DIM), np.float32) for _ in range(2))
    q, k, v = map(torch.from_numpy, (query, key, value))

    def formula() -> np.ndarray:
        torch.set_num_threads(settings.n_threads)
        with torch.inference_mode():
            return (((q * HEAD_DIM**-0.5) @ k.transpose(-1, -2)).softmax(-2) @ v).numpy()

    own = partial(pyclattn.centroid_attention, query, key, value, n_threads=settings.n_threads)
    difference = float(np.abs(own() - formula()).max() / np.abs(formula()).max())
    timings = interleave({"ours": own, "PyTorch": formula}, 7, 10.0)
    ratio = timings.ratio("PyTorch", "ours")
    note = f"{1e3 * timings.median('ours'):.1f} ms, {ratio.low:.2f} to {ratio.high:.2f}, difference {difference:.1e}"
    at = f"{tokens(n_inputs)} x {n_centroids}"
    yield Row("centroid", "centroid attention vs PyTorch's formula", at, ratio.median, bar=3.0, note=note)


def farthest(settings: Settings) -> Iterator[Row]:
    """Farthest point sampling against NumPy's loop over chosen points; the same points."""
    n_points, n_chosen = N_POINTS // settings.divisor, N_CHOSEN // settings.divisor
    points = np.random.default_rng(0).standard_normal((n_points, 3), np.float32)

    def loop() -> np.ndarray:
        chosen, distance = np.zeros(n_chosen, np.int64), np.full(n_points, np.inf, np.float32)
        for i in range(1, n_chosen):
            np.minimum(distance, ((points - points[chosen[i - 1]]) ** 2).sum(1), out=distance)
            chosen[i] = distance.argmax()
        return chosen

    own = partial(pyclattn.farthest_point_sampling, points[None], n_chosen, n_threads=settings.n_threads)
    timings = interleave({"ours": own, "NumPy": loop}, 3, 10.0)
    ratio, at = timings.ratio("NumPy", "ours"), f"{n_chosen} of {tokens(n_points)}"
    note = f"{1e3 * timings.median('ours'):.1f} ms, {ratio.low:.1f} to {ratio.high:.1f}"
    yield Row("farthest", "farthest points vs NumPy's loop", at, ratio.median, bar=20.0, note=note)
    is_same = bool(np.array_equal(own()[0], loop()))
    yield Row("farthest", "the same points as the loop", at, is_same, sense="is", bar=True)


def trained(settings: Settings) -> Iterator[Row]:
    """What the trained examples reached, against exact attention trained alike (`export/examples`)."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(TRAINED.glob("*.json"))}
    for example, networks in found.items():
        exact = next(network["accuracy"] for network in networks if network["name"] == "exact")
        bar = {"point_clouds": CENTROID_BEHIND, **dict.fromkeys(CAST_EXAMPLES, CAST_BEHIND)}.get(example)
        for network in networks:
            if network["name"] not in ("exact", "none"):
                what = f"{example}, {network['name']}: accuracy behind exact attention's"
                note = f"{network['accuracy']:.1%} and {exact:.1%}, {network['n_parameters']:,} parameters"
                yield Row("trained", what, "", exact - network["accuracy"], "%", "<=", bar, note)
        yield from _logits(example, networks)
        is_same = all(network["same_predictions"] == 1 for network in networks)
        yield Row("trained", f"{example}: same predictions as PyTorch", "", is_same, sense="is", bar=True)
    yield from _clouds(settings)


def _logits(example: str, networks: list[dict]) -> Iterator[Row]:
    """How far logits are from PyTorch's, beside how far those of PyTorch in float64 are."""
    found = {run: [network[run] for network in networks] for run in ("pyclattn", "float64")}
    for run, title, bar in (("pyclattn", "logits", 1.0), ("float64", "PyTorch in float64", None)):
        within, alike = (min(far[key] for far in found[run]) for key in ("within", "alike"))
        note = f"largest {max(far['largest'] for far in found[run]):.1e}; tokens in the same clusters in {alike:.1%}"
        yield Row("trained", f"{example}: {title} within 1e-4 of PyTorch's", "", within, "%", ">=", bar, note)
    largest = max(far["largest_alike"] for far in found["pyclattn"])
    what = f"{example}: logits where tokens are in the same clusters"
    yield Row("trained", what, "", largest, "relative", "<=", LARGEST_DIFFERENCE)


def _clouds(settings: Settings) -> Iterator[Row]:
    """Time of the Centroid network that was trained on clouds of points, in that of the plain one."""
    from pyclattn_export.examples.data import point_clouds

    points, _ = point_clouds.generate(10, 1024, seed=3)
    models = {n: pyclattn.load(TRAINED / f"point_clouds-{n}.safetensors") for n in ("centroid", "exact")}
    timings = interleave({name: partial(model, points=points) for name, model in models.items()}, 7, 10.0)
    ratio = timings.ratio("centroid", "exact")
    note = f"{1e3 * timings.median('centroid'):.1f} ms for 10 clouds, {ratio.low:.2f} to {ratio.high:.2f}"
    what = "point clouds, M = N/16: time of the plain network's"
    yield Row("trained", what, "1,024", ratio.median, "x", "<=", CENTROID_TIME, note)
