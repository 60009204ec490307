"""Clustered attention for NumPy: trained transformers over long input on a CPU, without a deep-learning framework."""

from pyclattn.functional.clustered import clustered_attention, improved_clustered_attention
from pyclattn.functional.clustering import Clusters, cluster_queries, hash_queries, kmeans
from pyclattn.functional.exact import scaled_dot_product_attention

__version__ = "0.1.0"

__all__ = [
    "Clusters",
    "cluster_queries",
    "clustered_attention",
    "hash_queries",
    "improved_clustered_attention",
    "kmeans",
    "scaled_dot_product_attention",
]
