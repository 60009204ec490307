"""A folder that shows what a calibration found: report.md and its pictures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np

from pyclattn._tables import table
from pyclattn.calibration import pictures
from pyclattn.calibration.clusters import coloured, grid
from pyclattn.calibration.ladder import START, setting_of
from pyclattn.calibration.pictures import HeadCurve
from pyclattn.calibration.records import Record, relative
from pyclattn.calibration.solving import Curve, length_classes, solve_attention
from pyclattn.errors import ArgumentError
from pyclattn.functional.coclustered import query_clusters
from pyclattn.graph.spec import Observed
from pyclattn.model import Model
from pyclattn.plan import LengthClass, Plan

# Bounds beside the plan's own for which the whole output is shown.
FACTORS = (0.5, 1, 2, 4)
# Attentions, and heads of each, whose clusters are shown.
SHOWN, SHOWN_HEADS = 3, 4


def require(folder: str | os.PathLike) -> None:
    """Raise ArgumentError where there is no Matplotlib, or the folder cannot be made."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ArgumentError("report needs Matplotlib: pip install pyclattn[calibrate]") from None
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"report must be a folder, {str(folder)!r} cannot be made: {error.strerror}") from error


def write(
    folder: str | os.PathLike, model: Model, feeds: Sequence[Mapping], records: Mapping[str, Sequence[Record]],
    plan: Plan, target: float,
) -> None:  # fmt: skip
    """Write the report of a plan.

    Parameters
    ----------
    folder : path-like
        Made if it is not there.
    model : Model
    feeds : sequence of mappings
        The longest sample is run for pictures.
    records : mapping of attention's name to records
    plan : Plan
    target : float
        The bound the plan was solved for.
    """
    folder = Path(folder)
    feed = max(feeds, key=lambda f: sum(a.size for a in f.values()))
    text = ["# Calibration", "", f"Largest error of an attention: {target:.3g}. {len(feeds)} samples, "
            f"{model.n_threads} threads.", "", "```", plan.summary(), "```", ""]  # fmt: skip
    longest = {name: _longest(plan, name, own) for name, own in records.items()}
    tried = {name: found for name, found in longest.items() if any(record.probes for record in found[0])}
    if tried:
        pictures.errors(folder / "errors.png", tried, target)
        text += _picture("errors.png", "Error against time of every setting tried, on every sample. The star is the "
                         "chosen point: what is expected of inputs unseen. Dotted: the bound.")  # fmt: skip
        text += _heads(folder, tried, target)
    else:
        text += ["No setting was tried: all attentions are masked by pairs of tokens, causal or short.", ""]
    text += _whole(folder, model, feed, records, plan, target)
    text += _clusters(folder, model, feed, longest)
    (folder / "report.md").write_text("\n".join(text), encoding="utf-8")


def _picture(name: str, caption: str) -> list[str]:
    return [f"![{caption}]({name})", "", caption, ""]


def _longest(plan: Plan, name: str, records: Sequence[Record]) -> tuple[Sequence[Record], LengthClass]:
    """The records of the longest class, and its choice."""
    return length_classes(records)[-1], plan.calibrated[name].classes[-1]


def head_curves(longest: Mapping[str, tuple[Sequence[Record], LengthClass]]) -> dict[str, HeadCurve]:
    """Each head's error over time, in the family that was chosen, or else the first."""
    curves = {}
    for name, (records, chosen) in longest.items():
        family, level = setting_of(chosen.choices) or (START, 0)
        curve = Curve(family, records)
        if curve.levels:
            norms = np.array([record.norms for record in records])
            mean = np.sqrt(np.mean(curve.errors / np.maximum(norms, 1e-300), axis=1))
            share = dict(zip(curve.levels, curve.shares.tolist())).get(level)
            curves[name] = HeadCurve(family.name, curve.shares, mean, share, _exact_heads(records[0], chosen))
    return curves


def _heads(folder: Path, tried: Mapping[str, tuple[Sequence[Record], LengthClass]], target: float) -> list[str]:
    curves = head_curves(tried)
    if not curves:
        return []
    pictures.heads(folder / "heads.png", curves, target)
    return _picture("heads.png", "Error of each head (of keys) against the time of all, in the family of settings that "
                    "was chosen: root of the mean square over samples. Dashed: heads that run exactly, or by another "
                    "setting. Stars: the chosen point.")  # fmt: skip


