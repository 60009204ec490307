"""Run a program: plans by input shapes, frames of bound calls, many callers at once.

A frame is an arena with every array of a plan laid out in it and every operator bound to its arrays, so that a run is
a list of calls without arguments. A frame serves one caller at a time; an idle one is kept for the next.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import perf_counter_ns
from typing import Any
from weakref import proxy

import numpy as np

from pyclattn._blas import single
from pyclattn.errors import (
    MemoryLimitError,
    ModelFormatError,
    ModelWarning,
    PyclattnError,
    ShapeError,
    UnsupportedOpError,
)
from pyclattn.graph.arena import Arena
from pyclattn.graph.ops import TABLE
from pyclattn.graph.passes.lower import lower
from pyclattn.graph.planner import (
    Plan,
    Planner,
    Step,
    as_list,
    build,
    check_inputs,
    different_lengths,
    evaluate,
    fits,
    located,
)
from pyclattn.graph.program import Program, describe, free_names, nested, walk
from pyclattn.graph.spec import Settings, Spec
from pyclattn.graph.weights import weight_bytes

# Plans kept, one for each set of input shapes; a plan of 1,000 operators takes about 1 MB.
N_PLANS = 32
# Idle arenas hold at most this; a service that once saw a long input does not keep its memory. One larger arena is lent
# to the system instead, which takes its pages when they are needed elsewhere.
IDLE_BYTES = 256 << 20
# The least scratch a blocked product works well with.
LEAST_BLOCK = 1 << 16


def kinds(program: Program) -> dict[str, list[str]]:
    """Operator kinds of a program and all within it, with the names of their nodes."""
    found: dict[str, list[str]] = {}
    for op in walk(program):
        found.setdefault(op.kind, []).append(op.name or next(iter(op.outputs), ""))
    return found


def require_supported(program: Program) -> None:
    """Raise UnsupportedOpError naming all operators that cannot run."""
    missing = {k: v for k, v in kinds(program).items() if k not in TABLE}
    if missing:
        listed = "; ".join(f"{k} ({len(v)}, first at node {v[0]!r})" for k, v in sorted(missing.items()))
        raise UnsupportedOpError(f"operators that pyclattn does not run: {listed}")


class Frame:
    """One arena, its arrays, and the calls bound to them."""

    def __init__(self, plan: Plan, settings: Settings):
        self.plan, self.settings = plan, settings
        self.arena = Arena(plan.arena, is_lendable=plan.arena > IDLE_BYTES)
        self.arrays: dict[str, Any] = {}  # None for a weight that is there packed only
        for name, spec in plan.specs.items():
            if spec is not None and (spec.value is not None or spec.packed is not None):
                self.arrays[name] = spec.value
        for name, spec in plan.inputs.items():
            if spec.value is None:
                self.arrays[name] = self._array(plan.places[name].offset, spec)
        self.calls: list[Callable[[], object]] = []
        self.steps: list[Step] = []
        for i, step in enumerate(plan.steps):
            self._add(i, step)

    def _array(self, offset: int, spec: Spec) -> np.ndarray:
        return np.ndarray(spec.shape, spec.dtype, self.arena.bytes, offset)

    def _add(self, i: int, step: Step) -> None:
        arrays, kernel = self.arrays, step.kernel
        if kernel is None:
            self.calls.append(self._in_the_run(i, step))
            self.steps.append(step)
            return
        ins = [None if n is None else arrays[n] for n in step.inputs]
        if kernel.view is not None:
            arrays.update(zip(step.op.outputs, as_list(kernel.view(ins))))
            return
        outs: list[np.ndarray | None] = []
        for j, spec in enumerate(kernel.outputs):
            name = step.op.outputs[j] if j < len(step.op.outputs) else ""
            if name:
                arrays[name] = self._array(self.plan.places[name].offset, spec)
            outs.append(arrays[name] if name else None)
        if not any(o is not None for o in outs):
            return
        if len(outs) and outs[0] is None:
            outs[0] = np.empty(kernel.outputs[0].shape, kernel.outputs[0].dtype)
        scratch = None
        if step.scratch is not None:
            scratch = self.arena.bytes[step.scratch.offset : step.scratch.offset + step.scratch.size]
        if kernel.bind is None:  # known results are taken by the planner
            return
        try:
            self.calls.append(kernel.bind(ins, outs, scratch))
        except (PyclattnError, ValueError, TypeError, IndexError) as error:
            raise located(error, describe(step.op)) from error
        self.steps.append(step)

    def _in_the_run(self, i: int, step: Step):
        """A call that builds an operator whose shapes only the data tell."""
        arrays, settings, drop = self.arrays, self.settings, self.plan.dropped.get(i, ())

        def run():
            ins = [None if n is None else arrays[n] for n in step.inputs]
            specs = [self._seen(n) for n in step.inputs]
            results = evaluate(build(step.op, specs, settings), ins)
            for name, result in zip(step.op.outputs, results):
                if name:  # a view of a buffer that others will use again is copied out of it
                    arrays[name] = result.copy() if np.may_share_memory(result, self.arena.bytes) else result
            for name in drop:
                arrays.pop(name, None)

        return run

    def _seen(self, name: str | None) -> Spec | bool:
        """What an operator built in the run is told of an input."""
        known = self.plan.specs.get(name) if name else None
        if name is None or (known is not None and known.packed is not None):
            return known or False
        return Spec.of(self.arrays[name], value=True)

    def run(self, profile: list | None = None) -> None:
        """Make all calls in order."""
        i = 0
        try:
            if profile is None:
                for i, call in enumerate(self.calls):  # noqa: B007  (the handler names the operator)
                    call()
            else:
                for i, call in enumerate(self.calls):
                    start = perf_counter_ns()
                    call()
                    profile.append((self.steps[i].op, start, perf_counter_ns()))
        except (PyclattnError, ValueError, TypeError, IndexError, MemoryError, OverflowError) as error:
            op = self.steps[i].op
            if describe(op) in str(error):
                raise
            raise located(error, describe(op)) from error


@dataclass
class _Entry:
    """A plan that is kept, and its idle frames."""

    plan: Plan
    settings: Settings
    frames: list[Frame] = field(default_factory=list)
    is_kept: bool = True


class Executor:
    """A program ready to run, safe to call from many threads.

    Parameters
    ----------
    program : Program
    settings : Settings, optional
        Threads, attention methods.
    max_memory : int, optional
        Bytes that a run may take beside the weights. With a limit weights are left as they are; without, those of
        dense layers are packed, and what is computed from constants alone (int8 weights as float32) is computed now.

    Raises
    ------
    UnsupportedOpError
        Listing all operators that pyclattn does not run.

    Examples
    --------
    >>> import numpy as np
    >>> from pyclattn.graph.program import Op, Program, Value
    >>> x, y = Value("x", "float32", ("n",)), Value("y", "float32", ("n",))
    >>> executor = Executor(Program([x], [y], [Op("Relu", ("x",), ("y",))]))
    >>> executor({"x": np.array([-1, 2], np.float32)})
    {'y': array([0., 2.], dtype=float32)}
    """

    def __init__(self, program: Program, settings: Settings | None = None, max_memory: int | None = None):
        require_supported(program)
        self.program = program
        self.outer = free_names(program)
        self.max_memory = max_memory
        self._inner: dict[int, Executor] = {}
        settings = settings or Settings()
        prepares = settings.prepares and max_memory is None
        # weakly: a model that is dropped is gone at once, without the collector of cycles
        itself = proxy(self)
        self.settings = replace(
            settings, programs=lambda program: itself._executor(program), free_names=free_names, prepares=prepares
        )
        self.ready = ready = lower(program) if prepares else program  # as it runs; plans have the shapes of its values
        extra = [tuple(n for p in nested(op) for n in free_names(p)) for op in ready.ops]
        self.outputs = [v.name for v in program.outputs]
        self.planner = Planner(ready.ops, extra, ready.constants, self.outputs, self.settings)
        self._plans: OrderedDict[tuple, _Entry] = OrderedDict()
        self._idle = 0  # bytes of arenas that wait for a caller
        self._lent: tuple[_Entry, Frame] | None = None  # the last one above IDLE_BYTES
        self._lock = threading.Lock()

    def _executor(self, program: Program) -> Executor:
        """The executor of a nested program, made once."""
        key = id(program)
        if key not in self._inner:
            self._inner[key] = Executor(program, self.settings)
        return self._inner[key]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all constants, one that has several names once."""
        return weight_bytes(self.program)

    def plan(self, inputs: dict[str, Spec]) -> Plan:
        """The plan for these input shapes, made at need; within ``max_memory``, or an error."""
        return self._entry(inputs).plan

    def _entry(self, inputs: dict[str, Spec]) -> _Entry:
        key = tuple((n, s.shape, s.dtype.char) for n, s in inputs.items())
        with self._lock:
            entry = self._plans.get(key)
            if entry is not None:
                self._plans.move_to_end(key)
                return entry
        entry = self._make(inputs)
        with self._lock:
            entry = self._plans.setdefault(key, entry)
            while len(self._plans) > N_PLANS:
                _, old = self._plans.popitem(last=False)
                old.is_kept = False
                self._idle -= old.plan.arena * len(old.frames)
        return entry

    def _make(self, inputs: dict[str, Spec]) -> _Entry:
        settings = self.settings
        plan = self.planner.plan(inputs, settings)
        self._check_types(plan)
        while self.max_memory is not None and plan.peak > self.max_memory and settings.block_bytes > LEAST_BLOCK:
            settings = replace(settings, block_bytes=settings.block_bytes // 4)
            plan = self.planner.plan(inputs, settings)
        if self.max_memory is not None and plan.peak > self.max_memory:
            shapes = ", ".join(f"{n} {s.shape}" for n, s in inputs.items())
            raise MemoryLimitError(
                f"running {shapes} needs {plan.peak:,} bytes beside the weights, max_memory leaves {self.max_memory:,}"
            )
        return _Entry(plan, settings)

    def _check_types(self, plan: Plan) -> None:
        """Raise where an output is not what the model says it is, and what callers are told."""
        for value in self.program.outputs:
            spec = plan.specs.get(value.name)
            if spec is not None and value.dtype and spec.dtype != value.dtype:
                raise ModelFormatError(f"output {value.name!r} is {spec.dtype}, the model declares it as {value.dtype}")

    def _take(self, entry: _Entry) -> Frame:
        """An idle frame of this plan, or a new one."""
        with self._lock:
            if entry.frames:
                if entry.is_kept:
                    self._idle -= entry.plan.arena
                return entry.frames.pop()
            lent, self._lent = self._lent, None
            if lent is not None and lent[0] is entry:
                return lent[1]
            del lent  # before another one is made
        return Frame(entry.plan, entry.settings)

    def _give(self, entry: _Entry, frame: Frame) -> None:
        """Keep a frame for the next caller; all idle arenas together hold at most IDLE_BYTES, and one is lent."""
        size = entry.plan.arena
        is_large = size > IDLE_BYTES
        if is_large and not frame.arena.lend():
            return
        with self._lock:
            if not entry.is_kept:
                return
            if is_large:
                self._lent = entry, frame
                return
            entry.frames.append(frame)
            self._idle += size
            for old in self._plans.values():  # the longest unused first
                while self._idle > IDLE_BYTES and old.frames:
                    old.frames.pop()
                    self._idle -= old.plan.arena

    def __call__(self, feeds: dict[str, np.ndarray], profile: list | None = None) -> dict[str, np.ndarray]:
        """Check the inputs and run.

        Parameters
        ----------
        feeds : dict of str to ndarray
        profile : list, optional
            Gets one (op, start, end) for each operator run, in nanoseconds.
        """
        check_inputs(self.program.inputs, feeds)
        try:
            results = self.run(feeds, profile)
        except ShapeError as error:
            hint = different_lengths(self.program.inputs, {n: a.shape for n, a in feeds.items()})
            if not hint:
                raise
            raise ShapeError(f"{error}{hint}") from error
        self._check_outputs(results)
        return dict(zip(self.outputs, results))

    def _check_outputs(self, results: list[np.ndarray]) -> None:
        """Raise where an output is of another type than callers are told, warn where it is of another shape.

        Many ONNX files are wrong about lengths; ONNX Runtime warns too.
        """
        for value, array in zip(self.program.outputs, results):
            if value.dtype and array.dtype != value.dtype:  # of a type that only the run told
                raise ModelFormatError(
                    f"output {value.name!r} is {array.dtype}, the model declares it as {value.dtype}"
                )
            if not fits(value, array.shape):
                message = f"output {value.name!r} has shape {array.shape}, the model declares it as {value.shape}"
                warnings.warn(message, ModelWarning, stacklevel=5)

    def run(self, feeds: dict[str, np.ndarray], profile: list | None = None) -> list:
        """Run without checks, for programs within programs."""
        specs = {n: Spec(a.shape, a.dtype) for n, a in feeds.items()}
        entry = self._entry(specs)
        frame = self._take(entry)
        arrays = frame.arrays
        for name, array in feeds.items():
            np.copyto(arrays[name], array)
        with single, np.errstate(all="ignore"):
            frame.run(profile)
        results = [np.array(arrays[n], order="C") for n in entry.plan.outputs]
        self._give(entry, frame)
        return results
