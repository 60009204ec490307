"""Padding by its role: the key padding masks of self-attentions, whatever the inputs they come from are called."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pyclattn.graph.executor import Executor
from pyclattn.graph.identity import ATTENTION
from pyclattn.graph.program import Program, Value, free_names, nested

# Operators that pass indices on to a table.
PASSING = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")


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
    return _run(_making_padding(program), feeds)


def masks(program: Program, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The inputs of (B, S) that say what is padding, each with the number that stands for a token: 1, or 0.

    Found by trying: filled with one of them an input makes more padding than filled with the other. What only other
    operators than attention read is a mask if it is called so, with 1 for a token. Numbers of words are no mask, though
    one may be that of padding.

    Parameters
    ----------
    program : Program
    feeds : mapping of str to array
        Inputs that fit, of any content.

    Examples
    --------
    >>> from pyclattn.graph.program import Op
    >>> ops = [Op(ATTENTION, (*"qkv", "", "absent"), ("y",), {"is_self": True})]
    >>> masks(Program([Value("absent", "bool", ("b", "s"))], [], ops), {"absent": np.array([[True, True, False]])})
    {'absent': 0}
    """
    making, words = _making_padding(program), _looked_up(program)
    possible = [value for value in program.inputs if len(value.shape) == 2 and value.name not in words]
    found = {value.name: 1 for value in possible if "mask" in value.name}
    for value in possible:
        if value in making.inputs:
            filled = (np.full_like(feeds[value.name], number) for number in (0, 1))
            n_zeros, n_ones = (sum(map(np.count_nonzero, _run(making, {**feeds, value.name: a}))) for a in filled)
            if n_zeros != n_ones:
                found[value.name] = int(n_ones < n_zeros)
    return found


def _run(program: Program, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs, of which there may be none."""
    needed = {value.name: feeds[value.name] for value in program.inputs}
    return list(Executor(program)(needed).values()) if program.outputs else []


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
    constants = {name: array for name, array in program.constants.items() if name in needed}
    return Program(inputs, outputs, ops[::-1], constants)


def _looked_up(program: Program) -> set[str]:
    """Inputs whose numbers are rows of a table."""
    sources, found = {value.name: value.name for value in program.inputs}, set()
    for op in program.ops:
        if op.kind in PASSING and op.inputs[0] in sources:
            sources[op.outputs[0]] = sources[op.inputs[0]]
        if op.kind == "Gather" and op.inputs[1] in sources:
            found.add(sources[op.inputs[1]])
    return found
