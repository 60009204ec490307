"""Pictures of a calibration's report. Matplotlib is imported when the first is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyclattn.calibration.ladder import FAMILIES
from pyclattn.calibration.records import Record
from pyclattn.plan import LengthClass

# Panels of a row.
COLUMNS = 4
# Of words that may stand on a line.
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 1}
# Heads that a legend names one by one.
MOST_NAMED = 16
# Colours of families: blue, dark to light, by clusters of both sides; others apart. Told apart without red and green.
COLOURS = dict(zip(FAMILIES, ("#0d3b66", "#2a78b5", "#8e5ea2", "#86c1e8", "#e07a1f"), strict=True))


def pyplot() -> Any:
    """matplotlib.pyplot, drawing to files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as module

    return module


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot().close(figure)


def short(names: Sequence[str]) -> dict[str, str]:
    """Names without the words that all of them share.

    Examples
    --------
    >>> short(["encoder.layer.0.attention", "encoder.layer.10.attention"])
    {'encoder.layer.0.attention': '0', 'encoder.layer.10.attention': '10'}
    """
    parts = [name.split(".") for name in names]
    if len(parts) < 2:
        return {name: name for name in names}
    least = min(map(len, parts))
    front = next((i for i in range(least) if len({p[i] for p in parts}) > 1), least)
    back = next((i for i in range(least - front) if len({p[-1 - i] for p in parts}) > 1), 0)
    return {name: ".".join(p[front : len(p) - back]) or name for name, p in zip(names, parts)}


