"""Peers: the same attention by other libraries, in this process, on as many threads.

Each is built once a case: its inputs lie as it likes them best, its output is allocated where it allows that, and only
its run is timed. Peers' thread pools spin after a call; `measure` lets them fall asleep before it times anything.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import numpy as np

from bench.cases import Case, Inputs
from bench.subjects import NotInstalledError, NotSupportedError, Subject


def _need(*names: str) -> list[ModuleType]:
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise NotInstalledError(f"{names[0]} is not installed ({error})") from None


def onnxruntime_session(model: Any, n_threads: int, reuses_memory: bool = True) -> Any:
    """ONNX Runtime on a model's path or bytes, one operator at a time on so many threads, quiet.

    ``reuses_memory``: with its memory patterns a second run of a large model takes twice the memory, and is no faster.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = n_threads, 1
    options.log_severity_level, options.enable_mem_pattern = 4, reuses_memory
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _session(ort: Any, onnx: Any, node_list: list, inputs: dict[str, np.ndarray], shape: tuple, n_threads: int) -> Any:
    """A session over these nodes, inputs and output bound in place; returns the function to run and the output."""
    helper = onnx.helper
    kinds = {"float32": onnx.TensorProto.FLOAT, "int32": onnx.TensorProto.INT32}
    graph = helper.make_graph(
        node_list,
        "attention",
        [helper.make_tensor_value_info(name, kinds[a.dtype.name], a.shape) for name, a in inputs.items()],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, shape)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session = onnxruntime_session(model.SerializeToString(), n_threads)
    binding = session.io_binding()
    held = {name: ort.OrtValue.ortvalue_from_numpy(a) for name, a in inputs.items()}
    for name, tensor in held.items():
        binding.bind_ortvalue_input(name, tensor)
    out = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32)
    binding.bind_ortvalue_output("out", out)

    def run(held: Any = (held, inputs)) -> None:  # what is bound must outlive the binding
        session.run_with_iobinding(binding)

    return run, out


def onnxruntime_mha(case: Case, x: Inputs, n_threads: int) -> Subject:
    """com.microsoft MultiHeadAttention on (B, L, H * D): the flash path where there is no mask."""
    ort, onnx = _need("onnxruntime", "onnx")
    if case.n_kv_heads not in (None, case.n_heads):
        raise NotSupportedError("MultiHeadAttention has no grouped heads")
    merged = {
        name: np.ascontiguousarray(a.swapaxes(1, 2)).reshape(a.shape[0], a.shape[2], -1)
        for name, a in (("q", x.query), ("k", x.key), ("v", x.value))
    }
    names = ["q", "k", "v"]
    if x.key_padding_mask is not None:
        merged["mask"] = (~x.key_padding_mask).astype(np.int32)  # 1 = attend
        names += ["", "mask"]
    node = onnx.helper.make_node(
        "MultiHeadAttention",
        names,
        ["out"],
        domain="com.microsoft",
        num_heads=case.n_heads,
        unidirectional=int(case.is_causal),
    )
    shape = (case.batch, case.length, case.n_heads * case.width)
    run, out = _session(ort, onnx, [node], merged, shape, n_threads)
    split = (case.batch, case.length, case.n_heads, case.width)
    return Subject("ONNX Runtime", run, lambda: out.numpy().reshape(split).swapaxes(1, 2))


def onnxruntime_plain(case: Case, x: Inputs, n_threads: int) -> Subject:
    """MatMul, Mul, Softmax, MatMul: what exporters write. It holds all L x S scores."""
    ort, onnx = _need("onnxruntime", "onnx")
    if case.is_causal or case.n_kv_heads not in (None, case.n_heads):
        raise NotSupportedError("the plain graph is measured without causal masks and grouped heads")
    make = onnx.helper.make_node
    inputs = {
        "q": x.query,
        "kt": np.ascontiguousarray(x.key.swapaxes(2, 3)),
        "v": x.value,
        "scale": np.array([case.head_dim**-0.5], np.float32),
    }
    nodes = [make("Mul", ["q", "scale"], ["scaled"]), make("MatMul", ["scaled", "kt"], ["scores"])]
    if x.key_padding_mask is not None:
        inputs["bias"] = np.where(x.key_padding_mask, np.float32(-1e30), np.float32(0))[:, None, None]
        nodes.append(make("Add", ["scores", "bias"], ["masked"]))
    last = nodes[-1].output[0]
    nodes += [make("Softmax", [last], ["weights"], axis=-1), make("MatMul", ["weights", "v"], ["out"])]
    shape = (case.batch, case.n_heads, case.length, case.width)
    run, out = _session(ort, onnx, nodes, inputs, shape, n_threads)
    return Subject("ONNX Runtime graph", run, out.numpy)


