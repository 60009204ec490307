"""Convert trained models for pyclattn: ONNX files or PyTorch modules in, one safetensors file out.

Five verbs, one module each: load and map (`from_onnx`, `from_torch`), validate, save, verify. This package is the only
place beside tests and benchmarks that imports onnx or torch; `pyclattn.load("x.onnx")` reaches it through an entry
point. `torch_layers` are modules to train, twins of pyclattn's layers.
"""

from pyclattn_export.convert import Conversion, convert
from pyclattn_export.from_onnx import from_onnx, read_program

__all__ = ["Conversion", "convert", "from_onnx", "from_torch", "load_state", "read_program"]

# What needs torch is imported when asked for.
_LAZY = {"from_torch": "pyclattn_export.from_torch", "load_state": "pyclattn_export.state"}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
