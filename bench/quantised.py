"""``python -m bench quantised``: int8 weights, their speed, their size and what they change; against ONNX Runtime int8.

Products; MiniLM as a whole, 32 texts of 128 tokens and one of 512; the similarity of 200 pairs of sentences; the heat
map of a saliency model; the file, and the memory a process keeps.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from bench import dense_int8
from bench.dense import BAR_FROM, DEPTHS, ROWS, WIDTHS
from bench.measure import interleave
from bench.memory import _status as status
from bench.parts import measured
from bench.peers import onnxruntime_session
from bench.rows import Row
from bench.tasks import saliency, words
from bench.tasks.exported import minilm
from pyclattn import _threads
from pyclattn.calibration import quantize
from pyclattn.model import Model, load

RESULTS = Path(__file__).parent / "results" / "quantised.json"
SHAPES = ((32, 128), (1, 512))
N_PAIRS, BATCH = 200, 40
SIZE = 1022
PARTS = ("products", "text", "similarity", "saliency", "size")


def products(n_threads: int, rounds: int) -> Iterator[Row]:
    """A row a shape, and the geometric mean of those of the bar."""
    found = []
    for n_rows, depth, width in product([n for n in ROWS if n >= BAR_FROM], DEPTHS, WIDTHS):
        found.append(dense_int8.row(n_rows, depth, width, n_threads, rounds))
        yield found[-1]
    mean = math.exp(sum(math.log(row.value or math.nan) for row in found) / len(found))
    yield Row("int8 products", "geometric mean against ONNX Runtime's dynamic int8", "", mean, bar=1.0)
    yield Row("int8 products", "sums are those of int32 arithmetic", "", True, sense="is", bar=True)


def source_model(n_threads: int) -> Model:
    return load(minilm()[0], n_threads=n_threads)


def feeds(batch: int, length: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(1000, 30000, (batch, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def quantised_by_onnxruntime(source: Path, folder: Path) -> Path:
    """As its documentation shows for transformers: dynamic, int8 weights."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = folder / "int8.onnx"
    quantize_dynamic(source, target, weight_type=QuantType.QInt8)
    return target


def text(n_threads: int, rounds: int) -> Iterator[Row]:
    """MiniLM as a whole."""
    plain = source_model(n_threads)
    small = quantize(plain).model
    with tempfile.TemporaryDirectory() as folder:
        sessions = {}
        for name in ("dynamo", "script"):
            path = quantised_by_onnxruntime(minilm(name)[0], Path(folder))
            sessions[f"onnxruntime int8 {name}"] = onnxruntime_session(path, n_threads)
        sessions["onnxruntime float32"] = onnxruntime_session(minilm()[0], n_threads)
    for shape in SHAPES:
        given = feeds(*shape)
        calls: dict[str, Callable[[], object]] = {"int8": partial(small, **given), "float32": partial(plain, **given)}
        calls |= {name: partial(peer.run, None, given) for name, peer in sessions.items()}
        timings = interleave(calls, rounds)
        note = ", ".join(f"{name} {1e3 * timings.median(name):.1f}" for name in calls) + " ms"
        note += "" if timings.is_quiet else "; others were busy"
        at = "{} x {}".format(*shape)
        best = timings.fastest([name for name in sessions if "int8" in name])
        yield Row(
            "MiniLM", "int8 against ONNX Runtime int8", at, timings.ratio(best, "int8").median, bar=1.0, note=note
        )
        yield Row("MiniLM", "int8 against our float32", at, timings.ratio("float32", "int8").median)


def similarity(n_threads: int) -> Iterator[Row]:
    """Rank correlation of the similarities of pairs of sentences, int8 and half precision against float32."""
    from scipy.stats import spearmanr

    vocab = words.vocabulary(minilm()[1])
    rows = [words.word_pieces(sentence, vocab, True) for sentence in words.prose(2 * N_PAIRS)]
    plain = source_model(n_threads)
    want = similarities(plain, rows)
    for weights in ("int8", "fp16", "bf16"):
        got = similarities(quantize(plain, weights).model, rows)
        note = f"largest difference of a similarity {np.abs(got - want).max():.4f}"
        bar = 0.995 if weights == "int8" else None
        yield Row("accuracy", f"MiniLM {weights}: Spearman over {len(want)} pairs", "", float(spearmanr(got, want)[0]),
                  "r2", bar=bar, note=note)  # fmt: skip


