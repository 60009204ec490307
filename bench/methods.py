"""``python -m bench methods``: the papers' table, speed and memory relative to the same exact Transformer encoder.

CAST, Centroid and clustered encoders (`bench.encoders`) at 1K to 16K tokens against the exact encoder of ours and of
PyTorch, each round taking all in turn; memory in a process of its own each. Then the bars of the parts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench import encoders, method_parts
from bench.encoders import EXACT, MATRIX, METHODS, TORCH
from bench.fresh import ROOT, ask
from bench.measure import interleave
from bench.parts import gathered
from bench.rows import Row, tally, tokens
from bench.speed import Settings

LENGTHS = (1024, 2048, 3072, 4096, 8192, 16384)
# A matrix of all scores is 4 GB a layer at 16K: memory is measured up to here.
LONGEST_MATRIX = 4096
ENCODERS = (EXACT, TORCH, *METHODS)
ROUNDS, BUDGET = 5, 25.0
RESULT, PICTURE = ROOT / "bench" / "results" / "methods.json", ROOT / "docs" / "methods.png"


# -- the table --------------------------------------------------------------------------------------------------------


def speed(settings: Settings, length: int) -> Iterator[Row]:
    """Every encoder at one length, in the same rounds."""
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


def memory(settings: Settings, length: int) -> Iterator[Row]:
    """Peak memory of every encoder beyond input, output and weights."""
    names = (*ENCODERS, MATRIX) if length <= LONGEST_MATRIX else ENCODERS
    found = {name: ask("encoder", name, length, settings.n_threads)["bytes"] for name in names}
    for name, peak in found.items():
        shares = {} if None in found.values() else {n: peak / max(1, found[n]) for n in (EXACT, TORCH)}
        note = ", ".join(f"{100 * share:.0f} % of {name}" for name, share in shares.items())
        yield Row("memory", f"{name} encoder", tokens(length), peak, "MB", "<=", note=note, detail={"of": shares})


ENCODER_GROUPS = {"speed": speed, "memory": memory}  # at every length
GROUPS: dict[str, Callable[[Settings], Iterator[Row]]] = {
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
    names = (*ENCODER_GROUPS, *GROUPS)
    parser = argparse.ArgumentParser(prog="python -m bench methods", description=__doc__)
    parser.add_argument("--only", metavar="NAME", action="append", choices=names, help=", ".join(names))
    parser.add_argument("--at", metavar="N", type=int, nargs="+", default=LENGTHS, help="only encoders this long")
    parser.add_argument("--quick", action="store_true", help="an eighth of every length: not judged, not kept")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="at most (%(default)s)")
    parser.add_argument("--n-threads", type=int, default=2, help="of every library (%(default)s)")
    parser.add_argument("--json", metavar="FILE", type=Path, default=RESULT, help="where the result is written")
    parser.add_argument("--picture", metavar="FILE", type=Path, default=PICTURE)
    return parser.parse_args(given)


def parts(settings: Settings) -> dict[str, Callable[[], Iterator[Row]]]:
    """Encoders at each length, a part each, then the bars of single pieces."""
    found: dict[str, Callable[[], Iterator[Row]]] = {}
    for group, measure in ENCODER_GROUPS.items():
        for length in LENGTHS:
            found[f"{group} {length}"] = partial(measure, settings, length // settings.divisor)
    return found | {group: partial(measure, settings) for group, measure in GROUPS.items()}


def due(every: list[str], only: list[str] | None, at: tuple[int, ...]) -> list[str]:
    """The parts of these groups and lengths.

    Examples
    --------
    >>> due(["speed 1024", "speed 2048", "layer"], None, (1024,))
    ['speed 1024', 'layer']
    >>> due(["speed 1024", "speed 2048", "layer"], ["speed"], (1024, 2048))
    ['speed 1024', 'speed 2048']
    """
    split = [(part, *part.split()) for part in every]
    return [part for part, group, *length in split if (not only or group in only) and all(int(n) in at for n in length)]


def _unjudged(measure: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    for row in measure():
        row.holds_here = False
        yield row


def main(given: list[str]) -> int:
    """Measure, print, keep and draw; what was not asked for is taken from the result there is. 1 if a bar is missed."""
    options = _arguments(given)
    settings = Settings(options.n_threads, options.rounds)
    if options.quick:
        settings = Settings(options.n_threads, min(options.rounds, 3), divisor=8)
    measures = parts(settings)
    if options.quick:
        measures = {part: partial(_unjudged, measure) for part, measure in measures.items()}
    wanted = due(list(measures), options.only, tuple(options.at))
    found = gathered(measures, None if options.quick else options.json, settings.n_threads, wanted)
    print(f"{table(found)}\n\n{tally(found)}; {settings.n_threads} threads")
    if not options.quick:
        from bench import methods_picture

        methods_picture.draw(options.picture, found)
    return int(any(row.verdict == "MISS" for row in found))
