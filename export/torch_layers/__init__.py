"""PyTorch twins of pyclattn's layers: modules to train, with the same names, parameters and formulas.

A twin computes what its layer in pyclattn computes, batched and differentiable, on any device. In an ONNX export its
attention becomes one operator of the domain ``pyclattn``, in whatever network it stands.
"""

from pyclattn_export.torch_layers.attention import MultiHeadAttention
from pyclattn_export.torch_layers.cast import CASTAttention, cast_attention
from pyclattn_export.torch_layers.centroid import CentroidAttention, Centroids, centroid_attention
from pyclattn_export.torch_layers.clustered import (
    ClusteredAttention,
    clustered_attention,
    improved_clustered_attention,
)
from pyclattn_export.torch_layers.encoder import Encoder, EncoderLayer, FeedForward
from pyclattn_export.torch_layers.fast_transformers import fast_transformers_encoder
from pyclattn_export.torch_layers.points import farthest_point_sampling, mean_pool_tokens, nearest_neighbors

__all__ = [
    "CASTAttention",
    "CentroidAttention",
    "Centroids",
    "ClusteredAttention",
    "Encoder",
    "EncoderLayer",
    "FeedForward",
    "MultiHeadAttention",
    "cast_attention",
    "centroid_attention",
    "clustered_attention",
    "farthest_point_sampling",
    "fast_transformers_encoder",
    "improved_clustered_attention",
    "mean_pool_tokens",
    "nearest_neighbors",
]
