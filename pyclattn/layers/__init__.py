"""What a trained layer is: a frozen dataclass of weights that can be called.

Three things are kept apart: settings and weights are fields, scratch lives within a call. Layers take (batch, length,
width) arrays with ``key_padding_mask``, or packed tokens (tokens, width) with ``offsets``; ``attention=`` chooses the
method, for a layer or for a call. `from_weights` makes layers from a file's tensors.
"""

from pyclattn.layers.attention import Heads, MultiHeadAttention
from pyclattn.layers.basic import Embedding, FeedForward, LayerNorm, Linear, RMSNorm
from pyclattn.layers.cast import CASTAttention
from pyclattn.layers.centroid import CentroidAttention, Centroids
from pyclattn.layers.clustered import ClusteredAttention
from pyclattn.layers.encoder import Encoder, EncoderLayer
from pyclattn.layers.fast_transformers import fast_transformers_encoder
from pyclattn.layers.rotary import Angles, Rotary, rotate
from pyclattn.layers.weights import from_weights

__all__ = [
    "Angles",
    "CASTAttention",
    "CentroidAttention",
    "Centroids",
    "ClusteredAttention",
    "Embedding",
    "Encoder",
    "EncoderLayer",
    "FeedForward",
    "Heads",
    "LayerNorm",
    "Linear",
    "MultiHeadAttention",
    "RMSNorm",
    "Rotary",
    "fast_transformers_encoder",
    "from_weights",
    "rotate",
]
