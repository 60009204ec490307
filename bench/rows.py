"""A row of a report: what was measured, where, its bar, and whether it holds; and tables of text and Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

WIDTHS = (52, 8, 12, 12, 5)


@dataclass
class Row:
    """``value`` is a number, a bool, or None where it could not be measured (``note`` says why).

    ``bar`` is compared by ``sense`` (">=", "<=" or "is"); a row without a bar is for information.
    """

    group: str
    what: str
    at: str
    value: float | bool | None
    unit: str = "x"
    sense: str = ">="
    bar: float | bool | None = None
    note: str = ""
    detail: dict[str, Any] = field(default_factory=dict)
    holds_here: bool = True  # False at sizes the bar does not speak of (--quick)
    measured: str = ""  # when, and with which version

    @property
    def verdict(self) -> str:
        if self.bar is None:
            return ""
        if self.value is None:
            return "none"
        if not self.holds_here:
            return "-"
        met = {">=": self.value >= self.bar, "<=": self.value <= self.bar, "is": self.value == self.bar}[self.sense]
        return "ok" if met else "MISS"

    @property
    def shown(self) -> str:
        return "not measured" if self.value is None else number(self.value, self.unit)

    @property
    def shown_bar(self) -> str:
        return "" if self.bar is None else f"{self.sense} {number(self.bar, self.unit)}".replace("is ", "")

    def line(self) -> str:
        cells = (self.what, self.at, self.shown, self.shown_bar, self.verdict)
        sides = ("<", ">", ">", ">", "<")
        text = "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(cells, sides, WIDTHS))
        return f"{text}  {self.note}".rstrip()

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Row:
        return cls(**{name: given[name] for name in cls.__dataclass_fields__ if name in given})


def number(value: float | bool, unit: str) -> str:
    """A value with its unit, short."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if unit == "%":
        return f"{100 * value:.1f} %"
    if unit == "relative":
        return f"{value:.1e}"
    if unit == "MB":
        return f"{value / 1e6:.1f} MB"
    if unit == "ms":
        return f"{1e3 * value:.2f} ms" if value < 0.1 else f"{1e3 * value:.0f} ms"
    if unit == "x":
        return f"{value:.2f}x" if value < 20 else f"{value:.1f}x"
    return f"{value:.4f}" if unit == "r2" else f"{value:.2f} {unit}".strip()


def heading() -> str:
    """Names of the columns and a rule under them."""
    names = ("what", "at", "value", "bar", "")
    sides = ("<", ">", ">", ">", "<")
    line = "  ".join(f"{name:{side}{width}}" for name, side, width in zip(names, sides, WIDTHS))
    return f"{line.rstrip()}\n{'-' * (sum(WIDTHS) + 2 * len(WIDTHS) - 2)}"


def table(header: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
    """A Markdown table whose columns line up; words to the left, figures to the right."""
    widths = [max(len(line[i]) for line in (header, *body)) for i in range(len(header))]
    sides = ["<" if name in ("what", "note", "") else ">" for name in header]
    cells = [[f"{c:{s}{w}}" for c, s, w in zip(line, sides, widths)] for line in (header, *body)]
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    rule = "|" + "|".join("-" * (w + 2) if s == "<" else "-" * (w + 1) + ":" for s, w in zip(sides, widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def tally(rows: Iterable[Row]) -> str:
    """How many bars hold."""
    verdicts = [row.verdict for row in rows if row.verdict]
    held, missed = verdicts.count("ok"), verdicts.count("MISS")
    unjudged = len(verdicts) - held - missed
    return f"{held} bars hold, {missed} missed" + (f", {unjudged} not judged" if unjudged else "")


def tokens(n: int) -> str:
    """16384 -> "16,384"."""
    return f"{n:,}"
