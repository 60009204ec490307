"""``python -m bench.tasks.matching``: which points of one image are which of another, with 2,048 to 8,192 keypoints.

XFeat finds keypoints, LighterGlue (6 layers of self and cross attention) matches them. The pairs: one wall from two
sides, 30 degrees apart, and photographs beside their warped, noisy, darker selves; where each point belongs is known.
Prints time, peak memory and how many matches are right, each attention in a process of its own, and draws matches.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.tasks.captures import captured
from bench.tasks.fetch import LIGHTERGLUE, XFEAT, FetchError, fetch
from bench.tasks.lighterglue import N_LAYERS, LighterGlue
from bench.tasks.photographs import PAIRS, WALL, Pair, pair, project
from bench.tasks.workers import Answer, ask
from bench.tasks.xfeat import XFeat
from pyclattn import _threads, load_weights
from pyclattn.errors import PyclattnError
from pyclattn.plan import Plan, parse_attention

KEYPOINTS = (2048, 4096, 8192)
# A match is right if it is less than this many pixels from where the homography says.
NEAR = 3.0
# The published setting, and more clusters by what the keys see, with more keys.
PUBLISHED = {"method": "improved-clustered", "n_clusters": 100, "topk": 32}
LARGER = {"method": "improved-clustered", "n_clusters": 512, "topk": 128, "clustering": "metric"}
ATTENTIONS = {
    "exact": "exact",
    "improved, hashing": PUBLISHED,
    "improved, k-means": {**PUBLISHED, "clustering": "kmeans"},
    "improved, metric, larger": LARGER,
    "co-clustered": "coclustered",
    "co-clustered, larger": {"method": "coclustered", "n_query_clusters": 384, "n_exact": 256},
}
NEAREST = "nearest descriptors"
WIDTHS = (10, 9, 25, 8, 11, 7, 10, 6)
HEADINGS = ("pair", "keypoints", "attention", "time", "peak memory", "matches", "under 3 px", "F1")


@dataclass(frozen=True)
class Score:
    """How good matches are."""

    n_matches: int
    share: float  # of matches under 3 px
    f1: float  # against exact attention's matches


# -- the model --------------------------------------------------------------------------------------------------------


def networks(attention="exact", n_threads: int | None = None) -> tuple[XFeat, LighterGlue]:
    """Extractor and matcher, with the weights of their package."""
    extractor, matcher = fetch(XFEAT, LIGHTERGLUE)
    return (
        XFeat(load_weights(extractor), n_threads),
        LighterGlue(load_weights(matcher, prefix="matcher.", strip="matcher."), attention, n_threads),
    )


def prepare(request: Mapping, inputs: Mapping[str, np.ndarray]):
    """A call that extracts and matches: what `bench.tasks.workers` runs in its process."""
    extract, match = networks(request["attention"], request["n_threads"])

    def run() -> dict[str, np.ndarray]:
        first, second = (extract(inputs[name], request["n_keypoints"]) for name in ("first", "second"))
        pairs, chances = match(first, second)
        return {
            "pairs": pairs, "chances": chances, "first": first.keypoints, "second": second.keypoints,
            "first_descriptors": first.descriptors, "second_descriptors": second.descriptors,
        }  # fmt: skip

    return run


def nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pairs (P, 2) of descriptors that are each other's nearest: matching without a model.

    Examples
    --------
    >>> nearest(np.eye(3)[:2], np.eye(3)[::-1])
    array([[0, 2],
           [1, 1]])
    """
    closeness = a @ b.T
    best, back = closeness.argmax(1), closeness.argmax(0)
    kept = np.flatnonzero(back[best] == np.arange(len(a)))
    return np.stack([kept, best[kept]], 1)


def capture(n_keypoints: int = 4096, name: str = WALL, n_threads: int | None = None) -> dict[str, np.ndarray]:
    """What the matcher's attentions are given: ``"<layer>.self.q"`` of the first image, ``"<layer>.cross.q"`` from it.

    Each of q, k, v is (1, N, 96); see `captured`.
    """
    extract, match = networks("exact", n_threads)
    images = pair(name)
    features = [extract(image, n_keypoints) for image in (images.first, images.second)]
    names = [name for i in range(N_LAYERS) for name in (f"{i}.self", None, f"{i}.cross", None)]
    return captured(lambda: match(*features), names)


# -- scores -----------------------------------------------------------------------------------------------------------


def distances(images: Pair, outputs: Mapping[str, np.ndarray], pairs: np.ndarray) -> np.ndarray:
    """How far, in pixels, each match (P, 2) lies from where it belongs."""
    first, second = outputs["first"][pairs[:, 0]], outputs["second"][pairs[:, 1]]
    return np.linalg.norm(project(images.homography, first) - second, axis=1)


def f1(found: np.ndarray, wanted: np.ndarray) -> float:
    """Agreement of two sets of matches: the harmonic mean of precision and recall.

    Examples
    --------
    >>> f1(np.array([[0, 1], [1, 2]]), np.array([[0, 1], [5, 5], [6, 6]]))
    0.4
    """
    both = {tuple(p) for p in found.tolist()} & {tuple(p) for p in wanted.tolist()}
    return 2 * len(both) / max(1, len(found) + len(wanted))


def score(images: Pair, outputs: Mapping[str, np.ndarray], pairs: np.ndarray, wanted: np.ndarray) -> Score:
    """Of some matches; ``wanted`` are exact attention's."""
    near = distances(images, outputs, pairs) < NEAR
    return Score(len(pairs), float(near.mean()) if len(near) else 0.0, f1(pairs, wanted))


