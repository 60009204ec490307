"""``python -m bench functions``: the largest error of functions of single numbers, over float32 of every size.

Against SciPy and NumPy in float64, at each instruction set this machine runs. In units in the last place of the result,
where that is above 1e-35; what is less, numbers below the normal ones among it, must be less than 2e-35.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from scipy.special import erf, expit, ndtr

from bench import machine
from bench.fresh import ROOT
from bench.parts import measured
from bench.rows import Row
from pyclattn import _dispatch
from pyclattn.arrays import Float32, Float64
from pyclattn.functional.rows import FUNCTIONS, bound_apply

EXACT: dict[str, Callable[[Float64], Float64]] = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * ndtr(x),
    "gelu_tanh": lambda x: x * expit(np.sqrt(8 / np.pi) * (x + 0.044715 * x**3)),
    "quick_gelu": lambda x: x * expit(1.702 * x),
    "silu": lambda x: x * expit(x),
    "sigmoid": expit,
    "tanh": np.tanh,
    "exp": np.exp,
    "erf": erf,
}
# Its polynomial's own rounding is of x: for x far below 0 the result is much smaller.
OF_INPUT = ("gelu_tanh",)
LEAST = 1e-35
BARS = dict.fromkeys(("gelu", "silu", "erf", "tanh", "exp"), 2.0)
INFINITY = 0x7F800000  # its bits; all below are finite
BLOCK = 1 << 21
# Every 199th float of both signs: 21 million, 42,000 of every power of two. A prime, so that low bits vary.
STEP = 199
RESULTS = ROOT / "bench" / "results" / "functions.json"


def sweep(step: int) -> Iterator[Float32]:
    """Every ``step``-th of all finite floats, both signs, some at a time."""
    for first in range(0, INFINITY, step * BLOCK):
        positive = np.arange(first, min(first + step * BLOCK, INFINITY), step, dtype=np.uint32).view(np.float32)
        yield positive
        yield -positive


def units(name: str, x: Float32, found: Float32) -> Float64:
    """Errors of ``found`` in units in the last place; infinity where only one of the two is finite, or nearly 0.

    Examples
    --------
    >>> x = np.array([1, 1], np.float32)
    >>> units("relu", x, x + np.array([0, 3 * 2.0**-23], np.float32)).tolist()
    [0.0, 3.0]
    """
    with np.errstate(all="ignore"):
        want = EXACT[name](x.astype(np.float64))
        rounded = want.astype(np.float32)
        scale = np.abs(x if name in OF_INPUT else rounded)
        errors = np.abs(found - want) / np.spacing(np.maximum(scale, np.float32(LEAST))).astype(np.float64)
    errors[(found == rounded) & np.isinf(rounded)] = 0
    is_nothing = np.abs(rounded) <= LEAST
    errors[is_nothing] = np.where(np.abs(found[is_nothing]) <= 2 * LEAST, 0, np.inf)
    return np.nan_to_num(errors, nan=np.inf)


def worst(name: str, xs: Iterator[Float32]) -> tuple[float, float]:
    """The largest error, and where."""
    largest, at = 0.0, 0.0
    for x in xs:
        found = np.empty_like(x)
        bound_apply(name, x, found)()
        errors = units(name, x, found)
        place = int(errors.argmax())
        if errors[place] > largest:
            largest, at = float(errors[place]), float(x[place])
    return largest, at


def errors(isa: str, step: int) -> Iterator[Row]:
    """All functions at one instruction set."""
    with _dispatch.forced(isa=isa):
        for name in FUNCTIONS:
            largest, at = worst(name, sweep(step))
            note = f"at {at:.6g}" + (", in units of x" if name in OF_INPUT else "")
            yield Row("functions", name, isa, largest, "ulp", "<=", BARS.get(name), note)


def main(given: list[str] | None = None) -> int:
    """Print the table, keep it in bench/results; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench functions", description=__doc__)
    parser.add_argument("--step", metavar="N", type=int, default=STEP, help="look at every N-th float (%(default)s)")
    parser.add_argument("--only", action="append", choices=machine.isas(), help="instruction sets")
    options = parser.parse_args(given)
    parts = {isa: partial(errors, isa, options.step) for isa in machine.isas()}
    return measured(parts, RESULTS, 1, options.only or list(parts))


if __name__ == "__main__":
    sys.exit(main())
