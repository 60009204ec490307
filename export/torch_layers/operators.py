"""How a twin becomes one operator of the domain ``pyclattn`` in an ONNX export.

``torch.onnx.export`` runs a network to see what it does. A function under `operator` notices that and, instead of
showing its arithmetic, leaves a single node: the tensors are its inputs, the other arguments its attributes. Both
exporters are served, the one by torch.export (dynamo) and the one by TorchScript.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyclattn.errors import ArgumentError

DOMAIN = "pyclattn"


class Result(NamedTuple):
    """What an operator gives: sizes (numbers or symbols), and its type."""

    shape: tuple
    dtype: torch.dtype


def operator(*tensors: str, result: Callable[..., Result]) -> Callable[[Callable], Callable]:
    """Make a function one ONNX operator of its name.

    Parameters
    ----------
    *tensors : str
        The arguments that are inputs, in their order; such an argument may be None.
    result : function
        From the function's arguments, by name, to a `Result`.
    """

    def enter(function: Callable) -> Callable:
        signature = inspect.signature(function)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Tensor:
            if torch.compiler.is_dynamo_compiling() and torch.compiler.is_exporting():
                # torch.onnx.export tries this where all else failed, and would write the example's sizes into the file
                raise ArgumentError(f"{function.__name__} cannot be exported by torch.export with strict=True")
            if not torch.onnx.is_in_onnx_export():
                return function(*args, **kwargs)
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            inputs = {name: given.arguments[name] for name in tensors}
            attributes = {
                name: _attribute(function.__name__, name, value)
                for name, value in given.arguments.items()
                if name not in inputs and value is not None
            }
            return _node(function.__name__, tuple(inputs.values()), attributes, result(**given.arguments))

        return call

    return enter


def _attribute(function: str, name: str, value: Any) -> int | float | str | tuple[int, ...]:
    """An argument as the exporters take it."""
    if isinstance(value, (torch.SymInt, torch.SymFloat, Tensor)):
        raise ArgumentError(
            f"{name} of {function} must be a number in an ONNX export, the same for all inputs; "
            "got one that was made of a tensor or its shape"
        )
    if isinstance(value, (list, tuple)):
        return tuple(_attribute(function, name, each) for each in value)
    if isinstance(value, np.generic):
        value = value.item()
    return int(value) if isinstance(value, bool) else value


def _node(kind: str, inputs: tuple[Tensor | None, ...], attributes: Mapping[str, Any], result: Result) -> Tensor:
    while inputs and inputs[-1] is None:
        inputs = inputs[:-1]
    kind = f"{DOMAIN}::{kind}"
    if torch.compiler.is_exporting():
        return torch.onnx.ops.symbolic(
            kind, inputs, attributes, dtype=result.dtype, shape=result.shape, version=1
        )  # fmt: skip
    return _Traced.apply(kind, attributes, result, *inputs)


class _Traced(torch.autograd.Function):
    """The node in a trace of TorchScript."""

    @staticmethod
    def forward(ctx: Any, kind: str, attributes: Mapping, result: Result, *inputs: Tensor | None) -> Tensor:
        like = next(x for x in inputs if x is not None)
        return torch.zeros([int(n) for n in result.shape], dtype=result.dtype, device=like.device)

    @staticmethod
    def symbolic(g: Any, kind: str, attributes: Mapping, result: Result, *inputs: Any) -> Any:
        def absent() -> Any:
            none = g.op("prim::Constant")
            none.setType(torch._C.OptionalType.ofTensor())
            return none

        letters = {int: "i", float: "f", str: "s", tuple: "i"}
        named = {f"{name}_{letters[type(value)]}": value for name, value in attributes.items()}
        made = g.op(kind, *(absent() if x is None else x for x in inputs), **named)
        first = next(x for x in inputs if x is not None).type()
        return made.setType(first.with_dtype(result.dtype).with_sizes([None] * len(result.shape)))
