"""Validate: whether pyclattn runs a program, before anything is written."""

from __future__ import annotations

from pyclattn.errors import ModelFormatError, PyclattnError, UnsupportedOpError
from pyclattn.graph.ops import TABLE
from pyclattn.graph.program import Program, walk

# More nodes than this do not help to find the place.
NAMED = 3


def validate(program: Program, where: str = "model") -> None:
    """Raise one error for everything in a program that pyclattn does not run.

    Parameters
    ----------
    program : Program
    where : str
        The file, for the message.

    Raises
    ------
    UnsupportedOpError
        Listing all unknown operators at once, each with the nodes that use it.
    ModelFormatError
        If operators do not fit together: a value without a maker, a name made twice.

    Examples
    --------
    >>> from pyclattn.graph.program import Op
    >>> validate(Program([], [], [Op("StringSplit", (), ("y",), {}, "node_1")]), "m.onnx")
    Traceback (most recent call last):
    pyclattn.errors.UnsupportedOpError: m.onnx: 1 operator that pyclattn does not run: StringSplit (at 'node_1')
    """
    missing: dict[str, list[str]] = {}
    for op in walk(program):
        if op.kind not in TABLE:
            missing.setdefault(op.kind, []).append(op.name or (op.outputs[0] if op.outputs else ""))
    if missing:
        parts = [f"{kind} (at {_nodes(names)})" for kind, names in sorted(missing.items())]
        plural = "s" if len(parts) > 1 else ""
        raise UnsupportedOpError(
            f"{where}: {len(parts)} operator{plural} that pyclattn does not run: {', '.join(parts)}"
        )
    try:
        program.validate()
    except PyclattnError as error:
        raise ModelFormatError(f"{where}: {error}") from error


def _nodes(names: list[str]) -> str:
    text = ", ".join(map(repr, names[:NAMED]))
    return f"{text} and {len(names) - NAMED} more" if len(names) > NAMED else text
