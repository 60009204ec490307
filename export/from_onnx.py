"""Load and map: an ONNX model as a `pyclattn.graph.Program`.

Every operator comes out in the meaning of one opset (`opsets`), model-local functions are inlined, bodies of If, Loop
and Scan become programs inside attributes. Nothing is optimised here: that is `pyclattn.graph.passes`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto

from pyclattn.errors import ArgumentError, ModelFormatError, PyclattnError
from pyclattn.graph.passes import Report, optimize
from pyclattn.graph.program import Op, Program, Value, fresh_name
from pyclattn_export import opsets
from pyclattn_export.tensors import dtype_name, parse, to_array
from pyclattn_export.validate import validate

# IR 4 (2019) is the first whose weights need not be inputs; 6 came with opset 11.
OLDEST_IR = 4
MAX_NODES = 1_000_000
MANY = 1 << 16  # more inputs than this is what ONNX calls any number
DTYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "output_datatype", "softmax_precision")


@dataclass
class Node:
    """An ONNX node in plain Python, on its way to becoming operators."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict
    name: str


@dataclass
class Mapper:
    """Collects the operators and constants of one graph; bodies get a mapper of their own that shares the names."""

    where: str
    base: Path | None
    versions: Mapping[str, int]
    names: set[str]
    outer: Mapper | None = None
    ops: list[Op] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    defined: set[str] = field(default_factory=set)

    def fresh(self, like: str) -> str:
        """A name that nothing else in the model has."""
        return fresh_name(self.names, like)

    def emit(self, kind: str, inputs: Iterable[str], outputs: Iterable[str], attributes: dict, name: str) -> str:
        """Append an operator; returns its first output."""
        inputs, outputs = list(inputs), tuple(outputs)
        while inputs and not inputs[-1]:  # an input left out at the end is not there at all
            inputs.pop()
        self.ops.append(Op(kind, tuple(inputs), outputs, attributes, name))
        self.defined.update(outputs)
        return outputs[0] if outputs else ""

    def constant(self, array: np.ndarray, like: str) -> str:
        """Add a constant under a new name."""
        return self.define(self.fresh(like), array)

    def define(self, name: str, array: np.ndarray) -> str:
        self.constants[name] = array
        self.defined.add(name)
        return name

    def known(self, name: str) -> np.ndarray | None:
        """The constant of this name in this graph or one around it."""
        if name in self.constants:
            return self.constants[name]
        return self.outer.known(name) if self.outer else None

    def visible(self, name: str) -> bool:
        return name in self.defined or (self.outer is not None and self.outer.visible(name))


def read_program(path: str | os.PathLike) -> Program:
    """The program of an ONNX file, optimised and ready to run: what ``pyclattn.load("x.onnx")`` calls.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    Program

    Raises
    ------
    ModelFormatError
        If the file is missing, truncated, altered, hostile, or of an opset outside 11 to 24.
    """
    return ready(from_onnx(path), str(path))


def ready(program: Program, where: str) -> Program:
    """Optimised and validated."""
    program, _ = optimise(program, where)
    validate(program, where)
    return program


def optimise(program: Program, where: str, float_attention: bool = False) -> tuple[Program, Report]:
    """`pyclattn.graph.passes.optimize`, with the file in what it may raise."""
    try:
        return optimize(program, float_attention=float_attention)
    except PyclattnError as error:
        raise type(error)(f"{where}: {error}") from error
    except Exception as error:  # passes trust operators to have the inputs and attributes that ONNX gives them
        raise ModelFormatError(f"{where}: its operators do not fit together: {error!r:.200}") from error


def from_onnx(
    model: str | os.PathLike | onnx.ModelProto, *, dynamic: Mapping[str, Iterable[int]] | None = None
) -> Program:
    """Map an ONNX model to a program.

    Parameters
    ----------
    model : path-like or onnx.ModelProto
        External data are memory-mapped, so they must stay in place while the program is used.
    dynamic : mapping of input name to axes, optional
        Axes of fixed size to be left open: ``{"input_image": (2, 3)}``. Whether the graph runs at other sizes is
        the graph's affair; a graph with sizes written into its middle will fail at run time.

    Returns
    -------
    Program

    Raises
    ------
    ModelFormatError
        If the model cannot be read, naming file and node.

    Examples
    --------
    >>> import onnx
    >>> from onnx import helper
    >>> x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 4]) for n in "xy")
    >>> graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    >>> program = from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    >>> program.inputs[0].shape, [op.kind for op in program.ops]
    (('n', 4), ['Relu'])
    """
    base = None if isinstance(model, onnx.ModelProto) else Path(model)
    proto = model if base is None else parse(base)
    where = str(base) if base else "ONNX model"
    versions = _versions(proto, where)
    if not proto.graph.output:
        raise ModelFormatError(
            f"{where}: the graph has no outputs, so nothing it computes could be asked for; name some in graph.output"
        )
    if proto.functions:
        proto = _inlined(proto, where)
    mapper = Mapper(where, base, versions, names=set())
    program = _graph(proto.graph, mapper)
    producer = f"{proto.producer_name} {proto.producer_version}".strip()
    program.metadata.update(source="onnx", producer=producer, opset=versions[""])
    program.metadata.update({f"onnx.{entry.key}": entry.value for entry in proto.metadata_props})
    if dynamic:
        _open_axes(program, dynamic)
    return program


