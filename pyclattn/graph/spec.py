"""What is known of a value before a run, what an operator's builder sees, and what it gives back.

A builder is called once for each operator and each set of input shapes. It looks at a `Node` (attributes, shapes,
values known without running) and returns a `Kernel`: the shapes of the outputs and a function that binds arrays to a
call without arguments. All decisions are taken there, so a run is a list of calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from pyclattn.errors import DTypeError, ModelFormatError, ShapeError
from pyclattn.graph.program import Op

Arrays = Sequence[Any]  # arrays of one call; an input that is left out is None


class Unknown(Exception):
    """Something a builder needs is known only in the run; the operator is then built there."""


class Spec:
    """Shape, dtype and memory layout of a value; its content too where that is known before the run.

    Parameters
    ----------
    shape : tuple of int
    dtype : dtype
    strides : tuple of int, optional
        Bytes; None for C order without gaps.
    value : ndarray, optional
    packed : Packed, optional
        A constant in the order dense layers read it; ``value`` may then be dropped.
    """

    __slots__ = ("dtype", "packed", "shape", "strides", "value")

    def __init__(self, shape, dtype, strides=None, value=None):
        self.shape = tuple(int(n) for n in shape)
        self.dtype = np.dtype(dtype)
        self.strides = strides
        self.value = value
        self.packed = None

    @classmethod
    def of(cls, array: np.ndarray, value: bool = False) -> Spec:
        """The spec of an array, with its content if ``value``."""
        strides = None if array.flags.c_contiguous else array.strides
        return cls(array.shape, array.dtype, strides, array if value else None)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        size = 1
        for n in self.shape:
            size *= n
        return size

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def dummy(self) -> np.ndarray:
        """An array with this shape and layout over a single element; only for asking NumPy what a view looks like."""
        one = np.zeros(1, self.dtype)
        if self.strides is None:
            strides, step = [], self.dtype.itemsize
            for n in reversed(self.shape):
                strides.append(step)
                step *= n
            return as_strided(one, self.shape, tuple(reversed(strides)))
        return as_strided(one, self.shape, self.strides)

    def __repr__(self) -> str:
        return f"{self.dtype.name}{list(self.shape)}"


@dataclass(frozen=True)
class Observed:
    """What an attention was given and gave, for whoever observes a run. The arrays hold only during the call.

    Attributes
    ----------
    name : str
    query, key, value, output : array (B, H, L, D), (B, H', S, D), (B, H', S, E), (B, H, L, E)
        Views, not to be written to.
    options : dict
        ``scale``, ``n_threads``, and what the model masks by: ``attn_mask``, ``key_padding_mask``, ``is_causal``.
    methods : tuple of str
        The method of each part of the heads; what cannot be clustered says "exact" here, whatever was asked.
    seconds : float
    """

    name: str
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    output: np.ndarray
    options: dict[str, Any]
    methods: tuple[str, ...]
    seconds: float


@dataclass
class Settings:
    """What builders may decide by, besides shapes."""

    n_threads: int = 1
    precision: str = "float32"  # of the products of layers and attention; "bfloat16"
    block_bytes: int = 1 << 22  # scratch of a blocked product; halved by the planner to keep a memory limit
    prepares: bool = True  # pack weights and compute large constants once, which takes memory
    attention: Any = None  # function: name, heads, heads of keys, queries, keys -> [(slice of the latter heads, method,
    # parameters)], as `pyclattn.plan.Plan.parts`; None: exact everywhere
    observe: Callable[[Observed], None] | None = None  # called after each attention that could be replaced
    programs: Any = None  # function: nested Program -> executor, kept by the outer executor
    free_names: Any = None  # function: nested Program -> the outer names it reads


@dataclass
class Kernel:
    """An operator made ready for given shapes.

    Attributes
    ----------
    outputs : list of Spec
    bind : function (inputs, outputs, scratch) -> function ()
        Arrays that will not move; the result does the work. ``scratch`` is an uint8 array, or None.
    view : function (inputs) -> ndarray, optional
        Instead of ``bind``: the output is a view into input 0, or the outputs are, as a list.
    inplace : tuple of int
        Inputs that output 0 may overwrite where they have its shape and dtype.
    scratch : int
        Bytes used during the call, besides inputs and outputs, that the plan provides.
    transient : int
        Bytes that the call allocates by itself, counted in the estimate.
    """

    outputs: list[Spec]
    bind: Callable[[Arrays, Arrays, Any], Callable[[], Any]] | None = None
    view: Callable[[Arrays], np.ndarray | list[np.ndarray]] | None = None
    inplace: tuple[int, ...] = ()
    scratch: int = 0
    transient: int = 0


@dataclass
class Node:
    """One operator as its builder sees it."""

    op: Op
    specs: list[Spec | bool | None]  # False: input left out; None: not known before the run
    settings: Settings = field(default_factory=Settings)

    @property
    def kind(self) -> str:
        return self.op.kind

    @property
    def n_inputs(self) -> int:
        return len(self.specs)

    @property
    def n_outputs(self) -> int:
        return len(self.op.outputs)

    def wants(self, i: int) -> bool:
        """Whether output ``i`` is used."""
        return i < len(self.op.outputs) and bool(self.op.outputs[i])

    def has(self, i: int) -> bool:
        """Whether input ``i`` is given."""
        return i < len(self.specs) and self.specs[i] is not False

    def spec(self, i: int) -> Spec:
        if not self.has(i):
            raise ModelFormatError(f"input {i} is missing: {len(self.op.inputs)} given")
        spec = self.specs[i]
        if not isinstance(spec, Spec):
            raise Unknown(i)
        return spec

    def shape(self, i: int) -> tuple[int, ...]:
        return self.spec(i).shape

    def dtype(self, i: int) -> np.dtype:
        return self.spec(i).dtype

    def known(self, i: int) -> bool:
        """Whether the content of input ``i`` is known before the run."""
        spec = self.specs[i] if i < len(self.specs) else None
        return isinstance(spec, Spec) and spec.value is not None

    def value(self, i: int) -> np.ndarray:
        """The content of input ``i``; the operator is built in the run where that is not known before."""
        value = self.spec(i).value
        if value is None:
            raise Unknown(i)
        return value

    def ints(self, i: int) -> list[int]:
        """The content of input ``i`` as whole numbers."""
        value = self.value(i)
        if value.dtype.kind not in "iu":
            raise DTypeError(f"input {i} must hold whole numbers, got {value.dtype}")
        return [int(n) for n in value.reshape(-1)]

    def scalar(self, i: int):
        """The content of input ``i``, which must have one element, as a Python number."""
        value = self.value(i)
        if value.size != 1:
            raise ShapeError(f"input {i} must have one element, got shape {value.shape}")
        return value.reshape(-1)[0].item()

    def attr(self, name: str, *default):
        """An attribute; without a default it must be there."""
        value = self.op.attributes.get(name)
        if value is None:
            if not default:
                raise ModelFormatError(f"attribute {name!r} is missing")
            return default[0]
        return value

    def axis(self, axis: int, ndim: int) -> int:
        """A non-negative axis, checked."""
        if not -ndim <= axis < ndim:
            raise ShapeError(f"axis must be in [{-ndim}, {ndim - 1}], got {axis}")
        return axis % ndim if ndim else 0

    def axes(self, axes: Sequence[int], ndim: int) -> tuple[int, ...]:
        """Non-negative axes, checked to be different."""
        result = tuple(self.axis(a, ndim) for a in axes)
        if len(set(result)) != len(result):
            raise ShapeError(f"axes must differ, got {tuple(axes)} for {ndim} dimensions")
        return result


def simple(outputs: list[Spec], function: Callable[..., Any], inplace: tuple[int, ...] = ()) -> Kernel:
    """A kernel from a function that returns new arrays; they are copied to their place."""

    def bind(ins, outs, scratch):
        if len(outs) == 1:
            out = outs[0]

            def run():
                out[...] = function(*ins)
        else:

            def run():
                for out, result in zip(outs, function(*ins)):
                    if out is not None:
                        out[...] = result

        return run

    return Kernel(outputs, bind, inplace=inplace, transient=sum(s.nbytes for s in outputs))


def constant(arrays: Sequence[np.ndarray]) -> Kernel:
    """A kernel whose outputs are known already."""
    return Kernel([Spec.of(np.asarray(a), value=True) for a in arrays])


def view(node: Node, function: Callable[[np.ndarray], np.ndarray]) -> Kernel:
    """A kernel whose output is ``function(input 0)``, a view."""
    out = function(node.spec(0).dummy())
    return Kernel([Spec.of(out)], view=lambda ins: function(ins[0]))


def at(axis: int, *index: Any) -> tuple:
    """The index that takes ``index`` from ``axis`` on and all of the axes before it: ``x[at(1, 3)] is x[:, 3]``."""
    return (slice(None),) * axis + index


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that all ``shapes`` broadcast to."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise ShapeError(f"shapes {', '.join(map(str, shapes))} do not broadcast together") from None
