"""From a program and the shapes of its inputs to a plan: what runs, where each value lies, how much memory it takes.

Operators are built one after the other with the specs of their inputs. What is known without running (shapes and all
that is computed from them) is computed here, once. Views cost nothing. Every other value has a buffer in one arena;
an operator that may, overwrites an input that nobody needs any more. An operator whose shapes depend on data is left
for the run, with all that follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pyclattn.errors import ArgumentError, DTypeError, PyclattnError, ShapeError
from pyclattn.graph.memory import Buffer, place
from pyclattn.graph.ops.registry import builder
from pyclattn.graph.program import Op, describe
from pyclattn.graph.spec import Kernel, Node, Settings, Spec, Unknown
from pyclattn.graph.weights import made_bytes, pack, pack_stored

# Values up to this size that depend on shapes alone are computed once per plan and kept with it.
FOLD_BYTES = 1 << 20
# Where weights are prepared, so are constants up to this many times what they are made from: int8 becomes float32.
FOLD_GROWTH = 4


@dataclass
class Step:
    """One operator of a plan; ``kernel`` is None if it can only be built in the run."""

    op: Op
    inputs: list[str | None]
    kernel: Kernel | None
    scratch: Buffer | None = None


@dataclass
class Plan:
    """Everything about a run that follows from the input shapes."""

    inputs: dict[str, Spec]
    specs: dict[str, Spec | None]
    steps: list[Step]
    places: dict[str, Buffer]  # values that own a buffer or took one over
    outputs: list[str]
    dropped: dict[int, list[str]] = field(default_factory=dict)  # made in the run, not needed after step i
    arena: int = 0
    transient: int = 0
    folded: int = 0  # bytes of values computed with the plan

    @property
    def is_static(self) -> bool:
        """Whether all shapes, and so the memory, are known."""
        return all(step.kernel is not None for step in self.steps)

    @property
    def output_bytes(self) -> int:
        return sum(s.nbytes for s in (self.specs[n] for n in self.outputs) if s is not None)

    @property
    def peak(self) -> int:
        """Bytes of a run, without the weights and the caller's inputs."""
        return self.arena + self.transient + self.folded + self.output_bytes


def located(error: Exception, where: str) -> Exception:
    """The same error with the place it came from; NumPy's own complaints become ShapeError."""
    if isinstance(error, PyclattnError):
        try:
            return type(error)(f"{where}: {error}")
        except TypeError:
            return error
    if isinstance(error, MemoryError):
        return MemoryError(f"{where}: {error}")
    kind = DTypeError if isinstance(error, TypeError) else ShapeError
    return kind(f"{where}: {error}")


def build(op: Op, specs: list[Spec | bool | None], settings: Settings) -> Kernel:
    """An operator's kernel, errors with its name."""
    try:
        return builder(op.kind)(Node(op, specs, settings))
    except Unknown:
        raise
    except (PyclattnError, ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError,
            ZeroDivisionError) as error:  # fmt: skip
        raise located(error, describe(op)) from error


def allocate(specs: list[Spec]) -> list[np.ndarray]:
    """New arrays of given specs."""
    return [np.empty(s.shape, s.dtype) for s in specs]


def evaluate(kernel: Kernel, ins: list[np.ndarray | None]) -> list[np.ndarray]:
    """Run a kernel at once, outside any plan."""
    if kernel.view is not None:
        return as_list(kernel.view(ins))
    if kernel.bind is None:
        return [s.value for s in kernel.outputs]
    outs = allocate(kernel.outputs)
    scratch = np.empty(kernel.scratch, np.uint8) if kernel.scratch else None
    with np.errstate(all="ignore"):
        kernel.bind(ins, outs, scratch)()
    return outs


def as_list(result) -> list[np.ndarray]:
    return list(result) if isinstance(result, (list, tuple)) else [result]


