"""A converted model as data: operators, the values between them, and constants.

The operators are ONNX's, in the meaning of one canonical opset (importers translate older ones), plus the fused kinds
that `pyclattn.graph.passes` makes. A Program knows nothing of files, threads or memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pyclattn.errors import ModelFormatError

# Far above real models (the deepest nest two programs, the longest have about 100,000 operators); a file beyond
# these was made to exhaust us.
MAX_DEPTH = 16
MAX_OPS = 2_000_000
MAX_NAME = 10_000


@dataclass(frozen=True)
class Value:
    """A named input or output. A dimension is a number, or a name where it is known only at run time."""

    name: str
    dtype: str  # NumPy's name: "float32", "int64", "bool"
    shape: tuple[int | str, ...]


@dataclass
class Op:
    """One operator. An input that is left out is the empty name, as in ONNX."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict = field(default_factory=dict)
    name: str = ""  # the source's node name, for messages


@dataclass
class Program:
    """Operators in an order in which they can run."""

    inputs: list[Value]
    outputs: list[Value]
    ops: list[Op]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)

    def validate(self) -> None:
        """Check that every value is defined once and before it is used, here and in nested programs.

        Raises
        ------
        ModelFormatError
            Naming the operator and the value.

        Examples
        --------
        >>> x = Value("x", "float32", ("n",))
        >>> Program([x], [x], [Op("Relu", ("y",), ("z",), name="relu")]).validate()
        Traceback (most recent call last):
        ...
        pyclattn.errors.ModelFormatError: node 'relu' (Relu): input 'y' is not defined before it
        """
        _Checker().check(self, frozenset(), 0)


def fresh_name(names: set[str], like: str) -> str:
    """A name that is not among ``names`` yet, and now is."""
    name, count = like, 0
    while name in names:
        count += 1
        name = f"{like}_{count}"
    names.add(name)
    return name


def nested(op: Op) -> list[Program]:
    """Programs in an operator's attributes: the branches of If, the bodies of Loop and Scan."""
    return [a for a in op.attributes.values() if isinstance(a, Program)]


def walk(program: Program) -> Iterator[Op]:
    """All operators, those of nested programs after the one they belong to."""
    for op in program.ops:
        yield op
        for inner in nested(op):
            yield from walk(inner)


def free_names(program: Program) -> list[str]:
    """Names a nested program reads from around it."""
    defined = {v.name for v in program.inputs} | set(program.constants)
    free: dict[str, None] = {}
    for op in program.ops:
        free.update((n, None) for n in op.inputs if n and n not in defined)
        for inner in nested(op):
            free.update((n, None) for n in free_names(inner) if n not in defined)
        defined.update(op.outputs)
    free.update((v.name, None) for v in program.outputs if v.name not in defined)
    return list(free)


def describe(op: Op) -> str:
    """An operator's name for messages."""
    return f"node {op.name or (op.outputs[0] if op.outputs else '')!r} ({op.kind})"


class _Checker:
    """Walks a program and counts."""

    def __init__(self) -> None:
        self.n_ops = 0

    def check(self, program: Program, outer: frozenset[str], depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ModelFormatError(f"programs are nested more than {MAX_DEPTH} deep")
        own: set[str] = set()
        for name in [*(v.name for v in program.inputs), *program.constants]:
            self._define(name, own, "input or constant")
        for op in program.ops:
            self.n_ops += 1
            if self.n_ops > MAX_OPS:
                raise ModelFormatError(f"more than {MAX_OPS} operators")
            for name in op.inputs:
                if name and name not in own and name not in outer:
                    raise ModelFormatError(f"{describe(op)}: input {name!r} is not defined before it")
            for inner in nested(op):
                self.check(inner, outer | own, depth + 1)
            for name in op.outputs:
                if name:
                    self._define(name, own, describe(op))
        for value in program.outputs:
            if value.name not in own and value.name not in outer:
                raise ModelFormatError(f"output {value.name!r} is made by no operator")

    @staticmethod
    def _define(name: str, own: set[str], where: str) -> None:
        if not name or len(name) > MAX_NAME:
            raise ModelFormatError(f"{where}: a name must have 1 to {MAX_NAME} characters, got {len(name)}")
        if name in own:
            raise ModelFormatError(f"{where}: {name!r} is defined twice")
        own.add(name)
