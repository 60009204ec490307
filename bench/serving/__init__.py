"""``python -m bench serving``: a service under load, its start, its memory, and ONNX Runtime behind the same server."""

from bench.serving.measure import main

__all__ = ["main"]
