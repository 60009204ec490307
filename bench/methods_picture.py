"""Speed and memory of every method's encoder over length, relative to the exact encoder in PyTorch."""

from __future__ import annotations

from pathlib import Path

from bench.encoders import EXACT, MATRIX, TORCH
from bench.rows import Row

STYLES = {
    EXACT: {"color": "#555555", "marker": "o"},
    "CAST Top-K": {"color": "#c0392b", "marker": "o"},
    "CAST SA Top-K": {"color": "#e68a7e", "marker": "s"},
    "Centroid N/4": {"color": "#7fb3e6", "marker": "^"},
    "Centroid N/16": {"color": "#1f5fbf", "marker": "^"},
    "clustered": {"color": "#a3d4b5", "marker": "D"},
    "improved clustered": {"color": "#2e7d4f", "marker": "D"},
    MATRIX: {"color": "#999999", "marker": "X", "linestyle": "--"},
}


def draw(path: Path, rows: list[Row]) -> None:
    """Two panels: speed, and memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    curves = {"speed": _curves(rows, "speed"), "memory": _curves(rows, "memory")}
    for axis, (group, unit) in zip(axes, (("speed", "x"), ("memory", " %"))):
        for name, style in STYLES.items():
            points = curves[group].get(name, [])
            if points:
                label = "exact, ours" if name == EXACT else name
                axis.plot(*zip(*points), label=label, linewidth=1.8, markersize=5, **style)
        axis.axhline(100 if group == "memory" else 1, color="black", linewidth=0.8, linestyle=":")
        axis.set(xscale="log", yscale="log", xlabel="tokens")
        axis.set_xticks(sorted({x for points in curves[group].values() for x, _ in points}))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1024:g}K"))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _, unit=unit: f"{y:g}{unit}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(which="both", color="#e4e4e4", linewidth=0.6)
    axes[0].set_title(f"speed, in that of the exact encoder in {TORCH}", fontsize=11)
    axes[1].set_title(f"memory, of that of the exact encoder in {TORCH}", fontsize=11)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=10, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _curves(rows: list[Row], group: str) -> dict[str, list[tuple[int, float]]]:
    """(tokens, speed or per cent of memory) of each encoder."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        value = row.detail.get("of", {}).get(TORCH) if group == "memory" else row.value
        if row.group == group and value is not None:
            name = row.what.removesuffix(" encoder")
            found.setdefault(name, []).append(
                (int(row.at.replace(",", "")), 100 * value if group == "memory" else value)
            )
    return found
