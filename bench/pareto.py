"""``python -m bench pareto``: error against time of every method, on what trained models and synthetic data give it.

Queries, keys and values of three models (saliency, genomics, matching) at several lengths, and structured data of
65,536 and 131,072 tokens. Speed is the time of our exact attention over a method's, all it does included; error is the
relative Frobenius error of a layer's output. Each case runs in a process of its own and is written down when it is
done: an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import machine
from bench.fresh import ROOT
from bench.frontier import Result, curves, error_ratio, speed_at, uniform, uniform_at
from bench.pareto_case import CONTESTS, Contest
from bench.rows import Row, heading, tally
from pyclattn import _threads

OURS = "co-clustered"
IMPROVED = ("improved, lsh", "improved, kmeans", "improved, metric")
# (case, largest mean error, least speed)
SPEED_BARS = (
    ("saliency 5,330", 0.015, 4.0),
    ("saliency 11,882", 0.015, 9.0),
    ("saliency 21,317", 0.015, 16.0),
    ("structured 65,536", 0.02, 45.0),
    ("structured 131,072", 0.02, 85.0),
)
MEMORY_BAR = 256e6
# Error over that of improved clustered attention in the same time; captures of at least this many tokens.
EQUAL_TIME_BAR, EQUAL_TIME_FROM = 0.5, 4_096
BUDGETS = (0.01, 0.015, 0.02, 0.05, 0.1, 0.2)
QUICK = ("saliency 5,330", "genomics 6,752", "matching 4,096")


# -- tables -----------------------------------------------------------------------------------------------------------


def settings_text(settings: dict) -> str:
    """Settings as words.

    Examples
    --------
    >>> settings_text({"clustering": "lsh", "n_clusters": 100})
    'n_clusters 100'
    """
    return ", ".join(f"{name} {value}" for name, value in settings.items() if name != "clustering")


def table(result: Result) -> Iterator[str]:
    """Points of one setting for all layers, then what calibration makes of them."""
    layers = f"{len(result['layers'])} layer{'s' * (len(result['layers']) > 1)}"
    heads, _, depth = result["shape"][1:]
    exact = sum(result["exact"]) / len(result["exact"])
    busy = f"; others took {result['others']:.0%} of the CPUs" if (result["others"] or 0) > 0.05 else ""
    yield f"\n{result['task']}, {result['n_tokens']:,} tokens: {layers} of {heads} x {depth}, exact {exact:.3f} s{busy}"
    yield f"{'method':18}  {'settings':58}  {'error':>7}  {'time a layer':>12}  {'speed':>6}"
    for curve in curves(result):
        for number, (speed, e, settings) in enumerate(reversed(uniform(result, curve))):
            name = "" if number else curve
            cells = f"{name:18}  {settings_text(settings):58}  {e:>7.2%}"
            yield f"{cells}  {1e3 * exact / speed:>9.1f} ms  {speed:>5.1f}x"
    yield f"{'speed at an error of, each layer calibrated':44}" + "".join(f"{b:>9.1%}" for b in BUDGETS)
    for curve in curves(result):
        yield f"{curve:44}" + "".join(f"{speed_at(result, curve, b):>8.1f}x" for b in BUDGETS)


def rows(results: dict[str, Result]) -> Iterator[Row]:
    """The bars."""
    for name, budget, bar in SPEED_BARS:
        if name in results:
            one, settings = uniform_at(results[name], OURS, budget)
            note = f"one setting for all: {one:.1f}x" + (f" ({settings_text(settings)})" if settings else "")
            value = speed_at(results[name], OURS, budget)
            yield Row("speed", f"{name}, error <= {budget:.1%}", "", value, bar=bar, note=note)
    for name, result in results.items():
        if "bytes" in result:
            what = f"{name} of 12 heads, beyond inputs and output"
            yield Row("memory", what, "", result["bytes"], unit="MB", sense="<=", bar=MEMORY_BAR)
    real = {n: r for n, r in results.items() if r["task"] != "structured" and r["n_tokens"] >= EQUAL_TIME_FROM}
    for other in IMPROVED:
        ratios = {name: error_ratio(result, OURS, other) for name, result in real.items()}
        known = {name: ratio for name, ratio in ratios.items() if ratio}
        if known:
            mean = math.exp(sum(map(math.log, known.values())) / len(known))
            note = ", ".join(f"{name} {ratio:.2f}" for name, ratio in known.items())
            what = f"error over that of {other}, in the same time"
            yield Row("equal time", what, "", mean, unit="", sense="<=", bar=EQUAL_TIME_BAR, note=note)


# -- the run ----------------------------------------------------------------------------------------------------------


def ask(what: str, contest: Contest, progress, *options: object) -> dict:
    """One job in a fresh process; the bar moves when it tells of a layer."""
    command = [sys.executable, "-m", "bench.pareto_case", what, contest.name, *map(str, options)]
    said = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            if line == "layer\n":
                progress.update()
            else:
                said.append(line)
        answer = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise RuntimeError(f"{what} {contest.name} ended with {process.returncode}: {''.join(said)[-2000:].strip()}")
    return json.loads(answer.splitlines()[-1])


def run(contests: Sequence[Contest], path: Path, content: dict, rounds: int, n_threads: int) -> None:
    """Capture what is missing, measure, and write each case down when it is done."""
    from tqdm import tqdm

    total = sum(len(contest.layers) for contest in contests) * rounds
    with tqdm(total=total, disable=None, unit="layer") as progress:
        for contest in contests:
            if not contest.is_synthetic and not contest.path.exists():
                progress.set_description(f"{contest.name}: captures")
                ask("capture", contest, progress)
        for contest in contests:
            progress.set_description(contest.name)
            result = ask("measure", contest, progress, "--n-threads", n_threads, "--rounds", rounds)
            progress.update((rounds - result["rounds"]) * len(contest.layers))
            if contest.is_synthetic:
                budget = next((e for name, e, _ in SPEED_BARS if name == contest.name), BUDGETS[0])
                _, settings = uniform_at(result, OURS, budget)
                answer = ask("memory", contest, progress, "--n-threads", n_threads, "--settings", json.dumps(settings))
                result |= {"bytes": answer["bytes"], "memory_settings": settings}
            content["cases"][contest.name] = result
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=1) + "\n")
            progress.write("\n".join(table(result)))


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench pareto", description=__doc__)
    names = [contest.name for contest in CONTESTS]
    parser.add_argument("--case", action="append", choices=names, help="measure these anew (default: what is missing)")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    parser.add_argument("--quick", action="store_true", help="the shortest length of each task, one round, not judged")
    parser.add_argument("--rounds", type=int, default=3, help="at most; fewer where they are long (%(default)s)")
    parser.add_argument("--n-threads", type=int, default=min(2, _threads.available_cpus()), help="(%(default)s)")
    parser.add_argument("--json", type=Path, help="where results are kept (default: out/pareto.json)")
    parser.add_argument("--picture", type=Path, default=Path("out/pareto.png"), help="(%(default)s)")
    options = parser.parse_args(given)
    if options.rounds < 1 or options.n_threads < 1:
        parser.error(f"--rounds and --n-threads must be at least 1, got {options.rounds} and {options.n_threads}")
    options.json = options.json or Path("out/pareto-quick.json" if options.quick else "out/pareto.json")
    return options


def main(given: Sequence[str] | None = None) -> int:
    """Measure what is missing, print the tables and the bars, draw."""
    from bench.pareto_picture import draw

    options = _arguments(given)
    content: dict[str, Any] = {"cases": {}}
    if options.json.exists() and not options.fresh:
        content = json.loads(options.json.read_text())
    content["machine"] = machine.describe(options.n_threads)
    known = content["cases"]
    for name, result in known.items():
        if name not in (options.case or ()):
            print("\n".join(table(result)))
    wanted = QUICK if options.quick else [contest.name for contest in CONTESTS]
    due = options.case or [name for name in wanted if name not in known]
    run([contest for contest in CONTESTS if contest.name in due], options.json, content,
        1 if options.quick else options.rounds, options.n_threads)  # fmt: skip
    results = {contest.name: known[contest.name] for contest in CONTESTS if contest.name in known}
    found = list(rows(results))
    for row in found:
        row.holds_here = not options.quick
    print("\n" + "\n".join([heading(), *(row.line() for row in found)]))
    print(f"\n{tally(found)}; {options.n_threads} threads")
    draw(options.picture, results)
    print(f"Results: {options.json}. Picture: {options.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
