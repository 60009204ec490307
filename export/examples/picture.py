"""Accuracy while training, one panel an example, and what each network reached on the whole test set.

python export/examples/picture.py tests/data/trained docs/examples.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

EXAMPLES = ("listops", "pixels", "pixels_longer", "point_clouds", "tokens")
COLORS = ("#555555", "#c0392b", "#e68a7e", "#1f5fbf", "#7fb3e6", "#2e7d4f")
CONTROL = "none"


def draw(folder: Path, path: Path) -> None:
    """Read what `training.keep` wrote for each example, and draw it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter

    figure, axes = pyplot.subplots(2, 3, figsize=(16, 7.5), layout="constrained")
    for axis, name in zip(axes.flat, EXAMPLES):
        found = json.loads((folder / f"{name}.json").read_text())
        for color, network in zip(COLORS, (each for each in found if each["name"] != CONTROL)):
            _curve(axis, network, color, "-")
        for network in (each for each in found if each["name"] == CONTROL):
            _curve(axis, network, "#bbbbbb", "--")
        axis.set_title(name.replace("_", " "), fontsize=11)
        axis.set(xlabel="steps of training", ylim=(0, 1.02))
        axis.yaxis.set_major_formatter(PercentFormatter(1))
        axis.grid(color="#e4e4e4", linewidth=0.6)
        axis.legend(fontsize=9, title="accuracy on the whole test set", title_fontsize=9)
    for axis in axes.flat[len(EXAMPLES) :]:
        axis.remove()
    figure.savefig(path, dpi=85)


def _curve(axis, network: dict, color: str, line: str) -> None:
    curve = network["curve"]
    label = f"{network['accuracy']:.1%} {'no attention' if network['name'] == CONTROL else network['name']}"
    axis.plot(curve["step"], curve["accuracy"], line, color=color, label=label, linewidth=1.8, marker="o", markersize=3)


if __name__ == "__main__":
    draw(*map(Path, sys.argv[1:3]))