def _versions(proto: onnx.ModelProto, where: str) -> dict[str, int]:
    if not OLDEST_IR <= proto.ir_version <= onnx.IR_VERSION:
        raise ModelFormatError(
            f"{where}: IR version {proto.ir_version} is not supported, expected {OLDEST_IR} to {onnx.IR_VERSION}"
        )
    versions: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        versions[domain] = max(entry.version, versions.get(domain, 0))
    if not opsets.OLDEST <= versions.get("", 0) <= opsets.NEWEST:
        found = versions.get("", "none")
        raise ModelFormatError(
            f"{where}: opset {found} is not supported, expected {opsets.OLDEST} to {opsets.NEWEST}; "
            "onnx.version_converter can change a model's opset"
        )
    return versions


def _inlined(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    from onnx import inliner

    n_nodes = _n_inlined(proto)
    if n_nodes > MAX_NODES:
        raise ModelFormatError(f"{where}: its functions make {n_nodes} operators, at most {MAX_NODES} are read")
    try:
        return inliner.inline_local_functions(proto, convert_version=True)
    except Exception as error:  # of several C++ types that have no common base but this
        raise ModelFormatError(f"{where}: its local functions cannot be inlined: {error!s:.200}") from error


def _n_inlined(proto: onnx.ModelProto) -> int:
    """Nodes there will be when calls of functions are replaced by their bodies: a few functions can make billions."""
    bodies = {(function.domain, function.name): function.node for function in proto.functions}
    counts: dict[tuple[str, str], int] = {}

    def count(nodes: Iterable[onnx.NodeProto]) -> int:
        total = 0
        for node in nodes:
            called = (node.domain, node.op_type)
            total += of_function(called) if called in bodies else 1
            total += sum(count(graph.node) for item in node.attribute for graph in (item.g, *item.graphs))
        return total

    def of_function(called: tuple[str, str]) -> int:
        if called not in counts:
            counts[called] = 0  # a ring counts once: the inliner refuses it
            counts[called] = count(bodies[called])
        return counts[called]

    return count(proto.graph.node)


def _graph(graph: onnx.GraphProto, mapper: Mapper) -> Program:
    weights = {tensor.name for tensor in graph.initializer}
    for sequence in (graph.input, graph.output, graph.initializer):
        mapper.names.update(item.name for item in sequence)
    for node in graph.node:
        mapper.names.update(node.output)
    if graph.sparse_initializer:
        raise ModelFormatError(f"{mapper.where}: sparse weights are not supported")
    inputs = [_value(info, mapper.where) for info in graph.input if info.name not in weights]
    mapper.defined.update(value.name for value in inputs)
    for tensor in graph.initializer:
        if tensor.name in mapper.constants:
            raise ModelFormatError(f"{mapper.where}: weight {tensor.name!r} is defined twice")
        mapper.define(tensor.name, to_array(tensor, mapper.where, mapper.base))
    for index, node in enumerate(graph.node):
        _node(node, index, mapper)
    outputs = [_value(info, mapper.where) for info in graph.output]
    for value in outputs:
        if not mapper.visible(value.name):
            raise ModelFormatError(f"{mapper.where}: output {value.name!r} is made by no node")
    return Program(inputs, outputs, mapper.ops, mapper.constants, {"name": graph.name})


def _node(node: onnx.NodeProto, index: int, mapper: Mapper) -> None:
    name = node.name or f"{node.op_type}_{index}"
    where = f"{mapper.where}: node {name!r} ({node.op_type})"
    for source in node.input:
        if source and not mapper.visible(source):
            raise ModelFormatError(f"{where}: input {source!r} is made by no node before it")
    for target in node.output:
        if target and target in mapper.defined:
            raise ModelFormatError(f"{where}: output {target!r} is defined twice")
    attributes = {item.name: _attribute(item, where, mapper) for item in node.attribute}
    domain = "" if node.domain == "ai.onnx" else node.domain
    if not domain:
        _check_form(node, mapper.versions[""], where)
    mapped = Node(node.op_type, tuple(node.input), tuple(node.output), attributes, name)
    try:
        if domain:
            mapper.emit(f"{domain}:{node.op_type}", mapped.inputs, mapped.outputs, attributes, name)
        else:
            opsets.translate(mapper, mapped, mapper.versions[""])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, PyclattnError):
            raise
        raise ModelFormatError(f"{where}: malformed: {error!r}") from error


