"""One engine with one model in a process of its own: ``python -m bench.model_worker ENGINE FILE MODEL THREADS OUTPUT``.

It loads, says so, and runs once for every line it reads; the answer to each is one line of JSON with the seconds, the
process's peak memory so far and, of pyclattn, the seconds its products took. The first output goes to OUTPUT (.npy).
The line "about" asks what else there is to tell: multiplications and additions, estimated errors of attentions.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import model_cases, model_files
from bench.tasks.workers import peak_memory

PRODUCTS = ("pyclattn:Linear", "MatMul", "Gemm", "Conv", "ConvTranspose")
Run = Callable[[], tuple[np.ndarray, dict[str, float]]]  # the first output, and what else was measured
About = Callable[[], dict[str, Any]]
# Of what is free: a peer that asks for more must fail, and not the machine.
MEMORY_SHARE = 0.85


def pyclattn_run(attention: str, precision: str, path: str, model: str, n_threads: int) -> tuple[Run, About]:
    """A model in its own file, as a service would load it."""
    from pyclattn import load
    from pyclattn.plan.choice import choice_of

    how: Any = "exact"
    if attention == "coclustered":
        how = model_cases.uniform(model, precision)
    elif attention == "calibrated":
        how = str(model_files.plan_file())
    numbers = "bfloat16" if precision.endswith("bf16") else "float32"
    loaded = load(path, attention=how, precision=numbers, n_threads=n_threads)
    feeds = model_files.inputs(model)

    def run() -> tuple[np.ndarray, dict[str, float]]:
        results, events = loaded.profile(feeds)
        spent = sum(stop - start for op, start, stop in events if op.kind in PRODUCTS)
        return next(iter(results.values())), {"products": spent / 1e9}

    def about() -> dict[str, Any]:
        if attention == "pyclattn":
            return {"flops": flops(loaded, feeds)}
        found = layer_errors(loaded.run(None, feeds, report=True)[1])
        return found | ({} if attention == "calibrated" else {"setting": str(choice_of(how))})

    return run, about


def flops(model: Any, feeds: dict[str, np.ndarray]) -> int:
    """Multiplications and additions of exact attention and of products with weights, as they are run."""
    from pyclattn.graph.filters import WinogradFilters

    shapes = {name: array.shape for name, array in feeds.items()}
    total = sum(4 * a["heads"] * a["queries"] * a["keys"] * a["head_dim"] for a in model.describe_attentions(**shapes))
    known = model._executor.plan(model._specs(shapes)).specs
    for op in model.program.ops:
        weights = [model.program.constants[n] for n in op.inputs if n in model.program.constants]
        weight = next((w for w in weights if w.ndim > 1), None)
        if op.kind not in PRODUCTS or weight is None:
            continue
        if op.kind == "ConvTranspose":
            plain = 2 * _size(known, op.inputs[0]) * int(np.prod(weight.shape[1:]))
            total += plain * 36 // 64 if isinstance(known[op.inputs[1]].packed, WinogradFilters) else plain
        elif op.kind == "Conv":
            total += 2 * _size(known, op.outputs[0]) * int(np.prod(weight.shape[1:]))
        else:  # one of the two may be folded into a neighbour
            rows = known.get(op.inputs[0]) or known[op.outputs[0]]
            total += 2 * int(np.prod(rows.shape[:-1])) * weight.size
    return total


def _size(known: dict[str, Any], name: str) -> int:
    return int(np.prod(known[name].shape))


def layer_errors(report: Any) -> dict[str, Any]:
    """Mean and worst over layers; a layer's error is the root of the mean square of its heads'."""
    heads = defaultdict(list)
    for own in report.attentions:
        heads[own.name].extend([0.0] if own.errors is None else own.errors.ravel().tolist())
    errors = [float(np.sqrt(np.mean(np.square(found)))) for found in heads.values()]
    return {"layer_error": float(np.mean(errors)), "worst_layer": max(errors)}


def onnxruntime_run(path: str, model: str, n_threads: int) -> Run:
    """ONNX Runtime in the precision of the file."""
    from bench.peers import onnxruntime_session

    limit_memory()
    session = onnxruntime_session(path, n_threads, reuses_memory=False)
    feeds = model_files.inputs(model)
    return lambda: (session.run(None, feeds)[0], {})


def openvino_run(precision: str, path: str, model: str, n_threads: int) -> Run:
    """OpenVINO in float32 or bfloat16, made for the input's shape."""
    import openvino

    from bench.peers import openvino_settings

    feeds, core = model_files.inputs(model), openvino.Core()
    read = core.read_model(path)
    read.reshape({name: list(array.shape) for name, array in feeds.items()})
    compiled = core.compile_model(read, "CPU", openvino_settings(n_threads, precision or "f32"))
    del read
    request = compiled.create_infer_request()

    def run() -> tuple[np.ndarray, dict[str, float]]:
        request.infer(feeds)
        return np.array(request.get_output_tensor(0).data), {}

    return run


