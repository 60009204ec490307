"""``python -m bench methods``: the papers' table, speed and memory relative to the same exact Transformer encoder.

CAST, Centroid and clustered encoders (`bench.encoders`) at 1K to 16K tokens against the exact encoder of ours and of
PyTorch, each round taking all in turn; memory in a process of its own each. Then the bars of the parts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench import encoders, machine, method_parts
from bench.encoders import EXACT, MATRIX, METHODS, TORCH
from bench.fresh import ROOT, ask
from bench.measure import interleave
from bench.others import Others
from bench.report import Printer
from bench.rows import Row, tally, tokens
from bench.speed import Settings

LENGTHS = (1024, 2048, 3072, 4096, 8192, 16384)
# A matrix of all scores is 4 GB a layer at 16K: memory is measured up to here.
LONGEST_MATRIX = 4096
ENCODERS = (EXACT, TORCH, *METHODS)
ROUNDS, BUDGET = 5, 25.0
RESULT, PICTURE = ROOT / "bench" / "results" / "methods.json", ROOT / "docs" / "methods.png"


# -- the table --------------------------------------------------------------------------------------------------------


def speed(settings: Settings) -> Iterator[Row]:
    """Every encoder at every length, in the same rounds."""
    for length in _lengths(settings):
        x = encoders.tokens(length)
        runs = {name: partial(encoders.subject(name, length, settings.n_threads), x) for name in ENCODERS}
        timings = interleave(runs, settings.rounds, BUDGET)
        for name in (EXACT, *METHODS):
            of_torch, of_ours = timings.ratio(TORCH, name), timings.ratio(EXACT, name)
            detail = {"seconds": timings.median(name), "exact": of_ours.median, "torch": of_torch.median}
            note = f"{1e3 * timings.median(name):.0f} ms, {of_torch.low:.2f} to {of_torch.high:.2f}"
            note += f"; {of_ours.median:.2f}x of our exact" if name != EXACT else ""
            note += "" if timings.is_quiet else ", noisy"
            yield Row("speed", f"{name} encoder", tokens(length), of_torch.median, note=note, detail=detail)


def memory(settings: Settings) -> Iterator[Row]:
    """Peak memory of every encoder beyond input, output and weights."""
    for length in _lengths(settings):
        names = (*ENCODERS, MATRIX) if length <= LONGEST_MATRIX else ENCODERS
        found = {name: ask("encoder", name, length, settings.n_threads)["bytes"] for name in names}
        for name, peak in found.items():
            shares = {} if None in found.values() else {n: peak / max(1, found[n]) for n in (EXACT, TORCH)}
            note = ", ".join(f"{100 * share:.0f} % of {name}" for name, share in shares.items())
            yield Row("memory", f"{name} encoder", tokens(length), peak, "MB", "<=", note=note, detail={"of": shares})


def _lengths(settings: Settings) -> list[int]:
    return [length // settings.divisor for length in LENGTHS if not settings.at or length in settings.at]


GROUPS: dict[str, Callable[[Settings], Iterator[Row]]] = {
    "speed": speed,
    "memory": memory,
    "layer": method_parts.cast_layer,
    "layer_memory": method_parts.cast_memory,
    "selection": method_parts.selection,
    "centroid": method_parts.centroid,
    "farthest": method_parts.farthest,
    "trained": method_parts.trained,
}


def table(rows: list[Row]) -> str:
    """Relative speed and memory, a line for each method, a column for each length."""
    lines = []
    for group, key, title in (
        ("speed", "torch", "speed, in PyTorch's exact encoder"),
        ("speed", "exact", "speed, in our exact encoder"),
        ("memory", "of", "memory, in PyTorch's exact encoder (kept matrix: in the same)"),
    ):
        own = [row for row in rows if row.group == group]
        columns = list(dict.fromkeys(row.at for row in own))
        lines += ["", f"{title:62}" + "".join(f"{column:>9}" for column in columns)]
        for what in dict.fromkeys(row.what for row in own):
            figures = {row.at: _figure(row, key) for row in own if row.what == what}
            lines.append(f"  {what:60}" + "".join(f"{figures.get(column, ''):>9}" for column in columns))
    return "\n".join(lines)


def _figure(row: Row, key: str) -> str:
    value: Any = row.detail.get(key)
    value = value.get(TORCH) if isinstance(value, dict) else value
    return "" if value is None else f"{value:.2f}"


# -- the run ----------------------------------------------------------------------------------------------------------


def _arguments(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench methods", description=__doc__)
    parser.add_argument("--only", metavar="NAME", action="append", choices=GROUPS, help=", ".join(GROUPS))
    parser.add_argument("--at", metavar="N", type=int, nargs="+", default=[], help="only these lengths of the encoders")
    parser.add_argument("--quick", action="store_true", help="an eighth of every length, 3 rounds: bars not judged")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="at most (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of every library (%(default)s)")
    parser.add_argument("--json", metavar="FILE", type=Path, default=RESULT, help="where the result is written")
    parser.add_argument("--picture", metavar="FILE", type=Path, default=PICTURE)
    return parser.parse_args(given)


def main(given: list[str]) -> int:
    """Measure, print, write and draw; what was not asked for is taken from the result there is."""
    options = _arguments(given)
    divisor = 8 if options.quick else 1
    settings = Settings(options.threads, min(options.rounds, 3 if options.quick else 99), divisor, tuple(options.at))
    about, printer, errors = machine.describe(settings.n_threads), Printer(), 0
    printer.head(about)
    measured = options.only or list(GROUPS)
    rows = _earlier(options.json) if options.only or options.at else {}
    for group in measured:
        printer.measuring(group)
        others = Others()
        try:
            for row in GROUPS[group](settings):
                row.holds_here = settings.is_full
                rows[row.group, row.what, row.at] = row
                printer.row(row)
                printer.measuring(group)
        except Exception as error:  # the other groups are still worth their time
            printer.error(group, error)
            errors += 1
        printer.others(others.share())
    found = sorted(rows.values(), key=_place)
    print(f"{table(found)}\n\n{tally(found)}, {errors} errors")
    if settings.is_full:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": about, "rows": [row.as_dict() for row in found]}
        options.json.write_text(json.dumps(content, indent=1, default=float) + "\n")
        from bench import methods_picture

        methods_picture.draw(options.picture, found)
    return 1 if errors else 0


def _earlier(path: Path) -> dict[tuple[str, str, str], Row]:
    if not path.exists():
        return {}
    rows = [Row.from_dict(row) for row in json.loads(path.read_text())["rows"]]
    return {(row.group, row.what, row.at): row for row in rows}


def _place(row: Row) -> tuple[int, int]:
    """Groups in their order, lengths from short to long."""
    digits = "".join(c for c in row.at.split(" ")[0] if c.isdigit())
    return list(GROUPS).index(row.group), int(digits or 0)