# -- table and picture ------------------------------------------------------------------------------------------------


def line(cells: tuple[str, ...]) -> str:
    """Cells in columns; names to the left, numbers to the right."""
    return "  ".join(f"{c:<{w}}" if i in (0, 2) else f"{c:>{w}}" for i, (c, w) in enumerate(zip(cells, WIDTHS)))


def row(name: str, n_keypoints: int, attention: str, answer: Answer | None, found: Score) -> str:
    """One line of the table; without an answer nothing was timed."""
    cost = ("", "") if answer is None else (f"{answer.seconds:.2f} s", f"{answer.peak_bytes / 1e6:,.0f} MB")
    scores = (f"{found.n_matches:,}", f"{100 * found.share:.1f} %", f"{found.f1:.3f}")
    return line((name, f"{n_keypoints:,}", attention, *cost, *scores))


def compare(images: Pair, n_keypoints: int, attentions: Mapping, n_threads: int, progress) -> dict[str, Answer]:
    """Run a pair with each attention and print its lines."""
    answers: dict[str, Answer] = {}
    inputs = {"first": images.first, "second": images.second}
    for title, attention in attentions.items():
        request = {"attention": attention, "n_threads": n_threads, "n_keypoints": n_keypoints}
        answers[title] = answer = ask("bench.tasks.matching", request, inputs)
        wanted = next(iter(answers.values())).outputs
        found = score(images, answer.outputs, answer.outputs["pairs"], wanted["pairs"])
        progress.write(row(images.name, n_keypoints, title, answer, found))
        progress.update()
    pairs = nearest(wanted["first_descriptors"], wanted["second_descriptors"])
    found = score(images, wanted, pairs, wanted["pairs"])
    progress.write(row(images.name, n_keypoints, NEAREST, None, found))
    return answers


def draw(path: Path, images: Pair, answers: Mapping[str, Answer], n_lines: int = 250) -> None:
    """The pair once for each attention, matches as lines: blue where right, orange where wrong."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.collections import LineCollection

    both = np.concatenate([images.first, images.second], 1)
    columns = min(2, len(answers))
    rows = -(-len(answers) // columns)
    height = 7.2 * both.shape[0] / both.shape[1] + 0.35
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(7.2 * columns, height * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (title, answer) in zip(axes.flat, answers.items()):
        pairs = answer.outputs["pairs"]
        is_near = distances(images, answer.outputs, pairs) < NEAR
        shown = np.unique(np.linspace(0, len(pairs) - 1, min(n_lines, len(pairs))).astype(int))
        ends = np.stack([answer.outputs["first"][pairs[shown, 0]], answer.outputs["second"][pairs[shown, 1]]], 1)
        ends[:, 1, 0] += images.first.shape[1]
        colours = np.where(is_near[shown], "#2f9bff", "#ff8c1a")
        axis.imshow(both // 2 + 100)
        axis.add_collection(LineCollection(list(ends), colors=list(colours), linewidths=0.7, alpha=0.8))
        share = 100 * is_near.mean() if len(pairs) else 0.0
        axis.set_title(
            f"{title}: {len(pairs):,} matches, {share:.1f} % under 3 px, {answer.seconds:.2f} s", fontsize=11
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75)
    pyplot.close(figure)


def table(names, keypoints, attentions: Mapping, n_threads: int, picture: Path) -> None:
    """Print all lines; draw the first pair at the middle number of keypoints."""
    from tqdm import tqdm

    print(f"XFeat and LighterGlue, {n_threads} threads; time and memory of extracting and matching a pair\n")
    print(line(HEADINGS))
    print("-" * (sum(WIDTHS) + 2 * len(WIDTHS) - 2), flush=True)
    n_runs = len(names) * len(keypoints) * len(attentions)
    with tqdm(total=n_runs, disable=None, leave=False, unit="run") as progress:
        for name in names:
            images = pair(name)
            for n in keypoints:
                answers = compare(images, n, attentions, n_threads, progress)
                if name == names[0] and n == keypoints[len(keypoints) // 2]:
                    draw(picture, images, answers)
    print("\nTime: best of 3 runs after a first one. Peak memory: of the whole process. F1: against the first line of")
    print(
        f"each block. {NEAREST.capitalize()}: pairs of descriptors nearest to each other, no model.\nPicture: {picture}"
    )


def main(given: list[str] | None = None) -> int:
    """Run the task."""
    parser = argparse.ArgumentParser(prog="python -m bench.tasks.matching", description=__doc__)
    parser.add_argument("--pair", action="append", choices=PAIRS, help="default: all")
    parser.add_argument("--keypoints", type=int, action="append", help=f"default: {', '.join(map(str, KEYPOINTS))}")
    parser.add_argument("--attention", action="append", help="a method or JSON, as pyclattn run takes it; default: all")
    parser.add_argument("--n-threads", type=int, help="default: the CPUs there are")
    parser.add_argument("--picture", type=Path, default=Path("out/matching.png"), help="(%(default)s)")
    options = parser.parse_args(given)
    try:
        chosen = {text: parse_attention(text) for text in options.attention or ()} or ATTENTIONS
        for attention in chosen.values():
            Plan.of(attention, LighterGlue.attentions)
        if options.keypoints and min(options.keypoints) < 1:
            parser.error(f"--keypoints must be at least 1, got {min(options.keypoints)}")
        n_threads = _threads.resolve(options.n_threads)
        table(options.pair or PAIRS, options.keypoints or KEYPOINTS, chosen, n_threads, options.picture)
    except (PyclattnError, FetchError) as error:
        print(f"matching: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
