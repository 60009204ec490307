"""Pictures of the report: cost against length with fitted exponents, whole models, shares of the peak."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Contents = dict[str, dict[str, Any]]
COLOURS = {
    "pyclattn": "#c0392b", "clustered": "#1f5fbf", "openvino": "#8e5ea2", "onnxruntime": "#d98a1f", "torch": "#2e7d4f",
}  # fmt: skip
ATTENTION = {
    "exact": ("pyclattn, exact", "pyclattn", "o"),
    "improved": ("pyclattn, improved clustered", "clustered", "s"),
    "ONNX Runtime": ("ONNX Runtime", "onnxruntime", "^"),
    "OpenVINO": ("OpenVINO", "openvino", "v"),
    "PyTorch": ("PyTorch", "torch", "D"),
}


MARKERS = "os^vDXP*<>hd"
# Of an engine's name after the dash; others are drawn in full.
STYLES = {"bf16": "--", "int8": ":", "int8+bf16": ":"}


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> bool:
    figure.savefig(path, dpi=90)
    _pyplot().close(figure)
    return True


def exponent(lengths: list[int], seconds: list[float]) -> float:
    """Slope of a line through the logarithms.

    Examples
    --------
    >>> round(exponent([1, 2, 4], [3.0, 12.0, 48.0]), 6)
    2.0
    """
    return float(np.polyfit(np.log(lengths), np.log(seconds), 1)[0])


def attention_times(rows: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Seconds of each function at each length."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["group"] in ("exact", "improved") and row["at"].replace(",", "").isdigit():
            for name, own in row["detail"].get("seconds", {}).items():
                if name in ATTENTION:
                    found.setdefault(name, {})[int(row["at"].replace(",", ""))] = own["median"]
    return found


def growth(path: Path, contents: Contents) -> bool:
    """Time against length on log axes."""
    times = {n: own for n, own in attention_times(contents["attention"]["rows"]).items() if len(own) > 1}
    if not times:
        return False
    curves = [(*ATTENTION[name], times[name]) for name in ATTENTION if name in times]
    return _curves(path, curves, "attention, 12 heads of 64, float32")


def scaling(path: Path, contents: Contents) -> bool:
    """Time of the saliency model against its tokens."""
    times: dict[str, dict[int, float]] = {}
    for case, own in contents["models"].get("found", {}).items():
        what, *sizes = case.split()
        if what == "saliency":
            for name, each in _ran(own).items():
                times.setdefault(name, {})[(int(sizes[0]) // 14) ** 2 + 1] = float(np.median(each["seconds"]))
    curves = [(n, _colour(n), MARKERS[i % len(MARKERS)], own) for i, (n, own) in enumerate(times.items())]
    curves = [curve for curve in curves if len(curve[3]) > 1]
    return bool(curves) and _curves(path, curves, "a vision transformer, whole (ViT-S/14)")


def _curves(path: Path, curves: list[tuple[str, str, str, dict[int, float]]], title: str) -> bool:
    """(label, colour, marker, seconds at each length) on log axes, with the exponent of each."""
    figure, axis = _pyplot().subplots(figsize=(9.5, 5), layout="constrained")
    for label, colour, marker, own in curves:
        lengths, seconds = zip(*sorted(own.items()))
        kind = label.rpartition("-")[2]
        label = f"{label}: length^{exponent(lengths, seconds):.2f}"
        axis.plot(
            lengths, seconds, STYLES.get(kind, "-"), label=label, color=COLOURS.get(colour, colour), marker=marker
        )
    axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="seconds")
    ticks = sorted({length for *_, own in curves for length in own})
    axis.set_xticks(ticks, [f"{n / 1024:g}K" if n % 1024 == 0 else f"{n:,}" for n in ticks])
    low, high = axis.get_ylim()
    shown = [m * 10.0**e for e in range(-6, 6) for m in ((1, 2, 5) if high < 1000 * low else (1,))]
    axis.set_yticks([y for y in shown if low <= y <= high], [f"{y:g}" for y in shown if low <= y <= high])
    axis.minorticks_off()
    axis.grid(color="#e4e4e4", linewidth=0.6)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axis.set_title(title, fontsize=11)
    return _save(figure, path)


def _colour(engine: str) -> str:
    name = engine.partition("-")[0]
    return COLOURS["clustered" if name in ("coclustered", "calibrated") else name]


def models(path: Path, contents: Contents) -> bool:
    """Time and peak memory of whole models, one panel a case."""
    found = {case: _ran(own) for case, own in contents["models"].get("found", {}).items()}
    found = {case: own for case, own in found.items() if len(own) > 1}
    if not found:
        return False
    heights = [0.8 + 0.27 * len(own) for own in found.values()]
    figure, axes = _pyplot().subplots(
        len(found), 2, figsize=(11, sum(heights)), layout="constrained", squeeze=False, height_ratios=heights
    )
    for (case, own), pair in zip(found.items(), axes):
        for axis, what, unit in zip(pair, ("seconds", "bytes"), ("s", "MB")):
            values = [float(np.median(each[what])) / (1 if unit == "s" else 1e6) for each in own.values()]
            bars = axis.barh(list(own), values, color=[_colour(name) for name in own])
            axis.bar_label(bars, [f"{value:#.3g}" if unit == "s" else f"{value:,.0f}" for value in values], padding=3)
            axis.invert_yaxis()
            axis.set_xlim(right=1.15 * max(values))
            axis.set_title(f"{case}: {'time, s' if unit == 's' else 'peak memory, MB'}", fontsize=11)
            axis.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def _ran(own: dict[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in own.items() if each.get("seconds") and "failed" not in each}


def roofline(path: Path, contents: Contents) -> bool:
    """What share of the peak of multiply-adds each exact float32 engine reaches."""
    peak, shares = contents["models"].get("peak"), {}
    for case, own in contents["models"].get("found", {}).items():
        ran = _ran(own)
        flops = ran.get("pyclattn", {}).get("flops")
        if flops and peak:
            plain = {name: each for name, each in ran.items() if name in ("pyclattn", "openvino", "onnxruntime")}
            shares[case] = {name: flops / float(np.median(each["seconds"])) / peak for name, each in plain.items()}
    if not shares:
        return False
    figure, axis = _pyplot().subplots(figsize=(9, 4), layout="constrained")
    for i, name in enumerate(("pyclattn", "openvino", "onnxruntime")):
        places = [(number, own[name]) for number, own in enumerate(shares.values()) if name in own]
        bars = axis.bar([n + 0.27 * (i - 1) for n, _ in places], [v for _, v in places], 0.25, color=COLOURS[name])
        axis.bar_label(bars, [f"{100 * v:.0f} %" for _, v in places], fontsize=9)
        bars.set_label(name)
    axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axis.set_xticks(range(len(shares)), list(shares))
    axis.set(ylim=(0, 1.05), ylabel=f"of {peak / 1e9:.0f} GFLOP/s")
    axis.set_title("share of the measured peak of float32 multiply-adds", fontsize=11)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return _save(figure, path)


# Name -> (part it belongs to, caption, drawn or not).
PLOTS: dict[str, tuple[str, str, Callable[[Path, Contents], bool]]] = {
    "models": ("models", "Time and peak memory of whole models", models),
    "roofline": ("models", "Share of the peak of multiply-adds", roofline),
    "scaling": ("models", "Time of a vision transformer against its tokens", scaling),
    "growth": ("attention", "Time of attention against length", growth),
}
