"""PyTorch modules: inputs by name, what torch's exporters to ONNX make of them, what they give beside pyclattn."""

from __future__ import annotations

import inspect
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pyclattn.errors import ArgumentError, DTypeError, ModelFormatError, PyclattnError
from pyclattn.graph.program import Program, Value
from pyclattn.model import Model, load
from pyclattn_export.from_onnx import from_onnx
from pyclattn_export.verify import TOLERANCE, Comparison, Difference, difference

Given = Tensor | np.ndarray | None
Axes = dict[str, dict[int, str]]  # input -> axis -> its name


def by_name(module: nn.Module, given: Mapping[str, Given] | Sequence[Given]) -> dict[str, Tensor]:
    """Example inputs by the names of forward's arguments, in its order."""
    if not isinstance(module, nn.Module):
        raise DTypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    signature = inspect.signature(module.forward)
    try:
        bound = signature.bind(**given) if isinstance(given, Mapping) else signature.bind(*given)
    except TypeError as error:
        raise ArgumentError(
            f"example_inputs must be the arguments of {type(module).__name__}.forward{signature}: {error}"
        ) from error
    found = {}
    for name, value in bound.arguments.items():
        if value is None:
            continue
        if not isinstance(value, (Tensor, np.ndarray)):
            raise ArgumentError(f"example_inputs must be tensors or arrays, got {name} = {type(value).__name__}")
        found[name] = torch.as_tensor(value)
    return found


def open_axes(inputs: Mapping[str, Tensor], dynamic: Mapping[str, Any] | None) -> Axes:
    """Every input's open axes with their names, checked."""
    if dynamic is None:
        return {name: {0: "batch"} for name, x in inputs.items() if x.ndim}
    unknown = sorted(set(dynamic) - set(inputs))
    if unknown:
        raise ArgumentError(f"dynamic names no input: {', '.join(unknown)}; the inputs are {', '.join(inputs)}")
    found: Axes = {}
    for name, axes in dynamic.items():
        named = dict(axes) if isinstance(axes, Mapping) else {axis: f"{name}_{axis}" for axis in axes}
        wrong = [axis for axis in named if not 0 <= axis < inputs[name].ndim]
        if wrong:
            raise ArgumentError(f"dynamic axis {wrong[0]} of {name!r} is out of range: {tuple(inputs[name].shape)}")
        found[name] = named
    lengths: dict[str, int] = {}
    for name, named in found.items():
        for axis, label in named.items():
            length = inputs[name].shape[axis]
            if lengths.setdefault(label, length) != length:
                raise ArgumentError(f"axis {label!r} has length {lengths[label]} and, in {name}, {length}")
    return found


def program_of(
    module: nn.Module, inputs: Mapping[str, Tensor], axes: Axes, names: Sequence[str], exporter: str
) -> Program:
    exporters = {"dynamo": _by_dynamo, "script": _by_script}
    if exporter not in exporters:
        raise ArgumentError(f"exporter must be one of {', '.join(exporters)}, got {exporter!r}")
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # torch's about itself
            warnings.simplefilter("ignore")
            model = exporters[exporter](module, dict(inputs), axes, list(names))
    except Exception as error:  # of torch's many kinds; its own words say what in the module it could not follow
        own = _own(error)
        said = f"{error!s:.2000}" if own is None else str(own)
        raise ModelFormatError(f"torch cannot export {type(module).__name__} ({exporter}): {said}") from error
    program = from_onnx(model)
    program.metadata["source"] = "torch"
    _name_axes(program, axes)
    return program


def _own(error: BaseException | None) -> PyclattnError | None:
    """What of ours is behind an error of torch's."""
    while error is not None and not isinstance(error, PyclattnError):
        error = error.__cause__ or error.__context__
    return error


def _by_dynamo(module: nn.Module, inputs: dict[str, Tensor], axes: Axes, names: list[str]) -> onnx.ModelProto:
    shapes = {name: dict.fromkeys(axes.get(name, {}), torch.export.Dim.DYNAMIC) or None for name in inputs}
    made = torch.onnx.export(
        module, (), kwargs=inputs, dynamo=True, output_names=names, dynamic_shapes=shapes, verbose=False
    )
    return made.model_proto