def _exact_heads(record: Record, chosen: LengthClass) -> set[int]:
    """Heads of keys that are set aside from the chosen setting."""
    group = record.n_heads // record.n_kv_heads
    kept = chosen.choices[-1]
    if kept.method == "exact" and kept.heads is None:
        return set(range(record.n_kv_heads))
    return set() if kept.heads is None else set(range(record.n_kv_heads)) - {head // group for head in kept.heads}


def _whole(
    folder: Path, model: Model, feed: Mapping, records: Mapping[str, Sequence[Record]], plan: Plan, target: float
) -> list[str]:
    """Runs by plans of several bounds: outputs, time, where it goes."""
    exact, exact_kinds, exact_seconds = _timed(model, Plan(), feed)
    rows = [{"target": 0.0, "seconds": exact_seconds, "error": 0.0}]
    bars = {"exact": exact_kinds}
    found = exact
    for factor in FACTORS:
        other = plan
        if factor != 1:
            solved = {name: solve_attention(own, factor * target) for name, own in records.items()}
            other = replace(plan, calibrated=solved)
        outputs, kinds, seconds = _timed(model, other, feed)
        rows.append({"target": factor * target, "seconds": seconds, "error": output_error(exact, outputs)})
        if factor == 1:
            found, bars["by the plan"] = outputs, kinds
    pictures.whole(folder / "whole.png", rows, target)
    pictures.times(folder / "times.png", bars)
    text = _picture("whole.png", "Error of the whole output against the time of a run, for plans of other bounds "
                    "solved from what was measured for this one.")  # fmt: skip
    cells = [
        (f"{r['target']:.3g}" if r["target"] else "exact", f"{r['seconds']:.3f}", f"{r['error']:.5f}") for r in rows
    ]
    text += ["```", table(cells, ("max_error", "seconds", "output error")), "```", ""]
    text += _picture("times.png", "Where time goes, by operator.")
    for i, (name, array) in enumerate(exact.items()):
        if array.dtype.kind == "f" and array.size > 1:
            pictures.outputs(folder / f"output_{i}.png", name, array, found[name])
            text += _picture(f"output_{i}.png", f"Output {name}: exact, and by the plan.")
    return text


def output_error(exact: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    """Relative error of all outputs that are numbers with a fraction, the largest."""
    errors = [0.0]
    for name, array in exact.items():
        if array.dtype.kind == "f":
            wide = array.astype(np.float64)
            errors.append(relative(float(((found[name] - wide) ** 2).sum()), float((wide**2).sum())))
    return max(errors)


def _timed(model: Model, plan: Plan, feed: Mapping) -> tuple[dict[str, np.ndarray], dict[str, float], float]:
    """Outputs, seconds by kind of operator, and of the run: the faster of two after a first, which plans."""
    runner = Model(model.program, attention=plan, n_threads=model.n_threads, max_memory=model.max_memory)
    runner(**feed)
    seconds = np.inf
    for _ in range(2):
        start = perf_counter()
        found, new = runner.profile(feed)
        if (taken := perf_counter() - start) < seconds:
            outputs, events, seconds = found, new, taken
    kinds: Counter = Counter()
    for op, begin, end in events:
        kinds[op.kind] += (end - begin) / 1e9
    return outputs, dict(kinds), seconds


def _query_clusters(chosen: LengthClass, seen: Observed) -> int:
    """As many as the choice for most heads has."""
    n_queries, n_keys = seen.query.shape[2], seen.key.shape[2]
    given = chosen.choices[-1].at(n_queries, n_keys)
    return int(given.get("n_query_clusters") or given.get("n_clusters") or query_clusters(n_queries))


def _clusters(folder: Path, model: Model, feed: Mapping, longest: Mapping) -> list[str]:
    """Clusters on the grid of tokens, of some attentions that the plan clusters."""
    clustered = [name for name, (_, c) in longest.items() if any(choice.method != "exact" for choice in c.choices)]
    places = np.linspace(0, len(clustered) - 1, min(SHOWN, len(clustered))).round().astype(int)
    names = [clustered[i] for i in places]
    panels: dict[str, np.ndarray] = {}
    short = pictures.short(list(longest))

    def observe(seen: Observed) -> None:
        square = grid(seen.query.shape[2])
        if seen.name not in names or square is None:
            return
        special, side = square
        group = seen.query.shape[1] // seen.key.shape[1]
        n_clusters = _query_clusters(longest[seen.name][1], seen)
        for head in range(min(SHOWN_HEADS, seen.query.shape[1])):
            colours = coloured(seen.query[0, head], seen.key[0, head // group], n_clusters, model.n_threads)
            panels[f"{short[seen.name]}, head {head}"] = colours[special:].reshape(side, side, 3)

    runner = Model(
        model.program, attention="exact", n_threads=model.n_threads, max_memory=model.max_memory, observe=observe
    )
    if names:
        runner(**feed)
    if not panels:
        return ["The tokens lie in no square grid, or no attention is clustered: no picture of clusters.", ""]
    pictures.clusters(folder / "clusters.png", panels)
    return _picture("clusters.png", "Which tokens go together, on their grid: a colour a cluster of queries, near "
                    "clusters in like colours.")  # fmt: skip
