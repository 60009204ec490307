"""Rows measured in fresh processes: import, first call, peak memory and its growth."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import numpy as np

from bench import cases, peers
from bench.fresh import ask
from bench.rows import Row, tokens
from bench.speed import Settings


def imports(settings: Settings) -> Iterator[Row]:
    """``import pyclattn`` beyond ``import numpy``, processes of both kinds in turn."""
    taken: dict[str, list[float]] = {"numpy": [], "pyclattn": []}
    heavy: set[str] = set()
    for module in taken:  # byte code is written and files are in the page cache before anything counts
        ask("import", module)
    for _ in range(11 if settings.is_full else 3):
        for module, seconds in taken.items():
            answer = ask("import", module)
            seconds.append(answer["seconds"])
            heavy.update(answer["heavy"] if module == "pyclattn" else ())
    extra = statistics.median(ours - numpys for ours, numpys in zip(taken["pyclattn"], taken["numpy"], strict=True))
    note = ", ".join(f"{module} {1e3 * statistics.median(own):.0f} ms" for module, own in taken.items())
    yield Row("import", "import pyclattn beyond numpy", "", extra, "ms", "<=", 0.04, note=note, detail=taken)
    yield Row("import", "import leaves numba and scipy out", "", not heavy, sense="is", bar=True,
              note=f"imported: {', '.join(sorted(heavy))}" if heavy else "")  # fmt: skip


def first_calls(settings: Settings) -> Iterator[Row]:
    """The first call of a fresh process whose caches an earlier process has filled."""
    for function, bar in (("exact", 0.3), ("improved", 1.0)):
        length = 1024
        ask("first", function, length, settings.n_threads)  # fills caches
        answers = [ask("first", function, length, settings.n_threads) for _ in range(5 if settings.is_full else 2)]
        first, second, third = (statistics.median(a["calls"][i] for a in answers) for i in range(3))
        note = f"second {1e3 * second:.0f} ms, third {1e3 * third:.0f} ms"
        yield Row("first_call", f"{function}: first call in a fresh process", tokens(length), first, "ms", "<=", bar,
                  note=note, detail={"answers": answers})  # fmt: skip


def _peak(subject: str, length: int, n_threads: int) -> int | None:
    return ask("memory", subject, length, n_threads)["bytes"]


def memory(settings: Settings) -> Iterator[Row]:
    """Peak memory beyond inputs and output, ours and the peers'."""
    bars = {"exact": 32e6, "clustered": None, "improved": 64e6, "coclustered": 256e6}
    installed = peers.versions()
    rivals = [name for name in peers.FAST if installed[name] != "not installed"]
    for case in settings.wanted([cases.LONG]):
        for subject in (*bars, *rivals):
            found = _peak(subject, case.length, settings.n_threads)
            label = subject if subject in bars else f"peer {subject}"
            yield Row("memory", f"{label}: peak beyond inputs and output", tokens(case.length), found, "MB", "<=",
                      bars.get(subject), note="" if found is not None else "no /proc/self/clear_refs here")  # fmt: skip


def growth(settings: Settings) -> Iterator[Row]:
    """Peak memory of improved clustered attention over four lengths, and the straight line through them."""
    lengths = [case.length for case in (c.scaled(settings.divisor) for c in cases.GROWTH)]
    peaks = [_peak("improved", n, settings.n_threads) for n in lengths]
    at = f"{tokens(lengths[0])}+"
    what = "improved: peak memory over length, r2 of a line"
    if None in peaks:
        yield Row("growth", what, at, None, "r2", bar=0.99, note="no /proc/self/clear_refs here")
        return
    slope, base = np.polyfit(lengths, peaks, 1)
    residual = np.array(peaks) - (slope * np.array(lengths) + base)
    r2 = 1 - residual.var() / np.var(peaks)
    exponent = np.polyfit(np.log(lengths), np.log(np.maximum(peaks, 1)), 1)[0]
    sizes = ", ".join(f"{p / 1e6:.0f}" for p in peaks)
    note = f"{slope:.0f} bytes a token + {base / 1e6:.1f} MB, exponent {exponent:.2f}; {sizes} MB"
    detail = {"lengths": lengths, "bytes": peaks, "slope": slope, "base": base, "exponent": exponent}
    yield Row("growth", what, at, float(r2), "r2", bar=0.99, note=note, detail=detail)