def _by_script(module: nn.Module, inputs: dict[str, Tensor], axes: Axes, names: list[str]) -> onnx.ModelProto:
    file, was_fast = io.BytesIO(), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # torch's own encoder layer as one operator that ONNX has not
    given: dict[str, Any] = {"args": (), "kwargs": inputs}
    kinds = {argument.kind for argument in inspect.signature(module.forward).parameters.values()}
    if inspect.Parameter.KEYWORD_ONLY in kinds:  # which this exporter would give by position
        module, given = _ByPosition(module, list(inputs)), {"args": tuple(inputs.values())}
    try:
        torch.onnx.export(
            module, f=file, dynamo=False, input_names=list(inputs), output_names=names, dynamic_axes=axes,
            verbose=False, **given,
        )  # fmt: skip
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fast)
    return onnx.load_from_string(file.getvalue())


class _ByPosition(nn.Module):
    """A module whose arguments are given in an order, not by their names."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *given: Tensor) -> Any:
        return self.module(**dict(zip(self.names, given)))


def _name_axes(program: Program, axes: Axes) -> None:
    """Open axes get the names they were given, wherever the exporter's symbols for them stand."""
    symbols = {}
    for i, value in enumerate(program.inputs):
        named = axes.get(value.name, {})
        symbols.update({value.shape[axis]: label for axis, label in named.items()})
        program.inputs[i] = Value(value.name, value.dtype, tuple(named.get(a, n) for a, n in enumerate(value.shape)))
    for i, value in enumerate(program.outputs):
        program.outputs[i] = Value(value.name, value.dtype, tuple(symbols.get(n, n) for n in value.shape))


def compare(
    module: nn.Module, inputs: Mapping[str, Tensor], axes: Axes, path: Path, n_threads: int | None
) -> Comparison:
    model = load(path, n_threads=n_threads)
    differences = _differences(module, inputs, model)
    if any(axes.values()):
        try:
            differences += _differences(module, _resized(inputs, axes), model)
        except PyclattnError as error:
            raise ModelFormatError(
                f"{path}: runs at the example's lengths, but not with its open axes one shorter: a length was written "
                f"into the model ({error})"
            ) from error
    return Comparison(differences, TOLERANCE)


def _resized(inputs: Mapping[str, Tensor], axes: Axes) -> dict[str, Tensor]:
    """Inputs with every open axis one shorter, or doubled where it is 1."""
    found = dict(inputs)
    for name, named in axes.items():
        for axis in named:
            n = inputs[name].shape[axis]
            rows = torch.arange(n - 1) if n > 1 else torch.zeros(2, dtype=torch.int64)
            found[name] = found[name].index_select(axis, rows)
    return found


def _differences(module: nn.Module, inputs: Mapping[str, Tensor], model: Model) -> list[Difference]:
    known = {entry.name for entry in model.get_inputs()}  # an argument that changes nothing is not there
    found = model(**{name: array for name, array in arrays(inputs).items() if name in known})
    wanted = outputs_of(module, inputs, list(found))
    return [difference(name, wanted[name], found[name]) for name in found]


def outputs_of(module: nn.Module, inputs: Mapping[str, Tensor], names: Sequence[str] | None) -> dict[str, np.ndarray]:
    """What a module gives, flattened as the exporter flattens it, by name."""
    try:
        given = module(**inputs)
    except PyclattnError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{name} {tuple(x.shape)} {x.dtype}" for name, x in inputs.items())
        raise ArgumentError(f"{type(module).__name__} does not run on {shapes}: {error}") from error
    arrays = [_array("an output", leaf) for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    if names is None and isinstance(given, Mapping) and len(given) == len(arrays):
        names = list(given)
    elif names is None:
        names = ["output"] if len(arrays) == 1 else [f"output_{i}" for i in range(len(arrays))]
    if len(names) != len(arrays):
        raise ArgumentError(f"{type(module).__name__} has {len(arrays)} outputs, output_names are {list(names)}")
    return dict(zip(names, arrays))


def arrays(inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: _array(name, x) for name, x in inputs.items()}


def _array(name: str, x: Tensor) -> np.ndarray:
    if x.dtype == torch.bfloat16:
        raise DTypeError(f"{name} is bfloat16, which arrays of NumPy are not: give module.float() and float32 inputs")
    return x.detach().cpu().numpy()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Every part of a module in eval(), and then in the mode it was in.

    Without torch's fast path: it gives zeros where `torch.nn.TransformerEncoder` has padding, and is not exported.
    """
    modes = [(part, part.training) for part in module.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    module.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for part, is_training in modes:
            part.training = is_training
