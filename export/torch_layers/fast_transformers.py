"""Encoders trained with idiap's fast-transformers, as twins: to train on, and to export in a network around them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from pyclattn.layers.fast_transformers import NAMES, encoder_settings
from pyclattn.layers.weights import renamed
from pyclattn_export.state import check_state
from pyclattn_export.torch_layers.attention import MultiHeadAttention
from pyclattn_export.torch_layers.clustered import ClusteredAttention
from pyclattn_export.torch_layers.encoder import Encoder, EncoderLayer, FeedForward


def fast_transformers_encoder(
    weights: Mapping[str, Tensor],
    prefix: str = "",
    *,
    n_heads: int,
    attention_type: str = "full",
    activation: str = "relu",
    clusters: int = 100,
    topk: int = 32,
    bits: int = 63,
    iterations: int = 10,
    seed: int = 0,
) -> Encoder:
    """The twin of `pyclattn.layers.fast_transformers_encoder`, from a state dict of tensors.

    Parameters
    ----------
    weights : mapping of str to Tensor
    prefix, n_heads, attention_type, activation, clusters, topk, bits, iterations, seed
        As there.

    Returns
    -------
    Encoder

    Raises
    ------
    ModelFormatError
        Listing all tensors that are missing, unexpected or of another shape.
    """
    start = f"{prefix}." if prefix else ""
    own = {name[len(start) :]: x for name, x in weights.items() if name.startswith(start)}
    settings = encoder_settings(own, "", n_heads, attention_type, activation)
    hidden, dim = _sizes(own, "linear1", 0)
    more = {"head_dim": _sizes(own, "attention.query_projection", dim)[0] // n_heads}
    more["value_dim"] = _sizes(own, "attention.value_projection", dim)[0] // n_heads

    def attention() -> MultiHeadAttention:
        if attention_type == "full":
            return MultiHeadAttention(dim, n_heads, **more)
        return ClusteredAttention(
            dim, n_heads, clusters, topk=topk if attention_type == "improved-clustered" else None, n_bits=bits,
            n_iterations=iterations, seed=seed, **more,
        )  # fmt: skip

    layers = [
        EncoderLayer(attention(), FeedForward(dim, hidden, activation=activation)) for _ in range(settings["n_layers"])
    ]
    encoder = Encoder(layers, nn.LayerNorm(dim) if settings["has_norm"] else None)
    theirs = {name: renamed(name, NAMES) or name for name in encoder.state_dict()}
    check_state({theirs[name]: x for name, x in encoder.state_dict().items()}, own, "a fast-transformers encoder")
    encoder.load_state_dict({name: own[other] for name, other in theirs.items()})
    return encoder


def _sizes(weights: Mapping[str, Tensor], name: str, otherwise: int) -> tuple[int, int]:
    """(out, in) of a linear layer of the first encoder layer; a missing one is complained of with all others."""
    found = weights.get(f"layers.0.{name}.weight")
    return (otherwise, otherwise) if found is None or found.ndim != 2 else (found.shape[0], found.shape[1])
