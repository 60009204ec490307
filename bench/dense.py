"""``python -m bench dense``: float32 products with a constant weight, against NumPy, ONNX Runtime and PyTorch.

The weight is packed before the clock runs, as ONNX Runtime does with its initialisers; outputs are allocated before
where a library allows that.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from bench import machine
from bench.measure import fma_peak, interleave
from bench.peers import onnxruntime_session
from bench.rows import Row, heading, tally
from pyclattn import _threads
from pyclattn._ext import isa
from pyclattn.functional.dense import pack_weight

RESULTS = Path(__file__).parent / "results" / "dense.json"
# The bar is on 512 rows and more; few rows are what a short input is made of.
ROWS, BAR_FROM = (16, 128, 512, 1024, 4096), 512
DEPTHS, WIDTHS = (384, 768, 1536, 3072), (384, 1536)
BAR = 1.0
# Peers must give the same product: of the largest number in it.
TOLERANCE = 1e-5


def onnxruntime_product(x: np.ndarray, weight: np.ndarray, out: np.ndarray, n_threads: int) -> Callable[[], None]:
    """A MatMul whose weight is an initialiser; input and output are bound."""
    from onnx import TensorProto, helper, numpy_helper

    names = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in (("x", x), ("y", out))]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "product", names[:1], names[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime_session(model.SerializeToString(), n_threads)
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y", "cpu", 0, np.float32, out.shape, out.ctypes.data)
    return lambda: session.run_with_iobinding(binding)


def torch_product(x: np.ndarray, weight: np.ndarray, out: np.ndarray, n_threads: int) -> Callable[[], None]:
    """torch.mm into a given output."""
    import torch

    torch.set_num_threads(n_threads)
    tensors = [torch.from_numpy(a) for a in (x, weight, out)]
    return partial(torch.mm, tensors[0], tensors[1], out=tensors[2])


def subjects(x: np.ndarray, weight: np.ndarray, n_threads: int) -> dict[str, tuple[Callable[[], object], np.ndarray]]:
    """Name -> (call, its output); ours first. NumPy's BLAS takes all CPUs, so it is left out on fewer threads."""

    def new() -> np.ndarray:
        return np.zeros((len(x), weight.shape[1]), np.float32)

    packed, mine, plain = pack_weight(weight), new(), new()
    found: dict[str, tuple[Callable[[], object], np.ndarray]] = {
        "pyclattn": (packed.bind(x, out=mine, n_threads=n_threads), mine)
    }
    if n_threads == _threads.available_cpus():
        found["numpy"] = partial(np.matmul, x, weight, plain), plain
    for name, make in (("onnxruntime", onnxruntime_product), ("torch", torch_product)):
        out = new()
        try:
            found[name] = make(x, weight, out, n_threads), out
        except ImportError:
            continue
    return found


def rows(n_rows: int, depth: int, width: int, n_threads: int, rounds: int, peak: float) -> Row:
    """The best of the others over our time."""
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape, dtype=np.float32) for shape in ((n_rows, depth), (depth, width)))
    found = subjects(x, weight, n_threads)
    timings = interleave({name: call for name, (call, _) in found.items()}, rounds)
    want = found["pyclattn"][1]
    for name, (_, out) in found.items():
        difference = np.abs(out - want).max() / np.abs(want).max()
        if not difference <= TOLERANCE:
            raise RuntimeError(f"{name} differs from pyclattn by {difference:.1e} of the largest number")
    work = 2 * n_rows * depth * width / 1e9
    fastest = timings.fastest([name for name in found if name != "pyclattn"])
    speeds = {name: work / timings.median(name) for name in found}
    note = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
    note += f" GFLOP/s; {speeds['pyclattn'] * 1e9 / peak:.0%} of the peak"
    ratio = timings.ratio(fastest, "pyclattn").median
    return Row("dense", f"({n_rows} x {depth}) x ({depth} x {width}) against {fastest}", "", ratio,
               note=note + ("" if timings.is_quiet else "; others were busy"), detail={"rows": n_rows})  # fmt: skip


def summaries(found: list[Row]) -> Iterator[Row]:
    """Geometric means: of what the bar speaks of, and of short inputs."""
    for what, wanted, bar in (("512 rows and more", True, BAR), ("fewer rows", False, None)):
        ratios = [row.value for row in found if (row.detail["rows"] >= BAR_FROM) == wanted]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            yield Row("dense", f"{what}, geometric mean against the best", "", mean, bar=bar)


def main(given: list[str] | None = None) -> int:
    """Print the table, keep that of all rows in bench/results; 1 if the bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench dense", description=__doc__)
    parser.add_argument("--n-threads", type=int, default=_threads.available_cpus())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="rows of the left matrix")
    options = parser.parse_args(given)
    peak = fma_peak(isa.selected(), options.n_threads)
    found = []
    print(heading(), flush=True)
    for n_rows, depth, width in product(options.rows, DEPTHS, WIDTHS):
        found.append(rows(n_rows, depth, width, options.n_threads, options.rounds, peak))
        print(found[-1].line(), flush=True)
    means = list(summaries(found))
    print("\n".join(row.line() for row in means))
    if tuple(options.rows) == tuple(ROWS):
        content = {"machine": machine.describe(options.n_threads), "rows": [row.as_dict() for row in means + found]}
        RESULTS.write_text(json.dumps({"peak": peak, **content}, indent=1) + "\n")
    print(f"\n{tally(means)}; {options.n_threads} threads, multiply-add peak {peak / 1e9:.0f} GFLOP/s")
    return int(any(row.verdict == "MISS" for row in means))


if __name__ == "__main__":
    sys.exit(main())
