"""Weights of a program stored in fewer bits: which can be, and the program that reads them so.

A weight ``w`` becomes the constants ``w`` (int8, float16, or bfloat16 as uint16) and, for int8, ``w.scale``, and an
operator `DEQUANTIZE` that means float32 again. Where its result is a dense layer's weight it does not run:
`graph.weights` packs what is stored, and a layer packed as int8 rounds its input to 8 bits too. Of an embedding the
rows are gathered as they are stored.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from pyclattn.errors import ArgumentError
from pyclattn.functional._check import one_of
from pyclattn.functional.dense_int8 import LARGEST_DEPTH, quantise_weight
from pyclattn.graph.identity import derived
from pyclattn.graph.ops.stored import DEQUANTIZE
from pyclattn.graph.program import Op, Program, fresh_name, nested, walk
from pyclattn.graph.program import free_names as free_names_of
from pyclattn.graph.weights import DENSE, widened

WEIGHTS = ("int8", "fp16", "bf16")
# A smaller weight is not worth an operator: 64 x 64 float32 are 16 kB.
LEAST = 1 << 12
# Halves round by .03 %, bfloat16 by .2 % of a number; more is lost where numbers are near or below their smallest.
MOST_LOST, TINY = 0.01, float(np.finfo(np.float64).tiny)
LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Layer:
    """A weight that may be stored in fewer bits.

    Attributes
    ----------
    name : str
        Of the constant.
    kind : str
        "dense" or "embedding".
    used_by : str
        The first operator that reads it.
    n_bytes : int
        As float32.
    """

    name: str
    kind: str
    used_by: str
    n_bytes: int


def layers(program: Program) -> list[Layer]:
    """Weights that only dense layers, or only look-ups of rows, read; in the order they are read."""
    users: dict[str, list[tuple[Op, int]]] = {name: [] for name in program.constants}
    for op in program.ops:
        for i, name in enumerate(op.inputs):
            if name in users:
                users[name].append((op, i))
    others = {v.name for v in program.outputs}
    others.update(name for op in program.ops for inner in nested(op) for name in free_names_of(inner))
    found, order = [], {id(op): i for i, op in enumerate(program.ops)}
    for name, array in program.constants.items():
        kind = _kind(users[name]) if name not in others else None
        if kind and array.ndim == 2 and array.dtype == np.float32 and array.size >= LEAST:
            first = users[name][0][0]
            layer = Layer(name, kind, first.name or next(iter(first.outputs), ""), array.nbytes)
            found.append((order[id(first)], layer))
    return [layer for _, layer in sorted(found, key=lambda pair: pair[0])]


def _kind(uses: list[tuple[Op, int]]) -> str | None:
    if uses and all(op.kind in DENSE and i == 1 for op, i in uses):
        return "dense"
    if uses and all(op.kind == "Gather" and i == 0 and op.attributes.get("axis", 0) == 0 for op, i in uses):
        return "embedding"
    return None


def stored(layer: Layer, weight: np.ndarray, weights: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(what is stored, its scale or None) of one weight.

    Raises
    ------
    ArgumentError
        If the weight cannot be held well, saying why.
    """
    if weights == "int8":
        if layer.kind == "embedding":  # a scale for each row
            codes, scale = quantise_weight(weight.T)
            return np.ascontiguousarray(codes.T), scale[:, None]
        if len(weight) > LARGEST_DEPTH:
            raise ArgumentError(f"int8 cannot hold the weight: its depth is {len(weight)}, at most {LARGEST_DEPTH}")
        return quantise_weight(weight)
    if not np.isfinite(weight).all():
        raise ArgumentError(f"{weights} does not hold the weight: it has a NaN or an infinity")
    if weights == "fp16" and np.abs(weight).max(initial=0) > LARGEST_HALF:
        raise ArgumentError(f"fp16 cannot hold the weight: it has a number beyond {LARGEST_HALF:.0f}")
    held = bfloat16_bits(weight) if weights == "bf16" else weight.astype(np.float16)
    lost = np.linalg.norm(weight - widened(held).astype(np.float64)) / max(
        np.linalg.norm(weight.astype(np.float64)), TINY
    )
    if lost > MOST_LOST:
        raise ArgumentError(f"{weights} cannot hold the weight: its numbers are so small that {lost:.0%} would be lost")
    return held, None