def torch_run(attention: str, model: str, n_threads: int) -> Run:
    """PyTorch on MiniLM, its attention "eager" or "sdpa"."""
    import torch
    import transformers

    from bench.tasks.exported import MINILM
    from bench.tasks.fetch import fetch
    from pyclattn.weights import SafeTensors

    torch.set_num_threads(n_threads)
    weights, config, _ = fetch(*MINILM)
    settings = transformers.BertConfig(**json.loads(config.read_text()), attn_implementation=attention)
    bert = transformers.BertModel(settings, add_pooling_layer=False).eval()
    state = {name: torch.from_numpy(array.copy()) for name, array in SafeTensors(weights).items()}
    missing = bert.load_state_dict(state, strict=False).missing_keys
    if any("position_ids" not in name for name in missing):
        raise ValueError(f"{weights.name} lacks {', '.join(missing)}")
    feeds = {name: torch.from_numpy(array) for name, array in model_files.inputs(model).items()}

    def run() -> tuple[np.ndarray, dict[str, float]]:
        with torch.inference_mode():
            return bert(**feeds).last_hidden_state.numpy(), {}

    return run


def limit_memory() -> None:
    """Let this process fail rather than the machine, where it asks for more than there is."""
    status = Path("/proc/meminfo")
    if not status.exists():
        return
    import resource

    free = next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "MemAvailable" in line)
    resource.setrlimit(resource.RLIMIT_DATA, (int(MEMORY_SHARE * free),) * 2)


def memory_limit() -> int | None:
    """What `limit_memory` has set."""
    if not Path("/proc/meminfo").exists():
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def engine(name: str, path: str, model: str, n_threads: int) -> tuple[Run, About]:
    """A runner by its name, and what is known about it."""
    kind, _, precision = name.partition("-")
    if kind == "onnxruntime":
        return onnxruntime_run(path, model, n_threads), dict
    if kind == "torch":
        return torch_run(precision, model, n_threads), dict
    if kind == "openvino":
        return openvino_run(precision, path, model, n_threads), dict
    return pyclattn_run(kind, precision, path, model, n_threads)


def failure(error: Exception) -> dict[str, Any]:
    """What went wrong; where memory was refused, the least it would have held: the limit, or what it tells."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if not isinstance(error, MemoryError) and not re.search("bad_alloc|[Ff]ailed to allocate", str(error)):
        return {"failed": text[-200:]}
    refused = re.search(r"requested buffer of size (\d+)", str(error))
    return {"failed": text[-200:], "bytes": max(memory_limit() or 0, peak_memory() + int(refused[1] if refused else 0))}


def main(name: str, path: str, model: str, n_threads: str, output: str) -> None:
    """Answer until the input ends."""
    run, about = engine(name, path, model, int(n_threads))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        if line.strip() == "about":
            print(json.dumps(about()), flush=True)
            continue
        start = time.perf_counter()
        try:
            result, more = run()
        except Exception as error:  # engines have exceptions of their own
            print(json.dumps(failure(error)), flush=True)
            continue
        seconds = time.perf_counter() - start
        if not Path(output).exists():
            np.save(output, result)
        del result
        print(json.dumps({"seconds": seconds, "bytes": peak_memory(), **more}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
