"""Results as a text table, JSON, Markdown, and a block of README.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench.rows import Row, heading, number, table, tally

README = Path(__file__).resolve().parents[1] / "README.md"
MEASURED = README.parent / "docs" / "measured.md"
OPEN, CLOSE = "<!-- bench:attention -->", "<!-- /bench:attention -->"
PEERS = ("ONNX Runtime", "OpenVINO", "PyTorch")


class Printer:
    """Prints rows as they come; on a terminal a line below tells what is being measured."""

    def __init__(self) -> None:
        self.is_terminal = sys.stderr.isatty()
        self.group = ""

    def head(self, machine: dict) -> None:
        shown = ("cpu", "n_cpus", "isa", "n_threads", "python", "numpy", "onnxruntime", "openvino", "torch")
        print(", ".join(f"{name} {machine[name]}" for name in shown))
        print(f"rooms: {_rooms(machine)}; load before: {machine['load_before']}\n")
        print(heading(), flush=True)

    def measuring(self, group: str) -> None:
        if self.is_terminal:
            print(f"\r\033[Kmeasuring {group} ...", end="", file=sys.stderr, flush=True)

    def row(self, row: Row) -> None:
        if self.is_terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        print(row.line(), flush=True)

    def others(self, share: float | None) -> None:
        """Tell where other processes made the group's times noisy."""
        if share is not None and share > 0.05:
            print(f"  (other processes took {100 * share:.0f} % of the CPUs meanwhile)", flush=True)

    def error(self, group: str, error: Exception) -> None:
        if self.is_terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        print(f"{group}: ERROR {type(error).__name__}: {error}", flush=True)


def _rooms(machine: dict) -> str:
    rooms = list(machine["rooms"].values())
    return ", ".join(f"{room} {rooms.count(room)}" for room in dict.fromkeys(rooms))


def as_json(rows: list[Row], machine: dict, settings: dict) -> str:
    """The whole result."""
    content = {"machine": machine, "settings": settings, "rows": [row.as_dict() for row in rows]}
    return json.dumps(content, indent=1, default=float) + "\n"


def load(path: Path) -> tuple[list[Row], dict]:
    """Rows and machine of a result written by `as_json`."""
    content = json.loads(path.read_text())
    return [Row.from_dict(row) for row in content["rows"]], content["machine"]


def _seconds(detail: dict, name: str) -> str:
    own = detail.get("seconds", {}).get(name)
    return number(own["median"], "ms") if own else ""


def speed_table(rows: list[Row]) -> str:
    """Times at each length, ours and the peers'."""
    body: dict[str, tuple[str, ...]] = {}
    for row in rows:
        if row.group not in ("exact", "improved") or row.value is None:
            continue
        names = ("exact", *PEERS, "improved")
        body[row.at] = (row.at, *(_seconds(row.detail, name) for name in names))
    header = ("tokens", "pyclattn exact", *PEERS, "pyclattn improved clustered")
    return table(header, sorted(body.values(), key=lambda line: int(line[0].replace(",", ""))))


def bars_table(rows: list[Row], with_notes: bool = False) -> str:
    """Every row with a bar."""
    header = ("what", "at", "measured", "bar", "") + (("note",) if with_notes else ())
    body = [
        (row.what, row.at, row.shown, row.shown_bar, row.verdict) + ((row.note,) if with_notes else ())
        for row in rows
        if row.bar is not None
    ]
    return table(header, body)


def information_table(rows: list[Row]) -> str:
    """Rows without a bar: peers' memory, stages, the border between rooms."""
    return table(
        ("what", "at", "measured", "note"),
        [(row.what, row.at, row.shown, row.note) for row in rows if row.bar is None],
    )


def preface(machine: dict) -> str:
    """One sentence that says where and how."""
    versions = ", ".join(
        f"{name} {machine[package]}" for name, package in zip(PEERS, ("onnxruntime", "openvino", "torch"))
    )
    return (
        f"Batch 1, 12 heads x 64, float32, {machine['n_threads']} threads on {machine['cpu']} ({machine['isa']}); "
        f"medians of interleaved rounds in one process. {versions}."
    )


def markdown(rows: list[Row], machine: dict) -> str:
    """The whole report."""
    parts = [preface(machine), speed_table(rows), f"{tally(rows)}.", bars_table(rows, with_notes=True)]
    if any(row.bar is None for row in rows):
        parts.append(information_table(rows))
    return "\n\n".join(parts) + "\n"


def write_readme(rows: list[Row], machine: dict, path: Path = README, measured: Path = MEASURED) -> None:
    """Rewrite the block of README.md between its two comments, and the page with all figures.

    Raises
    ------
    ValueError
        If the comments are not there, once each and in this order.
    """
    text = path.read_text()
    if text.count(OPEN) != 1 or text.count(CLOSE) != 1 or text.index(OPEN) > text.index(CLOSE):
        raise ValueError(f"{path.name} must hold {OPEN} and then {CLOSE}, once each")
    before, after = text[: text.index(OPEN) + len(OPEN)], text[text.index(CLOSE) :]
    page = f"[Every figure]({measured.parent.name}/{measured.name}): {tally(rows)}."
    path.write_text(before + "\n" + "\n\n".join([preface(machine), speed_table(rows), page]) + "\n" + after)
    measured.write_text(
        f"# Attention, measured\n\n`python -m bench attention` wrote this page. {markdown(rows, machine)}"
    )


def main(given: list[str]) -> int:
    """The page of all results."""
    from bench.report_page import main as made

    return made(given)
