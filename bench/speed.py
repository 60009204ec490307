"""Rows about time: against peers, against the FMA peak, against ourselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from bench import cases, machine, peers
from bench.cases import Case, Inputs
from bench.measure import Timings, fma_peak, interleave, spread
from bench.rows import Row, tokens
from bench.subjects import Subject, ours
from pyclattn._dispatch import forced

# Peers' outputs must be ours to this, or something else was measured.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Settings:
    """What the command line asked for."""

    n_threads: int = 2
    rounds: int = 9
    divisor: int = 1  # --quick makes every sequence shorter by this
    at: tuple[int, ...] = ()

    @property
    def is_full(self) -> bool:
        return self.divisor == 1

    def wanted(self, given: list[Case]) -> list[Case]:
        """The cases to measure, made short where asked."""
        chosen = [case for case in given if not self.at or case.length in self.at]
        return [case.scaled(self.divisor) for case in chosen]


def check_same(subjects: list[Subject], expected: np.ndarray) -> dict[str, float]:
    """Largest difference of each subject from ``expected``, relative to its largest number.

    Raises
    ------
    RuntimeError
        If one differs by more than TOLERANCE: then it computes something else.
    """
    found = {}
    for subject in subjects:
        output = subject.output()
        found[subject.name] = float(np.max(np.abs(output - expected)) / np.max(np.abs(expected)))
        if not found[subject.name] <= TOLERANCE:
            raise RuntimeError(
                f"{subject.name} differs from pyclattn by {found[subject.name]:.1e} of the largest output, "
                f"more than {TOLERANCE:.0e}: it computes something else"
            )
    return found


def _against(
    case: Case, x: Inputs, settings: Settings, functions: tuple[str, ...], names: tuple[str, ...] = peers.FAST
) -> tuple[Timings, list[str], dict]:
    """Time functions of ours and the peers in the same rounds; which peers took part; details for the report."""
    own = [ours(function, case, x, settings.n_threads) for function in functions]
    others, absent = peers.build(case, x, settings.n_threads, names)
    timings = interleave({s.name: s.run for s in own + others}, settings.rounds)
    differences = check_same(others, own[0].output())
    detail = {"seconds": timings.summary(), "difference": differences, "absent": absent}
    detail["gflops"] = {name: case.flops / timings.median(name) / 1e9 for name in timings.seconds}
    return timings, [s.name for s in others], detail


def _peer_row(
    group: str, what: str, case: Case, bar: float | None, timings: Timings, rivals: list[str], detail: dict, own: str
) -> Row:
    """``own`` vs the fastest of the rivals."""
    rivals = [name for name in rivals if name != "ONNX Runtime graph"]
    if not rivals:
        return Row(group, what, tokens(case.length), None, bar=bar, note="; ".join(detail["absent"]), detail=detail)
    best = timings.fastest(rivals)
    ratio = timings.ratio(best, own)
    note = f"{best} {timings.median(best):.4g} s, ours {timings.median(own):.4g} s, {ratio.low:.2f} to {ratio.high:.2f}"
    note += "" if timings.is_quiet else ", noisy"
    return Row(group, what, tokens(case.length), ratio.median, bar=bar, note=note, detail=detail)


def against_peers(settings: Settings) -> Iterator[Row]:
    """Exact and improved clustered attention vs the fastest exact peer, measured in the same rounds."""
    bars = {1024: 1.05}
    improved_bars = {4096: 8, 16384: 30, 32768: 60}
    lengths = sorted({case.length for case in (*cases.EXACT, *cases.IMPROVED)})
    for length in lengths:
        for case in settings.wanted([Case(length)]):
            functions = ("exact", "improved") if length in improved_bars else ("exact",)
            timings, rivals, detail = _against(case, case.inputs(), settings, functions, tuple(peers.PEERS))
            bar = bars.get(length, 1.12) if length <= 16384 else None
            yield _peer_row("exact", "exact vs the fastest peer", case, bar, timings, rivals, detail, "exact")
            if length in improved_bars:
                bar, what = improved_bars[length], "improved clustered vs the fastest exact peer"
                yield _peer_row("improved", what, case, bar, timings, rivals, detail, "improved")


def head_dims(settings: Settings) -> Iterator[Row]:
    """Widths of a head other than 64."""
    for case in settings.wanted(cases.HEAD_DIMS):
        timings, rivals, detail = _against(case, case.inputs(), settings, ("exact",))
        what = f"exact, head_dim {case.head_dim} vs the fastest peer"
        yield _peer_row("head_dim", what, case, 1.0, timings, rivals, detail, "exact")


def padding(settings: Settings) -> Iterator[Row]:
    """A quarter of the keys is padding; the peers get the same mask."""
    for case in settings.wanted(cases.PADDED):
        timings, rivals, detail = _against(case, case.inputs(), settings, ("exact",))
        what = f"exact, 25 % padding {case.padding}, vs the fastest peer"
        yield _peer_row("padding", what, case, 1.3, timings, rivals, detail, "exact")


def causal(settings: Settings) -> Iterator[Row]:
    """Causal against our own full attention; the peers' causal beside it."""
    for case in settings.wanted([cases.CAUSAL]):
        x = case.inputs()
        own = ours("exact", case, x, settings.n_threads)
        full = ours("exact", replace(case, is_causal=False), x, settings.n_threads)
        others, absent = peers.build(case, x, settings.n_threads)
        timings = interleave({"causal": own.run, "full": full.run, **{s.name: s.run for s in others}}, settings.rounds)
        detail = {"seconds": timings.summary(), "difference": check_same(others, own.output()), "absent": absent}
        ratio = timings.ratio("causal", "full")
        note = f"causal {timings.median('causal'):.4g} s, full {timings.median('full'):.4g} s"
        what = "causal exact: share of own full's time"
        yield Row("causal", what, tokens(case.length), ratio.median, "x", "<=", 0.55, note, detail)
        if others:
            best = timings.fastest([s.name for s in others])
            ratio, what = timings.ratio(best, "causal"), "causal exact vs the fastest peer, causal"
            yield Row("causal", what, tokens(case.length), ratio.median, note=f"{best} {timings.median(best):.4g} s")


