"""Convert trained models for pyclattn: ONNX files in, one safetensors file out.

Five verbs, one module each: load and map (`from_onnx`), validate, save, verify. This package is the only place beside
tests and benchmarks that imports onnx or torch; `pyclattn.load("x.onnx")` reaches it through an entry point.
"""

from pyclattn_export.convert import Conversion, convert
from pyclattn_export.from_onnx import from_onnx, read_program

__all__ = ["Conversion", "convert", "from_onnx", "read_program"]
