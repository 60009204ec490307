"""Trained weights into a module, and one error for everything that does not fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyclattn.errors import ModelFormatError
from pyclattn.weights import load_weights


def load_state(module: nn.Module, weights: str | os.PathLike | Mapping[str, np.ndarray | Tensor]) -> None:
    """Fill a module's parameters and buffers.

    Parameters
    ----------
    module : torch.nn.Module
    weights : path-like or mapping of str to array or tensor
        A file as `pyclattn.load_weights` reads it, without running what is pickled in it; or a state dict.

    Raises
    ------
    ModelFormatError
        Listing all tensors that are missing, unexpected or of another shape. The module is then as before.

    Examples
    --------
    >>> import torch
    >>> load_state(torch.nn.Linear(3, 2), {"weight": torch.ones(2, 4), "scale": torch.ones(2)})
    Traceback (most recent call last):
    ...
    pyclattn.errors.ModelFormatError: the weights are not those of Linear:
      missing: bias (2,)
      unexpected: scale (2,)
      wrong shape: weight must be (2, 3), got (2, 4)
    """
    where = "" if isinstance(weights, Mapping) else f"{os.fspath(weights)}: "
    given = weights if isinstance(weights, Mapping) else load_weights(weights)
    wanted = module.state_dict()
    given = {**_tied(wanted, given), **given}
    check_state(wanted, given, type(module).__name__, where)
    module.load_state_dict({name: _tensor(given[name]) for name in wanted})


def _tied(wanted: Mapping[str, Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors that a file holds only by the name of another parameter that shares their memory, as safetensors' do."""
    there = {(x.data_ptr(), x.shape): given[name] for name, x in wanted.items() if name in given and x.numel()}
    return {n: there[x.data_ptr(), x.shape] for n, x in wanted.items() if (x.data_ptr(), x.shape) in there}


def check_state(wanted: Mapping[str, Any], given: Mapping[str, Any], what: str, where: str = "") -> None:
    """Raise one error for all tensors of a state dict that are missing, unexpected or of another shape."""
    problems = [f"missing: {name} {tuple(x.shape)}" for name, x in wanted.items() if name not in given]
    problems += [f"unexpected: {name} {tuple(x.shape)}" for name, x in given.items() if name not in wanted]
    problems += [
        f"wrong shape: {name} must be {tuple(x.shape)}, got {tuple(given[name].shape)}"
        for name, x in wanted.items()
        if name in given and tuple(given[name].shape) != tuple(x.shape)
    ]
    if problems:
        raise ModelFormatError("\n  ".join([f"{where}the weights are not those of {what}:", *problems]))


def _tensor(given: np.ndarray | Tensor) -> Tensor:
    if isinstance(given, Tensor):
        return given
    array = np.asarray(given)
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    return torch.from_numpy(np.array(array))  # a copy: a file's arrays cannot be written to