class Planner:
    """Makes plans of one program.

    Parameters
    ----------
    ops : list of Op
    extra : list of tuple of str
        For each op, names beside its inputs that it reads (outer names in the bodies of If, Loop and Scan).
    constants : dict of str to ndarray
    outputs : list of str
    settings : Settings
    """

    def __init__(self, ops, extra, constants, outputs, settings):
        self.ops, self.extra, self.constants, self.outputs = ops, extra, constants, outputs
        self.settings = settings
        self.constant_specs = {name: Spec.of(array, value=True) for name, array in constants.items()}
        precision = settings.precision if settings.prepares else None
        uses = pack_stored(self.constant_specs, list(zip(ops, extra)), outputs, precision)
        self.ops, self.extra = [op for op, _ in uses], [names for _, names in uses]
        self._fold_constants()
        if settings.prepares:
            pack(self.constant_specs, list(zip(self.ops, self.extra)), outputs, settings.precision)
        self.folded = made_bytes(self.constant_specs, constants.values())

    def _fold_constants(self) -> None:
        """Compute what depends on constants alone once for all plans, unless it takes too much memory."""
        kept, folded = [], set[str]()
        # a chain of operators on constants would otherwise fill any memory
        room = FOLD_GROWTH * sum(s.nbytes for s in self.constant_specs.values()) if self.settings.prepares else 0
        for op, extra in zip(self.ops, self.extra):
            names = [n or None for n in (*op.inputs, *extra)]
            given = [False if n is None else self.constant_specs.get(n) for n in names]
            alone = Plan({}, {}, [], {}, [])
            if all(s is not None for s in given):
                most = min(room, FOLD_GROWTH * sum(s.nbytes for s in given if isinstance(s, Spec)))
                try:
                    self._take(alone, op, names, given, build(op, given, self.settings), max(FOLD_BYTES, most))
                except (Unknown, PyclattnError):
                    alone.steps.clear()  # the plan meets it again and says what is wrong
                    alone.specs.clear()
            if alone.steps or not alone.specs:
                kept.append((op, extra))
            else:
                found = {n: s for n, s in alone.specs.items() if s is not None}
                self.constant_specs.update(found)
                folded.update(found)
                room -= alone.folded
        self.ops, self.extra = [op for op, _ in kept], [extra for _, extra in kept]
        used = {n for op, extra in kept for n in (*op.inputs, *extra)}.union(self.outputs)
        for name in folded - used:
            del self.constant_specs[name]

    def plan(self, inputs: dict[str, Spec], settings: Settings | None = None) -> Plan:
        """The plan for inputs of these shapes; a spec that has a value is taken as known."""
        settings = settings or self.settings
        specs: dict[str, Spec | None] = {**self.constant_specs, **inputs}
        plan = Plan(inputs, specs, [], {}, self.outputs, folded=self.folded)
        for op, extra in zip(self.ops, self.extra):
            names = [n or None for n in (*op.inputs, *extra)]
            given = [False if n is None else specs[n] for n in names]
            try:
                kernel = build(op, given, settings)
            except Unknown:
                kernel = None
            self._take(plan, op, names, given, kernel)
        self._lay_out(plan)
        return plan

    def _take(self, plan: Plan, op: Op, names, given, kernel: Kernel | None, largest: int = FOLD_BYTES) -> None:
        """Add one operator to the plan, or compute it if all is known and no larger than ``largest``."""
        if kernel is None:
            plan.specs.update((n, None) for n in op.outputs if n)
            plan.steps.append(Step(op, names, None))
            return
        if kernel.bind is None and kernel.view is None:
            results = [s.value for s in kernel.outputs]
        elif all(s is False or s.value is not None for s in given) and (
            kernel.view is not None or sum(s.nbytes for s in kernel.outputs) <= largest
        ):
            try:
                results = evaluate(kernel, [None if s is False else s.value for s in given])
            except (PyclattnError, ValueError, TypeError, IndexError) as error:
                raise located(error, describe(op)) from error
            if kernel.view is None:
                plan.folded += sum(a.nbytes for a in results)
        else:
            for name, spec in zip(op.outputs, kernel.outputs):
                if name:
                    plan.specs[name] = spec
            plan.steps.append(Step(op, names, kernel))
            return
        for name, array in zip(op.outputs, results):
            if name:
                plan.specs[name] = Spec.of(array, value=True)

    def _lay_out(self, plan: Plan) -> None:
        """Find when each buffer is needed, let operators overwrite where they may, and place all in the arena."""
        end = len(plan.steps)
        owner: dict[str, str] = {n: n for n, s in plan.inputs.items() if s.value is None}  # value -> whose buffer
        first: dict[str, int] = dict.fromkeys(owner, -1)
        last: dict[str, int] = dict.fromkeys(owner, -1)
        made: dict[str, int] = {}  # values of the run itself: step of the last use
        for i, step in enumerate(plan.steps):
            for name in step.inputs:
                if name in owner:
                    last[owner[name]] = i
                elif name in made:
                    made[name] = i
            outputs = [n for n in step.op.outputs if n]
            if step.kernel is None:
                made.update((n, i) for n in outputs)
            elif step.kernel.view is not None:
                source = step.inputs[0]
                if source in owner:
                    owner.update((n, owner[source]) for n in outputs)
            else:
                for n in outputs:
                    owner[n], first[n], last[n] = n, i, i
        for name in plan.outputs:
            if name in owner:
                last[owner[name]] = end
            made.pop(name, None)
        for name, i in made.items():
            plan.dropped.setdefault(i, []).append(name)

        buffers: dict[str, Buffer] = {}
        for name, spec in plan.inputs.items():
            if spec.value is None:
                buffers[name] = Buffer(spec.nbytes, -1, last[name])
        scratches: list[Buffer] = []
        for i, step in enumerate(plan.steps):
            if step.kernel is None or step.kernel.view is not None:
                continue
            for j, name in enumerate(step.op.outputs):
                if not name or j >= len(step.kernel.outputs):
                    continue
                taken = self._overwritten(plan, step, i, owner, buffers, last) if j == 0 else None
                if taken is None:
                    buffers[name] = Buffer(step.kernel.outputs[j].nbytes, i, last[name])
                else:
                    buffers[name] = buffers[taken]
                    buffers[name].last = last[name]
            if step.kernel.scratch:
                step.scratch = Buffer(step.kernel.scratch, i, i)
                scratches.append(step.scratch)
            plan.transient = max(plan.transient, step.kernel.transient)
        plan.places = buffers
        unique = {id(b): b for b in buffers.values()}
        plan.arena = place([*unique.values(), *scratches])

    def _overwritten(self, plan, step, i, owner, buffers, last) -> str | None:
        """The owner of the buffer that output 0 may take over, or None."""
        out = step.kernel.outputs[0]
        for j in step.kernel.inplace:
            name = step.inputs[j]
            spec = plan.specs.get(name)
            whose = owner.get(name)
            if whose is None or spec is None or spec.shape != out.shape or spec.dtype != out.dtype:
                continue
            buffer = buffers[whose]
            if spec.strides is not None or buffer.size != out.nbytes or buffer.last != i:
                continue
            others = (n for k, n in enumerate(step.inputs) if k != j and n is not None and n != name)
            if any(owner.get(n) == whose or buffers.get(owner.get(n)) is buffer for n in others):
                continue
            return whose
        return None


