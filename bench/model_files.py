"""Files of ``python -m bench models``, made once and kept in the cache: models as each engine takes them, and a plan.

A model is named "saliency SIZE" or "minilm BATCH LENGTH"; "encoder LENGTH" is MiniLM with as many positions.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from bench.tasks.conversions import converted, kept

# A plan made at this size also serves larger images.
CALIBRATED_AT, N_SAMPLES, MAX_ERROR = 1022, 4, 0.02


def onnx_file(model: str) -> Path:
    """The model as it was exported, with open sizes."""
    what, *sizes = model.split()
    if what == "saliency":
        from bench.tasks.fetch import SALIENCY, fetch

        (source,) = fetch(SALIENCY)
        target = source.with_suffix(".open.onnx")
        if not target.exists():
            from bench.tasks.saliency import DYNAMIC
            from pyclattn_export.verify import opened

            given = opened(source, DYNAMIC)
            target.write_bytes(given if isinstance(given, bytes) else Path(given).read_bytes())
        return target
    from bench.tasks.exported import minilm, minilm_longer

    return minilm_longer(int(sizes[0])) if what == "encoder" else minilm("script")[0]


def onnx_int8_file(model: str) -> Path:
    """Weights of products in int8, rows rounded as they come: ONNX Runtime's own quantiser, as for transformers."""
    source = onnx_file(model)
    target = source.with_suffix(".int8.onnx")
    if not target.exists():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        part = target.with_suffix(".part")
        quantize_dynamic(source, part, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm", "Gather"])
        part.replace(target)
    return target


def pyclattn_file(model: str, precision: str = "") -> Path:
    """In pyclattn's format; "int8", or that and another, stores weights so."""
    source = onnx_file(model)
    plain = converted(source)
    return kept(source, partial(_quantised, plain), "int8") if precision.startswith("int8") else plain


def _quantised(source: Path, target: Path) -> None:
    from pyclattn import load, quantize

    quantize(load(source)).model.save(target)


def plan_file() -> Path:
    """A plan for the saliency model that keeps `MAX_ERROR` in every layer."""
    model = f"saliency {CALIBRATED_AT}"
    target = onnx_file(model).with_suffix(".plan.json")
    if not target.exists():
        from bench.calibration import crops
        from pyclattn import calibrate, load

        state = target.with_suffix(".state")  # a calibration that was stopped goes on
        samples = crops(CALIBRATED_AT, N_SAMPLES, 0)
        calibrate(load(pyclattn_file(model)), samples, MAX_ERROR, state=state, progress=False).save(target)
    return target


def inputs(model: str) -> dict[str, np.ndarray]:
    """What the model is run on."""
    what, *sizes = model.split()
    if what == "saliency":
        from bench.tasks.saliency import normalised

        return {"input_image": normalised(int(sizes[0]), int(sizes[0]))}
    shape = (1, int(sizes[0])) if what == "encoder" else (int(sizes[0]), int(sizes[1]))
    ids = np.random.default_rng(0).integers(1000, 20000, shape)
    return {"input_ids": ids, "attention_mask": np.ones(shape, np.int64)}


def made(engine: str, model: str) -> Path:
    """The file an engine runs; all it needs is there, so that nothing is made where its memory is counted."""
    name, _, precision = engine.partition("-")
    if name in ("openvino", "onnxruntime", "torch"):
        return (onnx_int8_file if precision == "int8" else onnx_file)(model)
    if name == "calibrated":
        plan_file()
    return pyclattn_file(model, precision)
