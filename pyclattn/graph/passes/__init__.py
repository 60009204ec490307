"""Rewrites that make an imported program fast: folding, fusion, and attention found by structure.

`optimize` runs them in their one order. A pass gets an `Editor` and `Shapes` and edits in place; none knows ONNX files.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyclattn.graph.passes.pipeline import optimize
    from pyclattn.graph.passes.report import AttentionFound, Report, SoftmaxKept

__all__ = ["AttentionFound", "Report", "SoftmaxKept", "optimize"]


def __getattr__(name: str) -> Any:
    """Most models are converted ones, which need no pass but `lower`: the others are imported when asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pyclattn.graph.passes import pipeline, report

    return getattr(pipeline if name == "optimize" else report, name)
