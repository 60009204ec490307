"""``python -m bench bfloat16``: products of bfloat16, ours and OpenVINO's: attention, dense layers, a whole model.

Both round what is multiplied and sum in float32. Errors are relative to our float32, as norms; heat maps are compared
by their correlation.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from bench import peers
from bench.cases import Case
from bench.dense import DEPTHS, WIDTHS
from bench.measure import Timings, fma_peak, interleave
from bench.parts import measured
from bench.rows import Row, tokens
from bench.subjects import ours
from bench.tasks import saliency
from pyclattn import _threads
from pyclattn.functional.dense import pack_weight
from pyclattn.functional.dense_bfloat16 import pack_bfloat16
from pyclattn.functional.precision import missing_bfloat16
from pyclattn.model import load

RESULTS = Path(__file__).parent / "results" / "bfloat16.json"
LENGTHS, SIZES, ROWS = (1024, 4096, 8192, 16384), (1022, 1526), 4096
ATTENTION_BAR, BAR_FROM, MODEL_BAR, CORRELATION_BAR = 1.25, 4096, 1.1, 0.9999
# A rounding to bfloat16 is off by 2^-9 at most.
ERROR_BAR = 2.0**-7
PARTS = ("attention", "dense", "model")


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Norm of the difference over the norm."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def attention(n_threads: int, rounds: int, lengths: tuple[int, ...]) -> Iterator[Row]:
    """12 heads of 64, beside OpenVINO's and our own float32."""
    peak = fma_peak("bfloat16", n_threads)
    for case in map(Case, lengths):
        x = case.inputs()
        exact = ours("exact", case, x, n_threads)
        rounded = ours("exact", case, x, n_threads, precision="bfloat16")
        peer = peers.openvino_sdpa(case, x, n_threads, "bf16")
        timings = interleave({"float32": exact.run, "bfloat16": rounded.run, "OpenVINO": peer.run}, rounds)
        want, at = exact.output(), tokens(case.length)
        errors = {s.name: error(s.output(), want) for s in (rounded, peer)}
        speeds = {name: case.flops / timings.median(name) / 1e9 for name in timings.seconds}
        note = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
        note += f" GFLOP/s; {speeds['bfloat16'] * 1e9 / peak:.0%} of the peak"
        note += "" if timings.is_quiet else "; others were busy"
        detail = {"seconds": timings.summary(), "gflops": speeds, "errors": errors, "peak": peak}
        bar = ATTENTION_BAR if case.length >= BAR_FROM else None
        ratio = timings.ratio("OpenVINO", "bfloat16").median
        yield Row("attention", "attention against OpenVINO bf16", at, ratio, bar=bar, note=note, detail=detail)
        own = errors["exact"]
        note = f"OpenVINO {errors['OpenVINO']:.1e}"
        yield Row("attention", "its error", at, own, unit="relative", sense="<=", bar=ERROR_BAR, note=note)
        del exact, rounded, peer
        gc.collect()


def dense(n_threads: int, rounds: int) -> Iterator[Row]:
    """Against our own float32, whose bars `python -m bench dense` holds."""
    peak = fma_peak("bfloat16", n_threads)
    for depth, width in product(DEPTHS, WIDTHS):
        rng = np.random.default_rng(0)
        x, weight = (rng.standard_normal(shape, dtype=np.float32) for shape in ((ROWS, depth), (depth, width)))
        outs = {name: np.zeros((ROWS, width), np.float32) for name in ("float32", "bfloat16")}
        packs = {"float32": pack_weight, "bfloat16": pack_bfloat16}
        calls = {name: packs[name](weight).bind(x, out=out, n_threads=n_threads) for name, out in outs.items()}
        timings = interleave(calls, rounds)
        work = 2 * ROWS * depth * width / 1e9
        speed = work / timings.median("bfloat16")
        note = f"{speed:.0f} GFLOP/s, {speed * 1e9 / peak:.0%} of the peak"
        note += f"; error {error(outs['bfloat16'], outs['float32']):.1e}"
        note += "" if timings.is_quiet else "; others were busy"
        ratio = timings.ratio("float32", "bfloat16").median
        yield Row("dense", f"({ROWS} x {depth}) x ({depth} x {width}) against float32", "", ratio, note=note,
                  detail={"seconds": timings.summary(), "gflops": speed, "peak": peak})  # fmt: skip


