"""A program opened for rewriting: who makes a value, who uses it, and edits that keep both right.

New operators may be appended anywhere; `Editor.finish` drops what nothing needs and puts the rest in an order in which
it can run. A rewrite takes old operators out and emits new ones that make the *same* output names, so users of a value
need not be told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from pyclattn.graph.program import Op, Program, fresh_name

# Bytes of constants that folding may make in any program, besides four times its own.
FOLD_ROOM = 32 << 20


def bodies(op: Op) -> list[Program]:
    """The programs inside an operator: branches of If, bodies of Loop and Scan."""
    return [value for value in op.attributes.values() if isinstance(value, Program)]


def free_names(program: Program) -> set[str]:
    """Names a body reads from the programs around it."""
    own = {value.name for value in program.inputs} | set(program.constants)
    used: set[str] = {value.name for value in program.outputs}
    for op in program.ops:
        own.update(op.outputs)
        used.update(op.inputs)
        for body in bodies(op):
            used |= free_names(body)
    return used - own - {""}


def all_names(program: Program) -> set[str]:
    """Every name in a program and its bodies."""
    names = {value.name for value in [*program.inputs, *program.outputs]} | set(program.constants)
    for op in program.ops:
        names.update(op.inputs)
        names.update(op.outputs)
        for body in bodies(op):
            names |= all_names(body)
    return names


class Editor:
    """Indices over a program, kept right through edits.

    Parameters
    ----------
    program : Program
        Edited in place.
    outer : Editor, optional
        The program around a body; its constants are visible.
    """

    def __init__(self, program: Program, outer: Editor | None = None):
        self.program = program
        self.outer = outer
        self.names: set[str] = outer.names if outer else all_names(program)
        self.outputs = {value.name for value in program.outputs}
        self.inputs = {value.name for value in program.inputs}
        self.changed = False
        # Bytes folding may still make: chains of operators on constants would otherwise fill any memory.
        self.fold_room = FOLD_ROOM + 4 * sum(a.nbytes for a in program.constants.values() if a.dtype != object)
        self._index()

    def _index(self) -> None:
        self.producers: dict[str, Op] = {}
        self._users: dict[str, list[Op]] = defaultdict(list)
        for op in self.program.ops:
            self._enter(op)

    def _enter(self, op: Op) -> None:
        for name in op.outputs:
            if name:
                self.producers[name] = op
        for name in self.reads(op):
            self._users[name].append(op)

    @staticmethod
    def reads(op: Op) -> set[str]:
        """Names an operator needs, those its bodies read included."""
        names = set(op.inputs) - {""}
        for body in bodies(op):
            names |= free_names(body)
        return names

    # -- looking ---------------------------------------------------------------------------------------------------

    # What may be missing is typed Any: a pattern asks first, in ways a type checker does not follow.

    def producer(self, name: str, *kinds: str) -> Any:
        """The operator that makes a value, if it is of one of ``kinds`` (of any, if none are named); else None."""
        op = self.producers.get(name)
        return op if op is not None and (not kinds or op.kind in kinds) else None

    def users(self, name: str) -> list[Op]:
        return self._users.get(name, [])

    def only_user(self, name: str, *kinds: str) -> Op | None:
        """The one operator that uses a value, if there is one and nothing else needs the value."""
        users = self.users(name)
        if len(users) != 1 or name in self.outputs or (kinds and users[0].kind not in kinds):
            return None
        return users[0]

    def constant(self, name: str) -> Any:
        """The array of a constant of this program or one around it; None where it is none."""
        if name in self.program.constants:
            return self.program.constants[name]
        if name in self.producers or name in self.inputs:
            return None
        return self.outer.constant(name) if self.outer else None

    def scalar(self, name: str) -> float | None:
        """The value of a constant with a single element."""
        array = self.constant(name)
        if array is None or array.size != 1 or array.dtype.kind not in "fiub":
            return None
        return float(array.reshape(-1)[0])

    # -- changing --------------------------------------------------------------------------------------------------

    def fresh(self, like: str) -> str:
        return fresh_name(self.names, like)

    def add_constant(self, array: np.ndarray, like: str) -> str:
        name = self.fresh(like)
        self.program.constants[name] = np.asarray(array)
        return name

    def emit(
        self, kind: str, inputs: Iterable[str], outputs: Iterable[str] | str, attributes: dict | None = None, name=""
    ) -> str:
        """Append an operator. ``outputs`` as text is a hint: a new name like it is made. Returns the first output."""
        inputs = list(inputs)
        while inputs and not inputs[-1]:
            inputs.pop()
        names = (self.fresh(outputs),) if isinstance(outputs, str) else tuple(outputs)
        op = Op(kind, tuple(inputs), names, dict(attributes or {}), name)
        self.program.ops.append(op)
        self._enter(op)
        self.changed = True
        return names[0]

    def remove(self, *ops: Op) -> None:
        """Take operators out; their outputs must get a new maker or lose their users."""
        gone = {id(op) for op in ops}
        self.program.ops = [op for op in self.program.ops if id(op) not in gone]
        for op in ops:
            for name in op.outputs:
                if self.producers.get(name) is op:
                    del self.producers[name]
            for name in self.reads(op):
                self._users[name] = [user for user in self._users[name] if user is not op]
        self.changed = True

    def set_inputs(self, op: Op, inputs: Iterable[str]) -> None:
        for name in self.reads(op):
            self._users[name] = [user for user in self._users[name] if user is not op]
        op.inputs = tuple(inputs)
        for name in self.reads(op):
            self._users[name].append(op)
        self.changed = True

    def replace(self, old: str, new: str) -> bool:
        """Let every user of ``old`` take ``new`` instead; False where an output's name forbids it."""
        if old in self.outputs:
            return False
        for op in list(self.users(old)):
            for body in bodies(op):
                rename_free(body, old, new)
            self.set_inputs(op, [new if name == old else name for name in op.inputs])
        self._users[old] = []
        return True

    def define(self, op: Op, arrays: list[np.ndarray]) -> None:
        """Put constants in an operator's place."""
        self.remove(op)
        for name, array in zip(op.outputs, arrays):
            if name:
                self.program.constants[name] = array
                self.changed = True

    def finish(self) -> bool:
        """Drop what nothing needs, restore an order that runs; returns whether anything was changed since the start."""
        needed: list[Op] = []
        seen: dict[int, bool] = {}  # False: on the way, True: placed

        def place(root: Op) -> None:
            stack = [(root, False)]
            while stack:
                op, ready = stack.pop()
                if ready:
                    if not seen[id(op)]:
                        seen[id(op)] = True
                        needed.append(op)
                    continue
                if id(op) in seen:
                    continue
                seen[id(op)] = False
                stack.append((op, True))
                for name in sorted(self.reads(op), reverse=True):
                    maker = self.producers.get(name)
                    if maker is not None and id(maker) not in seen:
                        stack.append((maker, False))

        todo = [self.producers[name] for name in self.outputs if name in self.producers]
        live = {id(op) for op in todo}
        while todo:
            for name in self.reads(todo.pop()):
                maker = self.producers.get(name)
                if maker is not None and id(maker) not in live:
                    live.add(id(maker))
                    todo.append(maker)
        for op in self.program.ops:
            if id(op) in live:
                place(op)
        dropped = len(needed) != len(self.program.ops)
        self.program.ops = needed
        used = set(self.outputs)
        for op in needed:
            used |= self.reads(op)
        self.program.constants = {k: v for k, v in self.program.constants.items() if k in used}
        self._index()
        changed, self.changed = self.changed or dropped, False
        return changed


def rename_free(program: Program, old: str, new: str) -> None:
    """Rename a name that a body reads from outside."""
    if old not in free_names(program):
        return
    for op in program.ops:
        op.inputs = tuple(new if name == old else name for name in op.inputs)
        for body in bodies(op):
            rename_free(body, old, new)
    if any(value.name == old for value in program.outputs):
        # A body's output keeps its name; the outer value reaches it through an Identity.
        program.ops.append(Op("Identity", (new,), (old,)))


def for_each_body(program: Program, function: Callable[[Program], None]) -> None:
    """Call ``function`` on every body, outermost first."""
    for op in program.ops:
        for body in bodies(op):
            function(body)
            for_each_body(body, function)
