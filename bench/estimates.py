"""How near estimated errors are to true ones, and what an estimate costs: a part of ``python -m bench calibration``.

On the attentions of trained models that `python -m bench pareto` captures, every head of every layer by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench.measure import interleave
from bench.pareto_case import CONTESTS, Contest, Layer
from bench.rows import Row
from pyclattn import coclustered_attention, scaled_dot_product_attention

# Exact keys a query, by task: matching is too sharp for the least.
N_EXACT = {"saliency": (32, 64, 128, 256), "genomics": (32, 128), "matching": (64, 128, 256)}
LENGTHS = {"saliency": (5_330, 11_882), "genomics": (6_752, 30_002), "matching": (4_096, 8_192)}
# Where an estimate is good enough; shares of the heads that are to be there, or may be more than twice too low.
NEAR, NEAR_BAR, LOW, LOW_BAR = (0.6, 1.6), 0.95, 0.5, 0.03
# Errors that are nothing: a hundredth of the least that anyone asks for.
NOTHING = 1e-4


def estimates(n_threads: int) -> Iterator[Row]:
    """A row of accuracy and one of cost for each task."""
    for task, lengths in LENGTHS.items():
        contests = [c for c in CONTESTS if c.task == task and c.n_tokens in lengths]
        ratios = np.concatenate([_ratios(contest, n_threads) for contest in contests])
        at, inside = " / ".join(f"{n / 1000:.0f}k" for n in lengths), (ratios > NEAR[0]) & (ratios < NEAR[1])
        low, near = float((ratios < LOW).mean()), float(inside.mean())
        quantiles = ", ".join(f"{x:.2f}" for x in np.quantile(ratios, (0.05, 0.5, 0.95)))
        note = f"{len(ratios)} heads; 5 %, median, 95 %: {quantiles}"
        if task == "matching":
            note += f"; {near:.1%} within {NEAR[0]} to {NEAR[1]}"
            yield Row(
                "estimates", f"{task}: more than 2x too low", at, low, unit="%", sense="<=", bar=LOW_BAR, note=note
            )
        else:
            note += f"; {low:.1%} more than 2x too low"
            what = f"{task}: estimate / true within {NEAR[0]} to {NEAR[1]}"
            yield Row("estimates", what, at, near, unit="%", bar=NEAR_BAR, note=note)
        for contest in contests:
            yield _cost(contest, n_threads)


def _layers(contest: Contest) -> dict[str, Layer]:
    contest.capture()
    return contest.load()


def _ratios(contest: Contest, n_threads: int) -> np.ndarray:
    """Estimated over true relative errors of all heads of all layers at all settings."""
    found = []
    for query, key, value in _layers(contest).values():
        exact = scaled_dot_product_attention(query, key, value, n_threads=n_threads)
        norms = np.linalg.norm(exact, axis=(-1, -2))
        for n_exact in N_EXACT[contest.task]:
            near, errors = coclustered_attention(
                query, key, value, n_exact=n_exact, return_error=True, n_threads=n_threads
            )
            true = np.linalg.norm(near - exact, axis=(-1, -2)) / norms
            found.append((errors[true > NOTHING] / true[true > NOTHING]).ravel())
    return np.concatenate(found)


def _cost(contest: Contest, n_threads: int) -> Row:
    """What an estimate adds to a call of the default setting, on the middle layer."""
    layers = list(_layers(contest).values())
    layer = layers[len(layers) // 2]
    calls = {
        "alone": lambda: coclustered_attention(*layer, n_threads=n_threads),
        "with": lambda: coclustered_attention(*layer, return_error=True, n_threads=n_threads),
    }
    timings = interleave(calls, 9, budget=5.0)
    share = timings.ratio("with", "alone").median - 1
    note = f"{1e3 * timings.median('alone'):.1f} ms without" + ("" if timings.is_quiet else ", noisy")
    return Row("estimates", f"{contest.task}: an estimate's share of a call", f"{contest.n_tokens:,}", share, unit="%",
               note=note)  # fmt: skip
