"""Clustered attention for NumPy: trained transformers over long input on a CPU, without a deep-learning framework."""

from pyclattn.functional.cast import cast_attention
from pyclattn.functional.centroid import centroid_attention, mean_pool_tokens
from pyclattn.functional.clustered import clustered_attention, improved_clustered_attention
from pyclattn.functional.clustering import Clusters, cluster_queries, hash_queries, kmeans
from pyclattn.functional.coclustered import coclustered_attention
from pyclattn.functional.exact import scaled_dot_product_attention
from pyclattn.functional.points import farthest_point_sampling, nearest_neighbors

__version__ = "0.1.0"

__all__ = [
    "BatchEncoder",
    "Clusters",
    "Model",
    "Plan",
    "calibrate",
    "cast_attention",
    "centroid_attention",
    "cluster_queries",
    "clustered_attention",
    "coclustered_attention",
    "farthest_point_sampling",
    "hash_queries",
    "improved_clustered_attention",
    "kmeans",
    "load",
    "load_weights",
    "mean_pool_tokens",
    "nearest_neighbors",
    "quantize",
    "scaled_dot_product_attention",
]

# What arrays alone do not need is imported when asked for.
_LAZY = {
    "BatchEncoder": "pyclattn.serving.batch_encoder",
    "Model": "pyclattn.model",
    "Plan": "pyclattn.plan",
    "calibrate": "pyclattn.calibration",
    "load": "pyclattn.model",
    "load_weights": "pyclattn.weights",
    "quantize": "pyclattn.calibration",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