def openvino_model(size: int, n_threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """The saliency model in OpenVINO, bf16."""
    import openvino as ov

    from pyclattn_export.verify import opened

    source = opened(saliency.SALIENCY.path, saliency.DYNAMIC)
    model = ov.Core().read_model(source, b"") if isinstance(source, bytes) else ov.Core().read_model(source)
    model.reshape([1, 3, size, size])
    compiled = ov.Core().compile_model(model, "CPU", peers.openvino_settings(n_threads, "bf16"))
    request = compiled.create_infer_request()
    return lambda image: request.infer([image])[0]


def model(n_threads: int, rounds: int, sizes: tuple[int, ...]) -> Iterator[Row]:
    """A vision transformer over 5,330 and 11,882 tokens, attention exact and co-clustered."""
    for size in sizes:
        image, last = saliency.normalised(size, size), {}
        settings = {
            "float32": ("exact", "float32"),
            "bfloat16": ("exact", "bfloat16"),
            "co-clustered": (saliency.ATTENTION["coclustered"], "bfloat16"),
            "co-clustered in float32": (saliency.ATTENTION["coclustered"], "float32"),
        }
        runs = {
            name: partial(load(saliency.converted(), attention, precision=precision, n_threads=n_threads).run, None)
            for name, (attention, precision) in settings.items()
        }
        other = openvino_model(size, n_threads)

        def run(name: str, image=image, runs=runs, other=other, last=last) -> None:
            last[name] = other(image).copy() if name == "OpenVINO" else runs[name]({"input_image": image})[0]

        run("float32")
        compared = ("bfloat16", "OpenVINO", "co-clustered", "co-clustered in float32")
        timings = interleave({name: partial(run, name) for name in compared}, rounds)
        ratio = timings.ratio("OpenVINO", "bfloat16").median
        note = ", ".join(f"{name} {timings.median(name):.2f} s" for name in timings.seconds)
        note += "" if timings.is_quiet else "; others were busy"
        at, detail = f"{size} px", {"seconds": timings.summary()}
        yield Row("model", "saliency against OpenVINO bf16", at, ratio, bar=MODEL_BAR, note=note, detail=detail)
        found = {name: float(np.corrcoef(x.ravel(), last["float32"].ravel())[0, 1]) for name, x in last.items()}
        quality = f"1 - {1 - found['bfloat16']:.1e}; OpenVINO 1 - {1 - found['OpenVINO']:.1e}"
        yield Row("model", "its heat map and float32's, correlation", at, found["bfloat16"], unit="r2",
                  bar=CORRELATION_BAR, note=quality, detail=found)  # fmt: skip
        yield from coclustered(at, timings, found)
        del runs, other, run
        gc.collect()


def coclustered(at: str, timings: Timings, found: dict[str, float]) -> Iterator[Row]:
    """The same model with co-clustered attention in bfloat16; its method errs far more than its roundings."""
    for other, title in (("OpenVINO", "OpenVINO bf16"), ("co-clustered in float32", "float32")):
        ratio = timings.ratio(other, "co-clustered").median
        note = f"{timings.median('co-clustered'):.2f} s, {title} {timings.median(other):.2f} s"
        yield Row("model", f"saliency co-clustered against {title}", at, ratio, note=note)
    note = f"1 - {1 - found['co-clustered']:.1e}; in float32 1 - {1 - found['co-clustered in float32']:.1e}"
    yield Row("model", "its heat map and exact attention's", at, found["co-clustered"], unit="r2", note=note)


def main(given: list[str] | None = None) -> int:
    """Print the table and write it to results/; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench bfloat16", description=__doc__)
    parser.add_argument("--n-threads", type=int, default=_threads.available_cpus())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=PARTS, help=", ".join(PARTS))
    parser.add_argument("--at", type=int, nargs="+", default=LENGTHS, help="lengths of the attention")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="pixels of the saliency model")
    options = parser.parse_args(given)
    missing = missing_bfloat16()
    if missing:
        print(f"nothing to measure: {missing}", file=sys.stderr)
        return 2
    parts = {
        "attention": lambda: attention(options.n_threads, options.rounds, tuple(options.at)),
        "dense": lambda: dense(options.n_threads, options.rounds),
        "model": lambda: model(options.n_threads, options.rounds, tuple(options.sizes)),
    }
    return measured(parts, RESULTS, options.n_threads, options.only or PARTS)


if __name__ == "__main__":
    sys.exit(main())
