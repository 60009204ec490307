"""How near predicted times are to measured ones, and `auto` to exact attention: parts of ``bench calibration``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from bench.measure import interleave
from bench.rows import Row, tokens
from pyclattn import scaled_dot_product_attention
from pyclattn.arrays import Float32
from pyclattn.functional import costs
from pyclattn.functional.auto import auto_attention

AUTO_BAR, RATIO_BARS = 1.05, (0.85, 1.2)
# Length, heads, width: thinner where exact attention takes seconds.
SHAPES = [(n, 6, 64) for n in (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)] + [(65536, 1, 32), (131072, 1, 32)]
# Times are predicted from here on: shorter calls are told by what a call costs.
SHORTEST = 2048
# Seconds of all functions at one length, warming up aside; three rounds where that is too little.
BUDGET, ROUNDS = 6.0, 15


def auto(n_threads: int) -> Iterator[Row]:
    """Time of the function called directly, of exact attention's, by rates of the kernels as they are now."""
    costs.measure_again(n_threads)
    for length, n_heads, width in SHAPES:
        x = _rows(length, n_heads, width)
        functions = {"exact": scaled_dot_product_attention, "auto": auto_attention}
        calls: dict = {name: partial(function, x, x, x, n_threads=n_threads) for name, function in functions.items()}
        timings = interleave(calls, ROUNDS, BUDGET)
        note = f"exact {1e3 * timings.median('exact'):.3g} ms" + ("" if timings.is_quiet else ", noisy")
        yield Row("auto", "auto's time, of exact attention's", tokens(length), timings.ratio("auto", "exact").median,
                  sense="<=", bar=AUTO_BAR, note=note)  # fmt: skip


def predictions(n_threads: int) -> Iterator[Row]:
    """The least and the largest predicted time of each method, of the time it took, by rates as they are now."""
    costs.measure_again(n_threads)
    shapes = [shape for shape in SHAPES if shape[0] >= SHORTEST]
    for method in costs.METHODS:
        parameters = costs.PUBLISHED if method == "improved-clustered" else {}
        ratios, note = [], []
        for length, n_heads, width in shapes:
            x = _rows(length, n_heads, width)
            # into memory that is there, as a model's run is planned: kept results would all be new pages
            out = np.empty_like(x)
            call = partial(costs.METHODS[method], x, x, x, n_threads=n_threads, out=out, **parameters)
            timings = interleave({method: call}, ROUNDS, BUDGET)
            expected = costs.predict(method, [length], [length], n_heads, width, width, n_threads, **parameters)
            ratios.append(expected / timings.median(method))
            note.append(f"{tokens(length)} {ratios[-1]:.2f}" + ("" if timings.is_quiet else " noisy"))
        at = f"{tokens(shapes[0][0])} to {tokens(shapes[-1][0])}"
        for which, least, sense, bar in zip(("least", "largest"), (min, max), (">=", "<="), RATIO_BARS):
            yield Row("predictions", f"{method}: predicted time, of measured, the {which}", at, least(ratios),
                      sense=sense, bar=bar, note=", ".join(note))  # fmt: skip


def _rows(length: int, n_heads: int, width: int) -> Float32:
    """Rows about forty centres."""
    rng = np.random.default_rng(length)
    centers = 2 * rng.standard_normal((40, width), dtype=np.float32)
    x = centers[rng.integers(0, 40, (1, n_heads, length))]
    return x + rng.standard_normal(x.shape, dtype=np.float32)