def bfloat16_bits(array: np.ndarray) -> np.ndarray:
    """Finite float32 numbers rounded to bfloat16, ties to even, as uint16.

    Examples
    --------
    >>> [hex(bits) for bits in bfloat16_bits(np.array([1, -2.5, 1.00390625], np.float32))]
    ['0x3f80', '0xc020', '0x3f80']
    """
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def bfloat16_names(program: Program) -> set[str]:
    """Constants of uint16 that are the bits of bfloat16, by how they are read."""
    halves = {name for name, array in program.constants.items() if array.dtype == np.uint16}
    rows = {op.outputs[0]: op.inputs[0] for op in program.ops if op.kind == "Gather" and op.outputs and op.inputs}
    read = [op.inputs[0] for op in program.ops if op.kind == DEQUANTIZE and op.inputs]
    return halves.intersection(rows.get(name, name) for name in read)


def quantise(program: Program, weights: str = "int8", keep: Collection[str] = ()) -> tuple[Program, dict[str, str]]:
    """A program whose weights are stored in fewer bits.

    Parameters
    ----------
    program : Program
        Optimised; left as it is.
    weights : str
        "int8", "fp16" or "bf16".
    keep : collection of str
        Names of constants that stay float32.

    Returns
    -------
    Program
        Its metadata tells the source's fingerprint: a plan for the source holds for it, too.
    dict of str to str
        Weights that stayed float32 because they cannot be held well, with the reason.

    Examples
    --------
    >>> from pyclattn.graph.program import Value
    >>> x, y = Value("x", "float32", ("n", 64)), Value("y", "float32", ("n", 64))
    >>> weight = np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32)
    >>> small, kept = quantise(Program([x], [y], [Op("MatMul", ("x", "w"), ("y",))], {"w": weight}))
    >>> [op.kind for op in small.ops], {name: str(array.dtype) for name, array in small.constants.items()}
    (['pyclattn:Dequantize', 'MatMul'], {'w': 'int8', 'w.scale': 'float32'})
    """
    one_of("weights", weights, WEIGHTS)
    edit, refused = _Edit(program), {}
    for layer in layers(program):
        if layer.name in keep:
            continue
        try:
            values, scale = stored(layer, program.constants[layer.name], weights)
        except ArgumentError as error:
            refused[layer.name] = str(error)
        else:
            edit.store(layer, values, scale)
    return edit.program(), refused


class _Edit:
    """A copy of a program whose constants are replaced one by one."""

    def __init__(self, program: Program):
        self.source = program
        self.constants = dict(program.constants)
        self.names = {v.name for v in program.inputs} | set(self.constants)
        self.names.update(name for op in walk(program) for name in op.outputs)
        self.widened: list[Op] = []
        self.renamed: dict[str, str] = {}
        self.gathered: dict[str, str | None] = {}

    def store(self, layer: Layer, values: np.ndarray, scale: np.ndarray | None) -> None:
        """Take a weight as stored, in place of float32."""
        self.constants[layer.name] = values
        scale_name = None
        if scale is not None:
            scale_name = fresh_name(self.names, f"{layer.name}.scale")
            self.constants[scale_name] = scale
        if layer.kind == "embedding":
            self.gathered[layer.name] = scale_name
            return
        wide = fresh_name(self.names, f"{layer.name}.float32")
        self.renamed[layer.name] = wide
        self.widened.append(Op(DEQUANTIZE, (layer.name, *([scale_name] if scale_name else [])), (wide,), {}, wide))

    def program(self) -> Program:
        """The program as edited."""
        ops = list(self.widened)
        for op in self.source.ops:
            if op.kind == "Gather" and op.inputs[0] in self.gathered:
                ops += self._lookup(op, self.gathered[op.inputs[0]])
            else:
                inputs = tuple(self.renamed.get(name, name) for name in op.inputs)
                ops.append(replace(op, inputs=inputs) if inputs != op.inputs else op)
        return derived(replace(self.source, ops=ops, constants=self.constants), self.source)

    def _lookup(self, op: Op, scale: str | None) -> list[Op]:
        """Rows gathered as they are stored, their scales beside them."""
        (out,), (table, index) = op.outputs, op.inputs
        rows = fresh_name(self.names, f"{out}.stored")
        made, inputs = [Op("Gather", (table, index), (rows,), {"axis": 0}, op.name)], [rows]
        if scale is not None:
            inputs.append(fresh_name(self.names, f"{out}.scale"))
            made.append(Op("Gather", (scale, index), (inputs[-1],), {"axis": 0}, op.name))
        return [*made, Op(DEQUANTIZE, tuple(inputs), (out,), {}, op.name)]
