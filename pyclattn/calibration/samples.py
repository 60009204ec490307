"""Samples: checked before any run, and known by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from pyclattn.errors import ArgumentError, DTypeError, PyclattnError
from pyclattn.graph.planner import check_inputs
from pyclattn.model import Model


def checked(
    model: Model, samples: Sequence[Mapping[str, np.ndarray]], *, needs_attention: bool = True
) -> list[dict[str, np.ndarray]]:
    """Samples as dicts of arrays.

    Raises
    ------
    ArgumentError
        If there are none, one does not fit the model, is empty or holds NaN or infinity; or if the model has no
        attention to calibrate.
    """
    check_model(model)
    if needs_attention and not model.attentions:
        raise ArgumentError("the model has no attention that can be replaced: there is nothing to calibrate")
    if isinstance(samples, Mapping) or not isinstance(samples, Sequence):
        raise ArgumentError(f"samples must be a list of mappings of input name to array, got {type(samples).__name__}")
    if not len(samples):
        raise ArgumentError("samples must hold at least one sample, got none")
    feeds = []
    for i, sample in enumerate(samples):
        if not isinstance(sample, Mapping):
            raise ArgumentError(f"samples[{i}] must map input names to arrays, got {type(sample).__name__}")
        feed = model.filled({name: np.asarray(array) for name, array in sample.items()})
        try:
            check_inputs(model.program.inputs, feed)
        except PyclattnError as error:
            raise ArgumentError(f"samples[{i}]: {error}") from error
        for name, array in feed.items():
            if not array.size:
                raise ArgumentError(f"samples[{i}]: input {name!r} is empty, its shape is {array.shape}")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ArgumentError(f"samples[{i}]: input {name!r} holds NaN or infinity")
        feeds.append(feed)
    return feeds


def check_model(model: Model) -> None:
    """Raise DTypeError unless it is one: a path is a likely slip."""
    if not isinstance(model, Model):
        raise DTypeError(f"model must be a pyclattn.Model, as pyclattn.load gives it, got {type(model).__name__}")


def key_of(feed: Mapping[str, np.ndarray]) -> str:
    """Sixteen hexadecimal digits of a sample's content."""
    digest = hashlib.sha256()
    for name in sorted(feed):
        array = np.ascontiguousarray(feed[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
