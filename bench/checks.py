"""Rows about results: the same bits for any number of threads, and agreement with the definition in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

import pyclattn
from bench import cases, definition, machine, peers
from bench.cases import Case, Inputs
from bench.rows import Row, tokens
from bench.speed import Settings
from bench.subjects import call
from pyclattn._dispatch import forced
from pyclattn.functional._grouping import Recipe

THREADS = (1, 2, 3, 7)
BARS = {"exact": 2e-6, "clustered": 1e-5, "improved": 1e-5}


def _all_functions(case: Case, x: Inputs) -> dict[str, Callable[[int], list[np.ndarray]]]:
    """Every public function as a function of the number of threads."""
    q, k, v, mask = x.query, x.key, x.value, x.key_padding_mask
    rng = np.random.default_rng(7)
    bias = rng.standard_normal((1, 1, 1, case.n_keys), dtype=np.float32)
    grouped = {"n_clusters": 100, "query_padding_mask": mask}

    def clusters(found: pyclattn.Clusters) -> list[np.ndarray]:
        return [found.labels, found.counts, found.centroids]

    def exact(n: int, **more: object) -> list[np.ndarray]:
        return [pyclattn.scaled_dot_product_attention(q, k, v, key_padding_mask=mask, n_threads=n, **more)]

    def variant(function: str, n: int, **more: object) -> list[np.ndarray]:
        return [call(function, case, x, n, query_padding_mask=mask, **more)]

    return {
        "exact": lambda n: exact(n),
        "exact, causal": lambda n: exact(n, is_causal=True),
        "exact, additive mask": lambda n: exact(n, attn_mask=bias),
        "clustered": lambda n: variant("clustered", n),
        "clustered, kmeans": lambda n: variant("clustered", n, clustering="kmeans"),
        "improved": lambda n: variant("improved", n),
        "improved, kmeans": lambda n: variant("improved", n, clustering="kmeans"),
        "improved, metric": lambda n: variant("improved", n, clustering="metric"),
        "coclustered": lambda n: variant("coclustered", n),
        "hash_queries": lambda n: [pyclattn.hash_queries(q, query_padding_mask=mask, n_threads=n)],
        "cluster_queries": lambda n: clusters(pyclattn.cluster_queries(q, n_threads=n, **grouped)),
        "kmeans": lambda n: clusters(pyclattn.kmeans(q, n_clusters=100, padding_mask=mask, n_threads=n)),
    }


def bits(settings: Settings) -> Iterator[Row]:
    """The bits of every function for 1, 2, 3 and 7 threads, and of a second run."""
    for name, full in cases.BITS.items():
        case = full.scaled(settings.divisor)
        different = []
        functions = _all_functions(case, case.inputs())
        for function, run in functions.items():
            expected = [a.tobytes() for a in run(THREADS[0])]
            for n_threads in (*THREADS[1:], THREADS[0]):
                if [a.tobytes() for a in run(n_threads)] != expected:
                    different.append(f"{function} at {n_threads}")
        note = f"different: {', '.join(different)}" if different else f"{len(functions)} functions"
        what = f"same bits, 1, 2, 3, 7 threads and twice, {name}"
        yield Row("bits", what, tokens(case.length), not different, sense="is", bar=True, note=note,
                  detail={"functions": list(functions), "different": different})  # fmt: skip


def _errors(case: Case, x: Inputs, n_threads: int) -> dict[str, float]:
    """Relative error of each function that can do this case."""
    exact = definition.exact(case, x)
    found = {"exact": definition.relative_error(call("exact", case, x, n_threads), exact)}
    if case.is_causal:
        return found
    start = np.random.default_rng(3).choice(case.length, min(100, case.length), replace=False)
    how = {"planes": case.planes, "start": start}
    options = case.clustered
    refills = Recipe(len(start), "lsh", options["n_iterations"], options["n_bits"], case.planes, None, 0).refills()
    for function, topk in (("clustered", 0), ("improved", 32)):
        expected = definition.clustered(case, x, start, refills, topk)
        clustered = {**options, "n_clusters": len(start)}
        given = replace(case, clustered=clustered)
        found[function] = definition.relative_error(call(function, given, x, n_threads, **how), expected)
    return found


def _peer_errors(case: Case, x: Inputs, n_threads: int) -> str:
    """The peers' errors on the same inputs, for comparison."""
    expected = definition.exact(case, x)
    subjects, _ = peers.build(case, x, n_threads)
    for subject in subjects:
        subject.run()
    return ", ".join(f"{s.name} {definition.relative_error(s.output(), expected):.1e}" for s in subjects)


def agreement(settings: Settings) -> Iterator[Row]:
    """Relative error against float64: on random and structured inputs, with every option, at each instruction set."""
    for name, full in cases.AGREEMENT.items():
        case = full.scaled(settings.divisor)
        x = case.inputs()
        found = {name: _errors(case, x, settings.n_threads)}
        yield from _agreement_rows(name, tokens(case.length), found, _peer_errors(case, x, settings.n_threads))
    several = {name: full.scaled(settings.divisor) for name, full in cases.OPTIONS.items()}
    found = {name: _errors(case, case.inputs(), settings.n_threads) for name, case in several.items()}
    yield from _agreement_rows("options", "", found, f"worst of {', '.join(found)}")
    shorter = {name: full.scaled(4 * settings.divisor) for name, full in cases.AGREEMENT.items()}
    for isa in machine.isas():
        with forced(isa=isa):
            found = {name: _errors(case, case.inputs(), settings.n_threads) for name, case in shorter.items()}
        yield from _agreement_rows(isa, tokens(shorter["random"].length), found, f"worst of {', '.join(found)}")


def _agreement_rows(name: str, at: str, found: dict[str, dict[str, float]], note: str) -> Iterator[Row]:
    for function, bar in BARS.items():
        worst = max(errors[function] for errors in found.values() if function in errors)
        yield Row(
            "agreement", f"{function}, error against float64, {name}", at, worst, "relative", "<=", bar,
            note=note if function == "exact" or "worst" in note else "", detail=found,
        )  # fmt: skip
