"""``python -m bench attention``: every bar of exact and clustered attention, measured in one run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from bench import checks, machine, processes, report, speed, stages
from bench.others import Others
from bench.rows import Row, tally
from bench.speed import Settings

GROUPS: dict[str, Callable[[Settings], Iterator[Row]]] = {
    "speed": speed.against_peers,
    "peak": speed.peak_share,
    "head_dim": speed.head_dims,
    "padding": speed.padding,
    "causal": speed.causal,
    "memory": processes.memory,
    "growth": processes.growth,
    "threads": speed.threads,
    "bits": checks.bits,
    "agreement": checks.agreement,
    "import": processes.imports,
    "first_call": processes.first_calls,
    "stages": stages.stages,
    "border": stages.border,
}


def _arguments(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench attention", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="an eighth of every length and 3 rounds: bars not judged")
    parser.add_argument("--only", metavar="NAME", action="append", choices=GROUPS, help=", ".join(GROUPS))
    parser.add_argument("--at", metavar="N", type=int, nargs="+", default=[], help="only these lengths (timed rows)")
    parser.add_argument("--rounds", type=int, default=9, help="at most; fewer where a round is slow (%(default)s)")
    parser.add_argument("--n-threads", type=int, default=2, help="of every library (%(default)s)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the result")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the report")
    parser.add_argument("--readme", action="store_true", help="rewrite the block of README.md")
    parser.add_argument("--load", metavar="FILE", type=Path, help="take a written result instead of measuring")
    options = parser.parse_args(given)
    if options.rounds < 1 or options.n_threads < 1:
        parser.error(f"--rounds and --n-threads must be at least 1, got {options.rounds} and {options.n_threads}")
    return options


def measure(settings: Settings, groups: list[str]) -> tuple[list[Row], dict, int]:
    """Rows of these groups, the machine, and how many groups failed."""
    about, printer = machine.describe(settings.n_threads), report.Printer()
    printer.head(about)
    about["others"] = {}
    rows, errors = [], 0
    for group in groups:
        printer.measuring(group)
        others = Others()
        try:
            for row in GROUPS[group](settings):
                row.holds_here = settings.is_full
                rows.append(row)
                printer.row(row)
                printer.measuring(group)
        except Exception as error:  # the other groups are still worth their time
            printer.error(group, error)
            errors += 1
        about["others"][group] = others.share()
        printer.others(about["others"][group])
    print(f"\n{tally(rows)}, {errors} errors")
    return rows, about, errors


def main(given: list[str]) -> int:
    """Measure, or load a result; write what was asked for. 1 on errors; a missed bar is no error."""
    options = _arguments(given)
    settings = Settings(
        n_threads=options.n_threads,
        rounds=min(options.rounds, 3) if options.quick else options.rounds,
        divisor=8 if options.quick else 1,
        at=tuple(options.at),
    )
    if options.load:
        try:
            (rows, about), errors = report.load(options.load), 0
        except (OSError, ValueError, KeyError) as error:
            print(f"{options.load} is no result of this command: {error}", file=sys.stderr)
            return 1
    else:
        rows, about, errors = measure(settings, options.only or list(GROUPS))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(report.as_json(rows, about, asdict(settings)))
    if options.markdown:
        options.markdown.write_text(report.markdown(rows, about))
    if options.readme:
        try:
            report.write_readme(rows, about)
        except (OSError, ValueError) as error:
            print(f"README.md was not written: {error}", file=sys.stderr)
            return 1
    return 1 if errors else 0
