"""Encoders trained with idiap's fast-transformers (0.4.0): names and words of its `TransformerEncoderBuilder`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyclattn.errors import ArgumentError
from pyclattn.layers.encoder import Encoder
from pyclattn.layers.weights import from_weights

# Our names of an encoder's tensors -> those in its state dict.
NAMES: dict[str, str | None] = {
    **{f"layers.{{}}.attention.{n}": f"layers.{{}}.attention.{n}_projection" for n in ("query", "key", "value", "out")},
    "layers.{}.attention_norm": "layers.{}.norm1",
    "layers.{}.feed_forward.up": "layers.{}.linear1",
    "layers.{}.feed_forward.down": "layers.{}.linear2",
    "layers.{}.feed_forward_norm": "layers.{}.norm2",
}
ATTENTION_TYPES = ("full", "clustered", "improved-clustered")


def fast_transformers_encoder(
    weights: Mapping[str, np.ndarray],
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
    """The encoder that fast-transformers' ``TransformerEncoderBuilder`` made and somebody trained.

    Parameters
    ----------
    weights : mapping of str to array
        Its state dict, as `pyclattn.load_weights` reads it.
    prefix : str
        What the names begin with, where the encoder is part of a larger model: ``"transformer"``.
    n_heads, attention_type, activation, clusters, topk, bits, iterations
        As the builder was given them. ``attention_type``: "full", "clustered" or "improved-clustered".
    seed : int
        Of the hash planes, which are no part of a state dict: the authors' code draws them anew at every call.

    Returns
    -------
    Encoder

    Raises
    ------
    ModelFormatError
        Listing all tensors that are missing, unexpected or of another shape.
    ArgumentError
        For an attention type of another kind, and weights without a layer.

    Examples
    --------
    >>> import numpy as np
    >>> square = [f"attention.{name}_projection" for name in ("query", "key", "value", "out")] + ["linear1", "linear2"]
    >>> weights = {f"layers.0.{name}.weight": np.eye(8) for name in square}
    >>> weights |= {f"layers.0.{name}.bias": np.zeros(8) for name in [*square, "norm1", "norm2"]}
    >>> weights |= {"layers.0.norm1.weight": np.ones(8), "layers.0.norm2.weight": np.ones(8)}
    >>> encoder = fast_transformers_encoder(weights, n_heads=2, attention_type="clustered", clusters=5)
    >>> encoder(np.random.default_rng(0).standard_normal((1, 20, 8))).shape
    (1, 20, 8)
    """
    settings = encoder_settings(weights, prefix, n_heads, attention_type, activation)
    if attention_type != "full":
        settings |= {
            "attention_kind": "clustered_attention", "n_clusters": clusters, "n_bits": bits,
            "n_iterations": iterations, "seed": seed,
        }  # fmt: skip
    if attention_type == "improved-clustered":
        settings["topk"] = topk
    return from_weights("encoder", weights, prefix, NAMES, **settings)


def encoder_settings(
    weights: Mapping[str, Any], prefix: str, n_heads: int, attention_type: str, activation: str
) -> dict[str, Any]:
    """What a state dict says of the encoder, and what it does not."""
    if attention_type not in ATTENTION_TYPES:
        raise ArgumentError(f"attention_type must be one of {', '.join(ATTENTION_TYPES)}, got {attention_type!r}")
    if activation not in ("relu", "gelu"):
        raise ArgumentError(f"activation must be 'relu' or 'gelu', got {activation!r}")
    start = f"{prefix}." if prefix else ""
    found = [n[len(start) :].split(".") for n in weights if n.startswith(start)]
    numbers = {int(parts[1]) for parts in found if parts[0] == "layers" and len(parts) > 2 and parts[1].isdigit()}
    if not numbers:
        raise ArgumentError(
            f"weights must hold layers.0 and so on under {prefix!r}, got {', '.join(list(weights)[:3])}"
        )
    has_norm = any(parts[0] == "norm" for parts in found)
    return {"n_layers": max(numbers) + 1, "n_heads": n_heads, "activation": activation, "has_norm": has_norm}