def similarities(model: Model, rows: list[list[int]]) -> np.ndarray:
    """Cosine of the mean tokens of each sentence and the one ``N_PAIRS`` after it."""
    means = []
    for i in range(0, len(rows), BATCH):
        given = words.padded(rows[i : i + BATCH])
        hidden, mask = next(iter(model(**given).values())), given["attention_mask"][..., None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        means.append(mean / np.linalg.norm(mean, axis=1, keepdims=True))
    every = np.concatenate(means)
    return (every[:N_PAIRS] * every[N_PAIRS : 2 * N_PAIRS]).sum(1)


def heat_map(n_threads: int, size: int) -> Iterator[Row]:
    """Correlation of heat maps, and time."""
    import time

    image = saliency.normalised(size, size)
    plain = load(saliency.converted(), n_threads=n_threads)
    heats, seconds = {}, {}
    for weights in ("float32", "int8", "fp16", "bf16"):
        model = plain if weights == "float32" else quantize(plain, weights).model
        start = time.perf_counter()
        heats[weights] = model.run(None, {"input_image": image})[0][0, 0]
        seconds[weights] = time.perf_counter() - start
        if weights != "float32":
            correlation, overlap = saliency.agreement(heats[weights], heats["float32"])
            note = f"IoU at 0.5 {overlap:.4f}; first run {seconds[weights]:.2f} s, float32 {seconds['float32']:.2f} s"
            yield Row("accuracy", f"saliency {weights}: correlation of heat maps", f"{size}", correlation, "r2",
                      bar=0.999 if weights == "int8" else None, note=note)  # fmt: skip


def sizes(n_threads: int) -> Iterator[Row]:
    """Of files, and of what a process that has run keeps, beside float32."""
    plain = source_model(n_threads)
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.safetensors" for name in ("float32", "int8", "fp16", "bf16")}
        for name, path in paths.items():
            (plain if name == "float32" else quantize(plain, name).model).save(path)
        file = {name: path.stat().st_size for name, path in paths.items()}
        kept = {name: resident(path) for name, path in paths.items()}
    for what, found, bar in (("file", file, 0.28), ("resident memory", kept, 0.35)):
        for name in ("int8", "fp16", "bf16"):
            note = f"{found[name] / 1e6:.1f} of {found['float32'] / 1e6:.1f} MB"
            yield Row("size", f"MiniLM {name}: {what}", "", found[name] / found["float32"], sense="<=",
                      bar=bar if name == "int8" else None, note=note)  # fmt: skip


def resident(path: Path) -> int:
    """Bytes that a fresh process keeps for a model it has run."""
    command = [sys.executable, "-m", "bench.quantised", "--worker", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def keep_and_tell(path: str) -> int:
    """In a process of its own: memory grown by loading and running, after a small model has run."""
    from pyclattn.graph.program import Op, Program, Value

    x, y = Value("x", "float32", ("n", 300)), Value("y", "float32", ("n", 300))
    weight = np.ones((300, 300), np.float32)
    first = Model(Program([x], [y], [Op("MatMul", ("x", "w"), ("y",))], {"w": weight}), n_threads=1)
    first(x=np.ones((400, 300), np.float32))
    before = status("VmRSS")
    model = load(path, n_threads=1)
    model(**feeds(1, 16))
    gc.collect()
    return status("VmRSS") - before


def main(given: list[str] | None = None) -> int:
    """Print the table, keep it in bench/results; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench quantised", description=__doc__)
    parser.add_argument("--n-threads", type=int, default=_threads.available_cpus())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=SIZE, help="pixels a side of the saliency image (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.worker:
        print(json.dumps(keep_and_tell(options.worker)))
        return 0
    parts = {
        "products": lambda: products(options.n_threads, options.rounds),
        "text": lambda: text(options.n_threads, options.rounds),
        "similarity": lambda: similarity(options.n_threads),
        "saliency": lambda: heat_map(options.n_threads, options.size),
        "size": lambda: sizes(options.n_threads),
    }
    return measured(parts, RESULTS, options.n_threads, options.only)


if __name__ == "__main__":
    sys.exit(main())
