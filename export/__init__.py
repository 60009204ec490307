"""Convert trained models for pyclattn: ONNX files or PyTorch modules in, one safetensors file out.

Five verbs, one module each: load and map (`from_onnx`, `from_torch`), validate, save, verify. This package is the only
place beside tests and benchmarks that imports onnx or torch; `pyclattn.load("x.onnx")` reaches it through an entry
point. `torch_layers` are modules to train, twins of pyclattn's layers.
"""

try:
    from pyclattn_export.convert import Conversion, convert
    from pyclattn_export.from_onnx import from_onnx, read_program
    from pyclattn_export.from_torch import from_torch
except ModuleNotFoundError as error:
    if error.name not in ("onnx", "tqdm", "ml_dtypes"):
        raise
    _missing = error.name  # the command line, and whoever wants a name from here, is told; torch_layers need none

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        raise ModuleNotFoundError(f"{name} needs {_missing}: pip install pyclattn[export]", name=_missing)


__all__ = ["Conversion", "convert", "from_onnx", "from_torch", "read_program"]