def check_inputs(values, feeds: dict[str, np.ndarray]) -> None:
    """Raise unless ``feeds`` has exactly the arrays that ``values`` describe."""
    wanted = [v.name for v in values]
    missing = [n for n in wanted if n not in feeds]
    unknown = [str(n) for n in feeds if n not in wanted]
    if missing or unknown:
        parts = [f"missing {', '.join(missing)}"] * bool(missing) + [f"unknown {', '.join(unknown)}"] * bool(unknown)
        raise ArgumentError(f"inputs: {'; '.join(parts)}; the model takes {', '.join(wanted)}")
    for value in values:
        array = feeds[value.name]
        if value.dtype and array.dtype != value.dtype:
            raise DTypeError(f"input {value.name!r} must be {value.dtype}, got {array.dtype}")
        check_shape(value, array.shape)


def fits(value, shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape is what ``value`` says."""
    if "..." in value.shape:
        return True
    return len(shape) == len(value.shape) and all(isinstance(w, str) or w == n for w, n in zip(value.shape, shape))


def check_shape(value, shape: tuple[int, ...]) -> None:
    """Raise unless an array of this shape can be the input ``value``."""
    if not fits(value, shape):
        raise ShapeError(f"input {value.name!r} must have shape {tuple(value.shape)}, got {tuple(shape)}")


def different_lengths(values, shapes: dict[str, tuple[int, ...]]) -> str:
    """A remark on inputs whose dimensions share a name but not a length; empty if there are none.

    Such models may still run (ONNX does not forbid it), so it is said only when a run has failed.
    """
    found: dict[str, dict[int, str]] = {}
    for value in values:
        for name, n in zip(value.shape, shapes[value.name]):
            if isinstance(name, str) and name != "...":
                found.setdefault(name, {}).setdefault(n, value.name)
    parts = [
        f"dimension {name!r} is " + " and ".join(f"{n} in {who!r}" for n, who in lengths.items())
        for name, lengths in found.items()
        if len(lengths) > 1
    ]
    return f" ({'; '.join(parts)})" if parts else ""