def _check_form(node: onnx.NodeProto, opset: int, where: str) -> None:
    """Raise unless an ONNX operator has as many inputs as its opset gives it, and its attributes."""
    if not isinstance(node.op_type, str) or not onnx.defs.has(node.op_type, opset):
        return  # no text, or named among the operators that do not run
    schema = onnx.defs.get_schema(node.op_type, opset)
    n_inputs = len(node.input)
    if not schema.min_input <= n_inputs <= schema.max_input:
        least, most = schema.min_input, schema.max_input
        wanted = f"{least}" if least == most else f"{least} to {most}" if most < MANY else f"at least {least}"
        raise ModelFormatError(f"{where}: expected {wanted} inputs, got {n_inputs}")
    given = {item.name for item in node.attribute}
    missing = sorted(name for name, known in schema.attributes.items() if known.required and name not in given)
    newest = onnx.defs.get_schema(node.op_type)  # files of an older number with newer attributes are about
    unknown = sorted(given.difference(schema.attributes, newest.attributes), key=str)  # a name may be bytes
    for names, what in ((missing, "is missing"), (unknown, "is not one that ONNX knows")):
        if names:
            raise ModelFormatError(f"{where}: attribute {names[0]!r} {what}")


def _attribute(item: AttributeProto, where: str, mapper: Mapper):
    kind = item.type
    if kind == AttributeProto.INT:
        return dtype_name(item.i, where) if item.name in DTYPE_ATTRIBUTES and item.i else item.i
    if kind == AttributeProto.FLOAT:
        return item.f
    if kind == AttributeProto.STRING:
        return item.s.decode("utf-8", "replace")
    if kind == AttributeProto.INTS:
        return list(item.ints)
    if kind == AttributeProto.FLOATS:
        return list(item.floats)
    if kind == AttributeProto.STRINGS:
        return [text.decode("utf-8", "replace") for text in item.strings]
    if kind == AttributeProto.TENSOR:
        return to_array(item.t, where, mapper.base)
    if kind == AttributeProto.GRAPH:
        inner = Mapper(mapper.where, mapper.base, mapper.versions, mapper.names, outer=mapper)
        return _graph(item.g, inner)
    raise ModelFormatError(f"{where}: attribute {item.name!r} is of a kind ({kind}) that pyclattn does not read")


def _value(info: onnx.ValueInfoProto, where: str) -> Value:
    form = info.type.WhichOneof("value")
    if form is None:  # bodies of If and Loop may leave the types of their outputs out
        return Value(info.name, "", ("...",))
    if form != "tensor_type":
        raise ModelFormatError(f"{where}: {info.name!r} is a {form.removesuffix('_type')}; pyclattn takes tensors only")
    tensor = info.type.tensor_type
    dtype = dtype_name(tensor.elem_type, f"{where}: {info.name!r}") if tensor.elem_type else ""
    if not tensor.HasField("shape"):
        return Value(info.name, dtype, ("...",))
    shape: list[int | str] = []
    for axis, dim in enumerate(tensor.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            shape.append(dim.dim_value)
        else:
            shape.append(dim.dim_param or f"{info.name}_{axis}")
    return Value(info.name, dtype, tuple(shape))


def _open_axes(program: Program, dynamic: Mapping[str, Iterable[int]]) -> None:
    inputs = {value.name: index for index, value in enumerate(program.inputs)}
    opened: set[int | str] = set()
    for name, axes in dynamic.items():
        if name not in inputs:
            raise ArgumentError(f"dynamic names no input: {name!r}; the inputs are {', '.join(inputs)}")
        value = program.inputs[inputs[name]]
        shape = list(value.shape)
        for axis in axes:
            if not -len(shape) <= axis < len(shape):
                raise ArgumentError(f"dynamic axis {axis} of {name!r} is out of range, its shape is {value.shape}")
            if not isinstance(shape[axis], str):
                opened.add(shape[axis])
                shape[axis] = f"{name}_{axis % len(shape)}"
        program.inputs[inputs[name]] = Value(name, value.dtype, tuple(shape))
    # Sizes of the outputs follow from those of the inputs now: what the file says of them is out of date.
    for index, value in enumerate(program.outputs):
        shape = [
            f"{value.name}_{axis}" if isinstance(n, int) and (n != 1 or 1 in opened) else n
            for axis, n in enumerate(value.shape)
        ]
        program.outputs[index] = Value(value.name, value.dtype, tuple(shape))
