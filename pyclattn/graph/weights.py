"""Weights made ready before any run: packed for dense layers, and kept plain only where something else reads them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pyclattn.functional.dense import is_fast, pack_weight
from pyclattn.graph.program import Op, Program, nested, walk
from pyclattn.graph.spec import Spec

# A smaller weight lies in L2, whatever its order, and BLAS needs about 2 us less a call.
LEAST_PACKED = 1 << 16
DENSE = ("pyclattn:Linear", "MatMul")


def weight_bytes(program: Program) -> int:
    """Bytes of all constants of a program and those within it; one that has several names counts once."""
    programs = [program, *(p for op in walk(program) for p in nested(op))]
    return sum({id(a): a.nbytes for p in programs for a in p.constants.values()}.values())


def pack(specs: dict[str, Spec], uses: list[tuple[Op, tuple[str, ...]]], outputs: Iterable[str]) -> None:
    """Give every constant that is a dense layer's weight its packed form, and take away the plain one if unused.

    Parameters
    ----------
    specs : dict of str to Spec
        Of all constants; changed.
    uses : list of (op, names)
        Every operator that will run, and the names it reads beside its inputs.
    outputs : names that are read after the run
    """
    if not is_fast():
        return
    packed: set[str] = set()
    plain = set(outputs)
    for op, extra in uses:
        plain.update(extra)
        for i, name in enumerate(op.inputs):
            is_weight = i == 1 and op.kind in DENSE and name in specs and _is_weight(specs[name])
            (packed if is_weight else plain).add(name)
    for name in packed:
        spec = specs[name]
        specs[name] = Spec(spec.shape, spec.dtype, spec.strides, spec.value if name in plain else None)
        specs[name].packed = pack_weight(spec.value)


def _is_weight(spec: Spec) -> bool:
    return spec.ndim == 2 and spec.dtype == np.float32 and spec.size >= LEAST_PACKED


def made_bytes(specs: dict[str, Spec], given: Iterable[np.ndarray]) -> int:
    """Bytes that packed and computed constants take beside those a program came with."""
    own = {id(_owner(a)) for a in given}
    values = [_owner(s.value) for s in specs.values() if s.value is not None]
    made = {id(a): a.nbytes for a in values if id(a) not in own}
    return sum(made.values()) + sum(s.packed.nbytes for s in specs.values() if s.packed is not None)


def _owner(array: np.ndarray) -> np.ndarray:
    """The array whose memory a view looks at."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
