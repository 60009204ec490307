"""Convert trained models for pyclattn: ONNX files or PyTorch modules in, one safetensors file out.

Five verbs, one module each: load and map (`from_onnx`, `from_torch`), validate, save, verify. This package is the only
place beside tests and benchmarks that imports onnx or torch; `pyclattn.load("x.onnx")` reaches it through an entry
point. `torch_layers` are modules to train, twins of pyclattn's layers.
"""

from pyclattn_export.convert import Conversion, convert
from pyclattn_export.from_onnx import from_onnx, read_program
from pyclattn_export.from_torch import from_torch

__all__ = ["Conversion", "convert", "from_onnx", "from_torch", "read_program"]
