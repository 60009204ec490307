"""PyTorch twins of pyclattn's layers: modules to train, with the same names, parameters and formulas.

A twin computes what its layer in pyclattn computes, batched and differentiable, on any device. In an ONNX export it
becomes one operator of the domain ``pyclattn``, in whatever network it stands.
"""

from pyclattn_export.torch_layers.cast import CASTAttention, cast_attention
from pyclattn_export.torch_layers.centroid import CentroidAttention, centroid_attention

__all__ = ["CASTAttention", "CentroidAttention", "cast_attention", "centroid_attention"]