def errors(path: Path, classes: Mapping[str, tuple[Sequence[Record], LengthClass]], target: float) -> None:
    """Error against time, a panel an attention: every setting tried on every sample, and the chosen point."""
    names = short(list(classes))
    n_rows = -(-len(classes) // COLUMNS)
    n_columns = min(COLUMNS, len(classes))
    figure, axes = pyplot().subplots(
        n_rows, n_columns, figsize=(3.4 * n_columns, 2.7 * n_rows + 0.6), layout="constrained", sharex=True,
        sharey=True, squeeze=False,
    )  # fmt: skip
    for axis, (name, (records, chosen)) in zip(axes.flat, classes.items()):
        for family in FAMILIES:
            for i, record in enumerate(records):
                probes = sorted(record.probes.get(family, {}).items())
                x = [probe.seconds / record.seconds for _, probe in probes]
                y = [max(record.error(family, level), 1e-6) for level, _ in probes]
                label = family if i == 0 else None
                axis.plot(x, y, "o-", ms=3, lw=0.8, alpha=0.7, color=COLOURS[family], label=label)
        if chosen.error:
            axis.plot([1 / (chosen.speedup or 1)], [chosen.error], "*", ms=13, color="crimson", label="chosen")
        axis.axhline(target, color="black", lw=0.8, ls=":")
        speed = f"{chosen.speedup:.1f}x" if chosen.error else "exact"
        axis.set_title(f"{names[name]}: {speed}", fontsize=10)
        axis.set_yscale("log")
        axis.set_xlim(0, 1.25)
        axis.grid(alpha=0.2)
    for axis in axes.flat[len(classes) :]:
        axis.set_axis_off()
    figure.supxlabel("time, of exact attention", fontsize=10)
    figure.supylabel("relative error", fontsize=10)
    handles = {}
    for axis in axes.flat:
        handles.update({label: h for h, label in zip(*axis.get_legend_handles_labels())})
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    _save(figure, path)


@dataclass(frozen=True)
class HeadCurve:
    """One attention's heads over the levels of one family.

    Attributes
    ----------
    family : str
    shares : float array (levels,)
        Time, of exact attention's.
    errors : float array (levels, heads)
        Relative.
    chosen : float, optional
        Where among the shares the chosen level is.
    aside : set of int
        Heads that run otherwise.
    """

    family: str
    shares: np.ndarray
    errors: np.ndarray
    chosen: float | None
    aside: set[int]


def heads(path: Path, curves: Mapping[str, HeadCurve], target: float) -> None:
    """Error against time, a panel an attention, a line a head."""
    names = short(list(curves))
    n_columns = min(COLUMNS, len(curves))
    n_rows = -(-len(curves) // n_columns)
    figure, axes = pyplot().subplots(
        n_rows, n_columns, figsize=(3.4 * n_columns, 2.7 * n_rows + 0.6), layout="constrained", sharex=True,
        sharey=True, squeeze=False,
    )  # fmt: skip
    most = max(curve.errors.shape[1] for curve in curves.values())
    colours = pyplot().get_cmap("viridis")(np.linspace(0, 0.95, most))
    lines = {}
    for axis, (name, curve) in zip(axes.flat, curves.items()):
        for head, column in enumerate(np.maximum(curve.errors, 1e-6).T):
            is_aside = head in curve.aside
            style = "--" if is_aside else "-"
            (lines[head],) = axis.plot(curve.shares, column, style, marker=".", ms=4, lw=1, color=colours[head])
            if curve.chosen is not None and not is_aside:
                at = int(np.argmin(np.abs(curve.shares - curve.chosen)))
                axis.plot([curve.shares[at]], [column[at]], "*", ms=9, color=colours[head], mec="black", mew=0.5)
        axis.axhline(target, color="black", lw=0.8, ls=":")
        axis.set_title(f"{names[name]}: {curve.family.partition(' ')[2]}", fontsize=7)
        axis.set_yscale("log")
        axis.grid(alpha=0.2)
    ends = [curve.shares[at] for curve in curves.values() for at in (0, -1)]
    axes.flat[0].set_xlim(0.9 * min(ends), 1.1 * max(ends))  # all share it
    for axis in axes.flat[len(curves) :]:
        axis.set_axis_off()
    figure.supxlabel("time, of exact attention", fontsize=10)
    figure.supylabel("relative error of a head", fontsize=10)
    shown = sorted(lines) if most <= MOST_NAMED else [0, most - 1]  # dark to light in their order
    figure.legend(
        [lines[head] for head in shown], [f"head {head}" for head in shown], loc="outside upper center",
        ncols=min(len(shown), 8), fontsize=9, frameon=False,
    )  # fmt: skip
    _save(figure, path)


def whole(path: Path, rows: Sequence[Mapping[str, float]], target: float) -> None:
    """Error of the whole output against the time of a run, for plans of several bounds."""
    figure, axis = pyplot().subplots(figsize=(5.6, 3.8), layout="constrained")
    known = [row for row in rows if row["target"] > 0]
    axis.plot([r["seconds"] for r in known], [max(r["error"], 1e-7) for r in known], "o-", color="#2a78b5")
    for i, row in enumerate(known):
        weight = "bold" if row["target"] == target else "normal"
        axis.annotate(
            f"max_error {row['target']:.3g}", (row["seconds"], max(row["error"], 1e-7)),
            xytext=(8, (-9, 0, 0, 9)[i % 4]), va="center", textcoords="offset points", fontsize=9, weight=weight,
            bbox=BEHIND,
        )  # fmt: skip
    exact = next(row for row in rows if row["target"] == 0)
    axis.axvline(exact["seconds"], color="black", lw=0.8, ls=":")
    axis.annotate("exact", (exact["seconds"], 0.5), xycoords=("data", "axes fraction"), xytext=(-4, 0),
                  textcoords="offset points", ha="right", va="bottom", fontsize=9, bbox=BEHIND)  # fmt: skip
    axis.set_yscale("log")
    axis.margins(y=0.12)
    axis.set_xlim(0, 1.5 * max(row["seconds"] for row in rows))
    axis.set_xlabel("seconds of a run")
    axis.set_ylabel("relative error of the outputs")
    axis.grid(alpha=0.2)
    _save(figure, path)


def times(path: Path, bars: Mapping[str, Mapping[str, float]]) -> None:
    """Where time goes: seconds by kind of operator, a bar a run."""
    totals: dict[str, float] = {}
    for bar in bars.values():
        for kind, seconds in bar.items():
            totals[kind] = max(totals.get(kind, 0), seconds)
    largest = sorted(totals, key=totals.__getitem__, reverse=True)[:6]
    figure, axis = pyplot().subplots(figsize=(8, 1.4 + 0.6 * len(bars)), layout="constrained")
    colours = pyplot().get_cmap("tab10")
    left = np.zeros(len(bars))
    for i, kind in enumerate([*largest, "others"]):
        widths = [
            sum(s for k, s in bar.items() if k not in largest) if kind == "others" else bar.get(kind, 0.0)
            for bar in bars.values()
        ]
        axis.barh(list(bars), widths, left=left, label=kind.removeprefix("pyclattn:"), color=colours(i), height=0.6)
        left += widths
    for i, total in enumerate(left):
        axis.text(total, i, f" {total:.2f} s", va="center", fontsize=9)
    axis.set_xlim(0, 1.12 * left.max())
    axis.invert_yaxis()
    axis.set_xlabel("seconds")
    axis.legend(ncols=4, fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _save(figure, path)


def outputs(path: Path, name: str, exact: np.ndarray, found: np.ndarray) -> None:
    """An output beside the exact one: as pictures where it is one, else value against value."""
    flat = np.squeeze(exact)
    if flat.ndim == 2 and min(flat.shape) >= 16:
        other = np.squeeze(found)
        figure, axes = pyplot().subplots(1, 3, figsize=(12.6, 3.9), layout="constrained")
        limits = {"vmin": float(flat.min()), "vmax": float(flat.max()), "cmap": "magma"}
        worst = float(np.abs(other - flat).max()) or 1e-12
        drawn = [axes[0].imshow(flat, **limits), axes[1].imshow(other, **limits)]
        drawn.append(axes[2].imshow(other - flat, cmap="PuOr", vmin=-worst, vmax=worst))
        for axis, image, title in zip(axes, drawn, (f"{name}, exact", "by the plan", "difference")):
            axis.set_title(title, fontsize=10)
            axis.set_axis_off()
            figure.colorbar(image, ax=axis, shrink=0.85)
    else:
        figure, axis = pyplot().subplots(figsize=(4.6, 4.4), layout="constrained")
        step = max(1, exact.size // 20_000)
        axis.plot(exact.ravel()[::step], found.ravel()[::step], ".", ms=2, alpha=0.4, color="#2a78b5")
        ends = [float(exact.min()), float(exact.max())]
        axis.plot(ends, ends, color="black", lw=0.8, ls=":")
        axis.set_xlabel(f"{name}, exact")
        axis.set_ylabel("by the plan")
    _save(figure, path)


def clusters(path: Path, panels: Mapping[str, np.ndarray]) -> None:
    """Which tokens go together: pictures (side, side, 3), a colour a cluster."""
    n_columns = min(COLUMNS, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure, axes = pyplot().subplots(
        n_rows, n_columns, figsize=(3.1 * n_columns, 3.3 * n_rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (title, pixels) in zip(axes.flat, panels.items()):
        axis.imshow(pixels, interpolation="nearest")
        axis.set_title(title, fontsize=10)
    _save(figure, path)
