"""Weights made ready before any run: packed for dense layers and convolutions, kept plain only where something else
reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from pyclattn.functional.dense import Packed, is_fast, pack_weight
from pyclattn.functional.dense_bfloat16 import pack_bfloat16
from pyclattn.functional.dense_int8 import LARGEST_DEPTH, pack_int8
from pyclattn.graph.filters import CONVOLUTIONS, PackedFilters, WinogradFilters, packing_of
from pyclattn.graph.ops.quantised import INT32_DEPTH
from pyclattn.graph.ops.stored import DEQUANTIZE
from pyclattn.graph.program import Op, Program, nested, walk
from pyclattn.graph.spec import Spec

# A smaller weight of another kind than float32 dense ones gains nothing: it lies in L2, whatever its order.
LEAST_PACKED = 1 << 16
DENSE = ("pyclattn:Linear", "MatMul")
PACK: dict[str, Callable[[np.ndarray], Packed]] = {"float32": pack_weight, "bfloat16": pack_bfloat16}
# Products of 8-bit whole numbers: the operator -> which input is its weight.
INTEGER = {
    "MatMulInteger": 1,
    "QLinearMatMul": 3,
    "com.microsoft:MatMulIntegerToFloat": 1,
    "com.microsoft:DynamicQuantizeMatMul": 1,
}
Uses = list[tuple[Op, tuple[str, ...]]]  # every operator that will run, and the names it reads beside its inputs


def weight_bytes(program: Program) -> int:
    """Bytes of all constants of a program and those within it; one that has several names counts once."""
    programs = [program, *(p for op in walk(program) for p in nested(op))]
    return sum({id(a): a.nbytes for p in programs for a in p.constants.values()}.values())


def pack(specs: dict[str, Spec], uses: Uses, outputs: Iterable[str], precision: str = "float32") -> None:
    """Give every weight of a dense layer or convolution its packed form, and take away the plain one if unused.

    Parameters
    ----------
    specs : dict of str to Spec
        Of all constants; changed.
    uses : list of (op, names)
        Every operator that will run, and the names it reads beside its inputs.
    outputs : names that are read after the run
    precision : str
        Of the layers' products, "float32" or "bfloat16".
    """
    if not is_fast() and precision == "float32":
        return
    packed: dict[str, Callable[[np.ndarray], Packed | PackedFilters | WinogradFilters]] = {}
    plain = set(outputs)
    for op, extra in uses:
        plain.update(extra)
        for i, name in enumerate(op.inputs):
            how = _packer(op, i, specs[name], precision) if name in specs else None
            if how is None or packed.setdefault(name, how) != how:
                plain.add(name)
    for name, how in packed.items():
        spec = specs[name]
        specs[name] = Spec(spec.shape, spec.dtype, spec.strides, spec.value if name in plain else None)
        specs[name].packed = how(spec.value)


def _packer(
    op: Op, i: int, spec: Spec, precision: str
) -> Callable[[np.ndarray], Packed | PackedFilters | WinogradFilters] | None:
    """How input ``i`` of an operator is packed, if it is a weight that may be."""
    if spec.packed is not None or not spec.size:
        return None
    is_dense = op.kind in DENSE and i == 1 and spec.ndim == 2 and spec.dtype == np.float32
    if is_dense and (precision == "float32" or spec.size < LEAST_PACKED):
        # of any size: no slower for one row, what follows is done with it, and a row has its bits in any company
        return PACK["float32"] if is_fast() else None
    if spec.size < LEAST_PACKED:
        return None
    if op.kind in CONVOLUTIONS and i == 1:
        return packing_of(op, spec, precision)
    if spec.ndim != 2:
        return None
    if is_dense:
        return PACK[precision]
    if INTEGER.get(op.kind) == i and spec.dtype in (np.int8, np.uint8) and spec.shape[0] <= INT32_DEPTH:
        return _pack_integers
    return None


def _pack_integers(weight: np.ndarray) -> Packed:
    """Whole numbers of either sign as int8, those without a sign less 128."""
    signed = weight if weight.dtype == np.int8 else (weight ^ np.uint8(128)).view(np.int8)
    return pack_int8(signed, np.ones(weight.shape[1], np.float32))


def pack_stored(specs: dict[str, Spec], uses: Uses, outputs: Iterable[str], precision: str | None) -> Uses:
    """Pack weights that are stored in fewer bits from what is stored, where dense layers alone read them.

    Parameters
    ----------
    specs, uses, outputs
        As of `pack`.
    precision : str or None
        What float16 and bfloat16 are packed for, as of `pack`; None: they are left as they are. int8 is always packed,
        since it means that a layer rounds its input too.

    Returns
    -------
    list of (op, names)
        Without the operators that would have made them float32.
    """
    made = {op.outputs[0]: op for op, _ in uses if op.kind == DEQUANTIZE and op.outputs}
    other = set(outputs)
    for op, extra in uses:
        other.update(extra)
        other.update(name for i, name in enumerate(op.inputs) if not (i == 1 and op.kind in DENSE))
    done: set[int] = set()
    for name, op in made.items():
        packed = None if name in other else _packed([specs.get(n) for n in op.inputs], precision)
        if packed is not None:
            specs[name] = Spec(packed.shape, np.float32)
            specs[name].packed = packed
            done.add(id(op))
    return [use for use in uses if id(use[0]) not in done]


def _packed(given: list[Spec | None], precision: str | None) -> Packed | None:
    """A stored weight in its packed form, if it has one."""
    values = [spec.value for spec in given if spec is not None and spec.value is not None]
    if not values or len(values) < len(given) or values[0].ndim != 2:
        return None
    weight, *scale = values
    has_scale = bool(scale) and scale[0].dtype == np.float32 and scale[0].shape == weight.shape[1:]
    if weight.dtype == np.int8 and has_scale and len(weight) <= LARGEST_DEPTH:
        return pack_int8(weight, scale[0])
    can_pack = precision is not None and (is_fast() or precision != "float32") and weight.size >= LEAST_PACKED
    if can_pack and not scale and weight.dtype in (np.float16, np.uint16):
        return PACK[precision or ""](widened(weight))
    return None


def widened(half: np.ndarray) -> np.ndarray:
    """float16, or bfloat16 held as its 16 bits, as float32."""
    if half.dtype == np.uint16:
        return np.left_shift(half, 16, dtype=np.uint32).view(np.float32)
    return half.astype(np.float32)


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