def peak_share(settings: Settings) -> Iterator[Row]:
    """Share of the machine's FMA peak, the peak measured right before each call."""
    wanted, there = ("avx512", "avx2"), machine.isas()
    for case in settings.wanted([Case(4096)]):
        subject = ours("exact", case, case.inputs(), settings.n_threads)
        functions: dict[str, Callable[[], object]] = {}
        for isa in there:
            functions[f"peak {isa}"] = partial(fma_peak, isa, settings.n_threads)
            functions[isa] = partial(_run_at, isa, subject)
        timings = interleave(functions, settings.rounds) if functions else Timings()
        for isa in dict.fromkeys((*wanted, *there)):
            what = f"exact, share of the FMA peak, {isa}"
            bar = 0.85 if isa in wanted else None
            if isa not in there:
                yield Row("peak", what, tokens(case.length), None, "%", bar=bar, note="not here or not compiled")
                continue
            peaks = timings.results[f"peak {isa}"]
            share = spread([case.flops / t / peak for t, peak in zip(timings.seconds[isa], peaks, strict=True)])
            gflops, peak = case.flops / timings.median(isa) / 1e9, spread(peaks).median / 1e9
            note = f"{gflops:.1f} of {peak:.1f} GFLOP/s, {100 * share.low:.1f} to {100 * share.high:.1f} %"
            detail = {"gflops": gflops, "peak_gflops": peak, "seconds": timings.summary()}
            yield Row("peak", what, tokens(case.length), share.median, "%", bar=bar, note=note, detail=detail)


def _run_at(isa: str, subject: Subject) -> None:
    with forced(isa=isa):
        subject.run()


def threads(settings: Settings) -> Iterator[Row]:
    """Two threads against one on a single sequence."""
    for case in settings.wanted([cases.LONG]):
        x = case.inputs()
        for function in ("exact", "improved"):
            subjects = {str(n): ours(function, case, x, n).run for n in (1, 2)}
            timings = interleave(subjects, min(settings.rounds, 5))
            ratio, detail = timings.ratio("1", "2"), {"seconds": timings.summary()}
            note = f"{timings.median('1'):.4g} s and {timings.median('2'):.4g} s, {ratio.low:.2f} to {ratio.high:.2f}"
            note += "" if timings.is_quiet else ", noisy"
            what = f"{function}: 2 threads against 1"
            yield Row("threads", what, tokens(case.length), ratio.median, bar=1.8, note=note, detail=detail)
