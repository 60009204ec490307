"""A bench of several parts: each is kept as soon as it is measured, and a stopped run goes on with the rest."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench import machine
from bench.rows import Row, heading, tally
from pyclattn import _threads


def run_parts(
    name: str,
    about: str | None,
    parts: Mapping[str, Callable[[int], Iterator[Row]]],
    results: Path,
    given: list[str] | None = None,
) -> int:
    """Measure what is missing, print all rows beside their bars; 1 if a bar is missed.

    Parameters
    ----------
    name : str
        Of the command.
    about : str
        For its help.
    parts : mapping of name to function of the number of threads
    results : Path
        Where rows are kept.
    given : list of str, optional
        Arguments; those of the command line by default.
    """
    parser = argparse.ArgumentParser(prog=f"python -m bench {name}", description=about)
    parser.add_argument("--threads", type=int, default=_threads.available_cpus())
    parser.add_argument("--only", action="append", choices=parts, help="measure these anew (default: what is missing)")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    parser.add_argument("--json", type=Path, default=results, help="where results are kept (%(default)s)")
    options = parser.parse_args(given)
    kept: dict[str, list[Row]] = {}
    if options.json.exists() and not options.fresh:
        for row in json.loads(options.json.read_text())["rows"]:
            kept.setdefault(row["part"], []).append(Row.from_dict(row))
    due = options.only or [part for part in parts if part not in kept]
    print(heading(), flush=True)
    for part, measure in parts.items():
        if part in due:
            own = []
            for row in measure(options.threads):
                own.append(row)
                print(row.line(), flush=True)
            kept[part] = own
            _write(options.json, kept, options.threads)
        else:
            for row in kept.get(part, ()):
                print(row.line())
    found = [row for part in parts for row in kept.get(part, ())]
    print(f"\n{tally(found)}; {options.threads} threads")
    return int(any(row.verdict == "MISS" for row in found))


def _write(path: Path, kept: Mapping[str, list[Row]], n_threads: int) -> None:
    """Rows that know their part, as `bench report` reads them."""
    rows = [{**row.as_dict(), "part": part} for part, own in kept.items() for row in own]
    path.write_text(json.dumps({"machine": machine.describe(n_threads), "rows": rows}, indent=1) + "\n")
