"""Error against speed as one picture: a panel for each task and length, a curve for each method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.frontier import calibrated, uniform

STYLES = {
    "co-clustered": {"color": "#c0392b", "linewidth": 2.4, "marker": "o", "zorder": 5},
    "improved, metric": {"color": "#1f5fbf", "marker": "s"},
    "improved, kmeans": {"color": "#4d94e0", "marker": "^"},
    "improved, lsh": {"color": "#9cc3f0", "marker": "v"},
    "clustered, metric": {"color": "#2e7d4f", "marker": "s", "linestyle": ":"},
    "clustered, kmeans": {"color": "#5fb07f", "marker": "^", "linestyle": ":"},
    "clustered, lsh": {"color": "#a3d4b5", "marker": "v", "linestyle": ":"},
    "SMYRF": {"color": "#8e5ea2", "marker": "D", "linestyle": "--"},
    "block-sparse": {"color": "#d98a1f", "marker": "X", "linestyle": "--"},
}
N_COLUMNS = 3
# Errors below this are exact for any purpose; the axis ends there.
LEAST = 1e-3


def draw(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """Draw all cases there are: each layer with its own setting (lines), one setting for all (marks)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullFormatter

    n_rows = -(-len(results) // N_COLUMNS)
    figure, axes = pyplot.subplots(
        n_rows, N_COLUMNS, figsize=(5.2 * N_COLUMNS, 4.1 * n_rows + 0.6), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(results) :]:
        axis.set_axis_off()
    for axis, (name, result) in zip(axes.flat, results.items()):
        panel(axis, result)
        axis.set_title(f"{name} tokens", fontsize=11)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(which="both", color="#e4e4e4", linewidth=0.6)
    for axis in axes[:, 0]:
        axis.set_ylabel("error of a layer's output")
    for axis in axes[-1]:
        axis.set_xlabel("speed, in exact attention's")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(STYLES), fontsize=10, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def panel(axis, result: dict[str, Any]) -> None:
    """One case; right and down is better."""
    exact = sum(result["exact"])
    for curve, style in STYLES.items():
        marks = [(speed, error) for speed, error, _ in uniform(result, curve) if error > LEAST]
        line = [(exact / seconds, error) for seconds, error in calibrated(result, curve) if error > LEAST]
        quiet = {**style, "marker": ""}
        axis.plot(*zip(*line), **quiet) if line else None
        axis.plot(*zip(*marks), **{**style, "linestyle": ""}, markersize=5) if marks else None
        axis.plot([], [], label=curve, **style)
    axis.set(xscale="log", yscale="log", ylim=(LEAST, 1.0))
    axis.set_xlim(left=0.8)
    axis.set_xticks([t for t in (1, 2, 5, 10, 20, 50, 100, 200) if t <= axis.get_xlim()[1]])
