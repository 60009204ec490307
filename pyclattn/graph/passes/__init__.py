"""Rewrites that make an imported program fast: folding, fusion, and attention found by structure.

`optimize` runs them in their one order. A pass gets an `Editor` and `Shapes` and edits in place; none knows ONNX files.
"""

from pyclattn.graph.passes.pipeline import optimize
from pyclattn.graph.passes.report import AttentionFound, Report, SoftmaxKept

__all__ = ["AttentionFound", "Report", "SoftmaxKept", "optimize"]