def openvino_settings(n_threads: int, precision: str) -> dict[str, Any]:
    """One run at a time on so many threads, "f32" or "bf16"."""
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": n_threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }


def openvino_sdpa(case: Case, x: Inputs, n_threads: int, precision: str = "f32") -> Subject:
    """Opset-13 ScaledDotProductAttention in float32 (its default would be bfloat16 where the CPU has it)."""
    ov, ops = _need("openvino", "openvino.opset13")
    if case.n_kv_heads not in (None, case.n_heads):
        raise NotSupportedError("measured without grouped heads")
    data = [x.query, x.key, x.value]
    nodes = [ops.parameter(list(a.shape), np.float32) for a in data]
    masks = {}
    if x.key_padding_mask is not None:
        data.append(np.ascontiguousarray(~x.key_padding_mask[:, None, None]))
        nodes.append(ops.parameter(list(data[3].shape), bool))
        masks["attention_mask"] = nodes[3]
    result = ops.scaled_dot_product_attention(*nodes[:3], causal=case.is_causal, **masks)
    settings = openvino_settings(n_threads, precision)
    request = ov.Core().compile_model(ov.Model([ops.result(result)], nodes), "CPU", settings).create_infer_request()
    for place, a in enumerate(data):
        request.set_input_tensor(place, ov.Tensor(a, shared_memory=True))

    def run(held: Any = data) -> None:  # a shared tensor does not keep its array alive
        request.infer()

    return Subject("OpenVINO", run, lambda: request.get_output_tensor(0).data)


def pytorch_sdpa(case: Case, x: Inputs, n_threads: int) -> Subject:
    """torch.nn.functional.scaled_dot_product_attention: the flash path, masks too."""
    (torch,) = _need("torch")
    attend = torch.nn.functional.scaled_dot_product_attention
    query, key, value = (torch.from_numpy(a) for a in (x.query, x.key, x.value))
    mask = None if x.key_padding_mask is None else torch.from_numpy(~x.key_padding_mask[:, None, None])
    is_grouped = case.n_kv_heads not in (None, case.n_heads)
    last: list = []

    def run() -> None:
        if torch.get_num_threads() != n_threads:
            torch.set_num_threads(n_threads)
        with torch.inference_mode():
            last[:] = [attend(query, key, value, attn_mask=mask, is_causal=case.is_causal, enable_gqa=is_grouped)]

    return Subject("PyTorch", run, lambda: last[0].numpy() if last else None)


# The first three are the ones a bar speaks of ("the fastest peer").
PEERS: dict[str, Callable[[Case, Inputs, int], Subject]] = {
    "onnxruntime": onnxruntime_mha,
    "openvino": openvino_sdpa,
    "torch": pytorch_sdpa,
    "onnxruntime_graph": onnxruntime_plain,
}
FAST = ("onnxruntime", "openvino", "torch")
PACKAGES = ("onnxruntime", "openvino", "torch")
# The plain graph holds two arrays of B x H x L x S scores: 1.6 GB at 4,096 tokens and 12 heads, 26 GB at 16,384.
MOST_SCORES = 4 * 10**8


def build(case: Case, x: Inputs, n_threads: int, names: tuple[str, ...] = FAST) -> tuple[list[Subject], list[str]]:
    """The peers of a case, and a line about each that cannot take part."""
    subjects, absent = [], []
    for name in names:
        if name == "onnxruntime_graph" and case.batch * case.n_heads * case.length * case.n_keys > MOST_SCORES:
            continue
        try:
            subjects.append(PEERS[name](case, x, n_threads))
        except (NotInstalledError, NotSupportedError) as error:
            absent.append(f"{name}: {error}")
    return subjects, absent


def versions() -> dict[str, str]:
    """Version of each peer's package, or "not installed"."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
