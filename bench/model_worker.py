"""One engine with one model in a process of its own: ``python -m bench.model_worker ENGINE CASE THREADS OUTPUT``.

It loads, says so, and runs once for every line it reads; the answer to each is one line of JSON with the seconds, the
process's peak memory so far and, of pyclattn, the seconds its products took. The first output goes to OUTPUT (.npy).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.tasks.workers import peak_memory

PRODUCTS = ("pyclattn:Linear", "MatMul", "Gemm", "Conv", "ConvTranspose")
Run = Callable[[], tuple[np.ndarray, dict[str, float]]]  # the first output, and what else was measured


def feeds_of(case: str) -> dict[str, np.ndarray]:
    """The inputs of "saliency SIZE" or "minilm BATCH LENGTH"."""
    what, *sizes = case.split()
    shape = tuple(map(int, sizes))
    if what == "saliency":
        from bench.tasks.saliency import normalised

        return {"input_image": normalised(shape[0], shape[0])}
    ids = np.random.default_rng(0).integers(1000, 20000, shape)
    return {"input_ids": ids, "attention_mask": np.ones(shape, np.int64)}


def source(case: str) -> bytes:
    """The model as ONNX."""
    if case.startswith("saliency"):
        from bench.tasks.fetch import SALIENCY, fetch
        from bench.tasks.saliency import DYNAMIC
        from pyclattn_export.verify import opened

        fetch(SALIENCY)
        return opened(SALIENCY.path, DYNAMIC)
    from bench.tasks.exported import minilm

    return minilm("script")[0].read_bytes()


def converted(case: str) -> Path:
    """The model in pyclattn's format, converted once, in a process of its own so that its memory does not count."""
    from bench.tasks import exported, saliency

    if case.startswith("saliency"):
        return saliency.converted()
    origin = exported.minilm("script")[0]
    target = origin.with_name("minilm.pyclattn.safetensors")
    if not target.exists():
        subprocess.run([Path(sys.executable).with_name("pyclattn-export"), "onnx", origin, "-o", target], check=True)
    return target


def pyclattn_run(case: str, attention: Any, n_threads: int) -> Run:
    """A model in its own file, as a service would load it."""
    import pyclattn

    path, feeds = converted(case), feeds_of(case)
    model = pyclattn.load(path, attention=attention, n_threads=n_threads)

    def run() -> tuple[np.ndarray, dict[str, float]]:
        results, events = model.profile(feeds)
        spent = sum(stop - start for op, start, stop in events if op.kind in PRODUCTS)
        return next(iter(results.values())), {"products": spent / 1e9}

    return run


def onnxruntime_run(case: str, n_threads: int) -> Run:
    """ONNX Runtime on the model it was exported to."""
    import onnxruntime

    given, feeds = source(case), feeds_of(case)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = n_threads, 3
    options.enable_mem_pattern = False  # with it a second run takes twice the memory, and is no faster
    session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    del given
    return lambda: (session.run(None, feeds)[0], {})


def openvino_run(case: str, n_threads: int) -> Run:
    """OpenVINO in float32."""
    import openvino

    given, feeds = source(case), feeds_of(case)
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": n_threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(given), "CPU", settings)
    del given
    request = compiled.create_infer_request()

    def run() -> tuple[np.ndarray, dict[str, float]]:
        request.infer(feeds)
        return np.array(request.get_output_tensor(0).data), {}

    return run


def engine(name: str, case: str, n_threads: int) -> Run:
    """A runner by its name."""
    if name in ("onnxruntime", "openvino"):
        return {"onnxruntime": onnxruntime_run, "openvino": openvino_run}[name](case, n_threads)
    from bench.tasks.saliency import ATTENTION

    return pyclattn_run(case, ATTENTION[{"pyclattn": "exact"}.get(name, name)], n_threads)


def main(name: str, case: str, n_threads: str, output: str) -> None:
    """Answer until the input ends."""
    run = engine(name, case, int(n_threads))
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        result, more = run()
        seconds = time.perf_counter() - start
        if not Path(output).exists():
            np.save(output, result)
        del result
        print(json.dumps({"seconds": seconds, "bytes": peak_memory(), **more}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
