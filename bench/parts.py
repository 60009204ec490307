"""A bench of several parts: each is kept as soon as it is measured, and a stopped run goes on with the rest."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
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
    parser.add_argument("--n-threads", type=int, default=_threads.available_cpus())
    parser.add_argument("--only", action="append", choices=parts, help="measure these anew (default: what is missing)")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    parser.add_argument("--json", type=Path, default=results, help="where results are kept (%(default)s)")
    options = parser.parse_args(given)
    due = options.only or (list(parts) if options.fresh else None)
    bound = {part: partial(measure, options.n_threads) for part, measure in parts.items()}
    return measured(bound, options.json, options.n_threads, due)


def measured(
    parts: Mapping[str, Callable[[], Iterator[Row]]], results: Path, n_threads: int, due: Sequence[str] | None = None
) -> int:
    """Measure the parts that are due (default: what is missing) and print all rows; 1 if a bar is missed."""
    found = gathered(parts, results, n_threads, due)
    print(f"\n{tally(found)}; {n_threads} threads")
    return int(any(row.verdict == "MISS" for row in found))


def gathered(
    parts: Mapping[str, Callable[[], Iterator[Row]]],
    results: Path | None,
    n_threads: int,
    due: Sequence[str] | None = None,
) -> list[Row]:
    """Rows of all parts, printed: those that are due (default: what is missing) measured, the others as they were kept.

    Without ``results`` nothing is kept.
    """
    kept: dict[str, list[Row]] = {}
    if results is not None and results.exists():
        for row in json.loads(results.read_text())["rows"]:
            kept.setdefault(row["part"], []).append(Row.from_dict(row))
    due = due or [part for part in parts if part not in kept]
    print(heading(), flush=True)
    for part, measure in parts.items():
        if part in due:
            marked = (replace(row, measured=machine.moment()) for row in measure())
            kept[part] = list(_shown(marked))
            if results is not None:
                _write(results, {name: kept[name] for name in parts if name in kept}, n_threads)
        else:
            list(_shown(kept.get(part, ())))
    return [row for part in parts for row in kept.get(part, ())]


def _shown(rows: Iterable[Row]) -> Iterator[Row]:
    """The same, each printed as it comes."""
    for row in rows:
        print(row.line(), flush=True)
        yield row


def _write(path: Path, kept: Mapping[str, list[Row]], n_threads: int) -> None:
    """Rows that know their part, as `bench report` reads them."""
    rows = [{**row.as_dict(), "part": part} for part, own in kept.items() for row in own]
    path.write_text(json.dumps({"machine": machine.describe(n_threads), "rows": rows}, indent=1, default=float) + "\n")
