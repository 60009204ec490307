"""Padding by its role: the key padding masks of self-attentions, whatever the inputs they come from are called."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pyclattn.graph.identity import ATTENTION
from pyclattn.graph.program import Program, Value, free_names, nested
from pyclattn.model import Model


def padded(program: Program, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The key padding masks of the self-attentions for these inputs: (B, S) bool, True = padding.

    Parameters
    ----------
    program : Program
        Converted, so that its attentions are operators.
    feeds : mapping of str to array
        Inputs by name; more than are needed may be there.

    Examples
    --------
    >>> from pyclattn.graph.program import Op
    >>> ops = [Op("Not", ("valid",), ("padding",)), Op(ATTENTION, (*"qkv", "", "padding"), ("y",), {"is_self": True})]
    >>> padded(Program([Value("valid", "bool", ("b", "s"))], [], ops), {"valid": np.array([[True, True, False]])})
    [array([[False, False,  True]])]
    """
    part = _making_padding(program)
    model = Model(part, attention="exact", n_threads=1)
    return list(model(**{value.name: feeds[value.name] for value in part.inputs}).values()) if part.outputs else []


def masks(program: Program, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The inputs of (B, S) that say what is padding, each with the number that stands for a token: 1, or 0.

    Found by trying: filled with one of them an input makes more padding than filled with the other.
    """
    found = {}
    for value in _making_padding(program).inputs:
        if len(value.shape) == 2:
            filled = (np.full_like(feeds[value.name], number) for number in (0, 1))
            n_zeros, n_ones = (sum(map(np.count_nonzero, padded(program, {**feeds, value.name: a}))) for a in filled)
            if n_zeros != n_ones:
                found[value.name] = int(n_ones < n_zeros)
    return found


def _making_padding(program: Program) -> Program:
    """The part of a program that makes the key padding masks of its self-attentions: they are its outputs."""
    attentions = [op for op in program.ops if op.kind == ATTENTION and op.attributes.get("is_self")]
    wanted = {op.inputs[4] for op in attentions if len(op.inputs) > 4} - {""}
    needed, ops = set(wanted), []
    for op in reversed(program.ops):
        if needed.intersection(op.outputs):
            needed.update(op.inputs, *(free_names(inner) for inner in nested(op)))
            ops.append(op)
    inputs = [value for value in program.inputs if value.name in needed]
    outputs = [Value(name, "bool", ("...",)) for name in sorted(wanted)]
    return Program(inputs, outputs, ops[::-1], {n: array for n, array in program.constants.items() if n in needed})
