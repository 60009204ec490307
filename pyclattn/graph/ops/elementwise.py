"""Operators that map each element, alone or with its partner under broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce

import numpy as np

from pyclattn.errors import DTypeError, ModelFormatError
from pyclattn.functional import rows as functional_rows
from pyclattn.graph import blocks
from pyclattn.graph.ops import functions as f
from pyclattn.graph.ops.registry import element_type, is_bfloat16, op
from pyclattn.graph.spec import Kernel, Node, Spec, broadcast, view


def _map(node: Node, function, inputs: list[int], dtype=None, blocked: bool = False) -> Kernel:
    """The kernel of ``function(*inputs, out)``; it must not read an input after writing ``out``."""
    specs = [node.spec(i) for i in inputs]
    shape = broadcast(*(s.shape for s in specs)) if len(specs) > 1 else specs[0].shape
    out = Spec(shape, dtype or specs[0].dtype)
    threads = node.settings.n_threads
    cut = blocks.blockwise if blocked else blocks.elementwise

    temporaries = 4 * min(out.nbytes, blocks.BLOCK * out.dtype.itemsize * threads) if blocked else 0

    def bind(ins, outs, scratch):
        return cut(function, [ins[i] for i in inputs], outs[0], threads)

    return Kernel([out], bind, inplace=tuple(inputs), transient=temporaries)


def _floating(node: Node, i: int = 0) -> None:
    if node.dtype(i).kind != "f":
        raise DTypeError(f"input {i} must be floating point, got {node.dtype(i)}")


def _same(node: Node) -> None:
    types = {node.dtype(i) for i in range(node.n_inputs)}
    if len(types) > 1:
        raise DTypeError(f"inputs must have one type, got {', '.join(sorted(t.name for t in types))}")


def _unary(kind: str, function, dtype=None, floating: bool = False, blocked: bool = False) -> None:
    @op(kind)
    def build(node: Node) -> Kernel:
        if floating:
            _floating(node)
        return _compiled(node, COMPILED.get(kind, "")) or _map(node, function, [0], dtype, blocked)


# What is compiled, under its name there.
COMPILED = {"Exp": "exp", "Tanh": "tanh", "Sigmoid": "sigmoid", "Erf": "erf"}


def _compiled(node: Node, name: str) -> Kernel | None:
    """The kernel of a compiled function, if there is one and it can read the input."""
    x, threads = node.spec(0), node.settings.n_threads
    if not name or x.dtype != np.float32 or x.strides is not None or not functional_rows.is_fast():
        return None

    def bind(ins, outs, scratch):
        return functional_rows.bound_apply(name, ins[0], outs[0], threads)

    return Kernel([Spec(x.shape, x.dtype)], bind, inplace=(0,))


_SIMPLE: dict[str, Callable] = {
    "Abs": np.absolute,
    "Neg": np.negative,
    "Sign": np.sign,
    "BitwiseNot": np.invert,
}
_FLOATING: dict[str, Callable] = {
    "Exp": np.exp,
    "Log": np.log,
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Round": np.rint,
    "Sin": np.sin,
    "Cos": np.cos,
    "Tan": np.tan,
    "Asin": np.arcsin,
    "Acos": np.arccos,
    "Atan": np.arctan,
    "Sinh": np.sinh,
    "Cosh": np.cosh,
    "Tanh": np.tanh,
    "Asinh": np.arcsinh,
    "Acosh": np.arccosh,
    "Atanh": np.arctanh,
    "Sigmoid": f.sigmoid,
    "HardSwish": f.hard_swish,
    "Softsign": f.softsign,
    "Erf": f.erf,
    "Softplus": f.softplus,
    "Mish": f.mish,
}
# these make temporaries
_BLOCKED = {"Sigmoid", "HardSwish", "Softsign", "Erf", "Softplus", "Mish"}
for _kind, _function in _SIMPLE.items():
    _unary(_kind, _function)
for _kind, _function in _FLOATING.items():
    _unary(_kind, _function, floating=True, blocked=_kind in _BLOCKED)
_unary("Not", np.logical_not, bool)
_unary("IsNaN", np.isnan, bool)


@op("Relu")
def _relu(node: Node) -> Kernel:
    return _compiled(node, "relu") or _map(node, partial(_maximum_scalar, node.dtype(0).type(0)), [0])


def _maximum_scalar(low, x, out):
    np.maximum(x, low, out=out)


@op("IsInf")
def _isinf(node: Node) -> Kernel:
    positive, negative = node.attr("detect_positive", 1), node.attr("detect_negative", 1)

    def function(x, out):
        if positive and negative:
            np.isinf(x, out)
        elif positive:
            np.equal(x, np.inf, out)
        elif negative:
            np.equal(x, -np.inf, out)
        else:
            out[...] = False

    return _map(node, function, [0], bool)


@op("LeakyRelu")
def _leaky_relu(node: Node) -> Kernel:
    return _map(node, partial(f.leaky_relu, node.attr("alpha", 0.01)), [0], blocked=True)


@op("Elu")
def _elu(node: Node) -> Kernel:
    return _map(node, partial(f.elu, node.attr("alpha", 1.0), 1.0), [0], blocked=True)


@op("Selu")
def _selu(node: Node) -> Kernel:
    alpha = node.attr("alpha", 1.67326319217681884765625)
    return _map(node, partial(f.elu, alpha, node.attr("gamma", 1.05070102214813232421875)), [0], blocked=True)


@op("Celu")
def _celu(node: Node) -> Kernel:
    return _map(node, partial(f.celu, node.attr("alpha", 1.0)), [0], blocked=True)


@op("HardSigmoid")
def _hard_sigmoid(node: Node) -> Kernel:
    return _map(node, partial(f.hard_sigmoid, node.attr("alpha", 0.2), node.attr("beta", 0.5)), [0])


@op("ThresholdedRelu")
def _thresholded_relu(node: Node) -> Kernel:
    return _map(node, partial(f.thresholded_relu, node.attr("alpha", 1.0)), [0], blocked=True)


@op("Shrink")
def _shrink(node: Node) -> Kernel:
    return _map(node, partial(f.shrink, node.attr("lambd", 0.5), node.attr("bias", 0.0)), [0], blocked=True)


@op("Swish")
def _swish(node: Node) -> Kernel:
    alpha = node.attr("alpha", 1.0)
    return _compiled(node, "silu" if alpha == 1 else "") or _map(node, partial(f.swish, alpha), [0], blocked=True)


@op("com.microsoft:QuickGelu")
def _quick_gelu(node: Node) -> Kernel:
    alpha = node.attr("alpha", 1.702)
    is_usual = abs(alpha - 1.702) < 1e-6
    return _compiled(node, "quick_gelu" if is_usual else "") or _map(node, partial(f.swish, alpha), [0], blocked=True)


@op("Gelu", "pyclattn:Gelu", "com.microsoft:Gelu")
def _gelu(node: Node) -> Kernel:
    _floating(node)
    name = node.attr("approximate", "none")
    if name not in f.GELU:
        raise ModelFormatError(f"approximate must be one of {', '.join(f.GELU)}, got {name!r}")
    compiled = _compiled(node, {"none": "gelu", "tanh": "gelu_tanh", "quick": "quick_gelu"}[name])
    return compiled or _map(node, f.GELU[name], [0], blocked=True)


@op("com.microsoft:BiasGelu", "com.microsoft:FastGelu")
def _bias_gelu(node: Node) -> Kernel:
    gelu = f.gelu if node.kind.endswith("BiasGelu") else f.gelu_tanh
    if not node.has(1):
        return _map(node, gelu, [0], blocked=True)

    def function(x, bias, out):
        gelu(np.add(x, bias), out)

    return _map(node, function, [0, 1], blocked=True)


@op("Clip")
def _clip(node: Node) -> Kernel:
    inputs = [0] + [i for i in (1, 2) if node.has(i)]
    low = inputs.index(1) if node.has(1) else None
    high = inputs.index(2) if node.has(2) else None
    for i in inputs:
        node.spec(i)

    def function(*arrays):
        x, out = arrays[0], arrays[-1]
        if low is not None:
            x = np.maximum(x, arrays[low], out=out)
        if high is not None:
            x = np.minimum(x, arrays[high], out=out)
        if x is not out:
            out[...] = x

    kernel = _map(node, function, inputs)
    kernel.outputs[0] = Spec(node.shape(0), node.dtype(0))
    kernel.inplace = (0,)
    return kernel


@op("PRelu")
def _prelu(node: Node) -> Kernel:
    return _map(node, f.prelu, [0, 1], blocked=True)


def _binary(kind: str, ufunc, dtype=None) -> None:
    @op(kind)
    def build(node: Node) -> Kernel:
        _same(node)
        return _map(node, ufunc, [0, 1], dtype)


_ARITHMETIC: dict[str, Callable] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "BitwiseAnd": np.bitwise_and,
    "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
}
_COMPARISONS: dict[str, Callable] = {
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
}
for _kind, _function in _ARITHMETIC.items():
    _binary(_kind, _function)
for _kind, _function in _COMPARISONS.items():
    _binary(_kind, _function, bool)


@op("Div")
def _div(node: Node) -> Kernel:
    _same(node)
    kind = node.dtype(0).kind
    function = {"f": np.divide, "u": np.floor_divide}.get(kind, f.truncated_divide)
    return _map(node, function, [0, 1])


@op("Pow")
def _pow(node: Node) -> Kernel:
    out = node.dtype(0)
    if node.known(1) and node.spec(1).size == 1 and node.spec(1).ndim <= node.spec(0).ndim and out.kind == "f":
        exponent = node.scalar(1)
        if exponent in (2, 3, 0.5):
            return _map(node, {2: np.square, 3: f.cube, 0.5: np.sqrt}[exponent], [0], blocked=exponent == 3)
    if node.dtype(1) == out:
        return _map(node, np.power, [0, 1])

    def function(x, y, into):
        into[...] = np.power(x, y).astype(out, copy=False)

    return _map(node, function, [0, 1], out)


@op("Mod")
def _mod(node: Node) -> Kernel:
    _same(node)
    return _map(node, np.fmod if node.attr("fmod", 0) else np.mod, [0, 1])


@op("BitShift")
def _bit_shift(node: Node) -> Kernel:
    _same(node)
    direction = node.attr("direction")
    if direction not in ("LEFT", "RIGHT"):
        raise ModelFormatError(f"direction must be LEFT or RIGHT, got {direction!r}")
    return _map(node, np.left_shift if direction == "LEFT" else np.right_shift, [0, 1])


@op("Sum", "Max", "Min", "Mean")
def _variadic(node: Node) -> Kernel:
    _same(node)
    ufunc = {"Sum": np.add, "Mean": np.add, "Max": np.maximum, "Min": np.minimum}[node.kind]
    n = node.n_inputs

    def function(*arrays):
        *ins, out = arrays
        if len(ins) == 1:
            out[...] = ins[0]
        else:
            total = reduce(ufunc, ins[:-1])
            ufunc(total, ins[-1], out=out)
        if node.kind == "Mean":
            np.divide(out, n, out)

    kernel = _map(node, function, list(range(n)), blocked=n > 2)
    kernel.inplace = kernel.inplace if n <= 2 else ()
    return kernel


@op("Where")
def _where(node: Node) -> Kernel:
    if node.dtype(0) != np.bool_:
        raise DTypeError(f"the condition must be bool, got {node.dtype(0)}")
    if node.dtype(1) != node.dtype(2):
        raise DTypeError(f"inputs must have one type, got {node.dtype(1)} and {node.dtype(2)}")
    kernel = _map(node, _where_into, [0, 1, 2], node.dtype(1))
    kernel.inplace = (2,)
    return kernel


def _where_into(condition, x, y, out):
    if out is not y:
        np.copyto(out, y)
    np.copyto(out, x, where=condition)


@op("Identity", "Dropout")
def _identity(node: Node) -> Kernel:
    if node.kind == "Dropout" and node.known(2) and node.scalar(2):
        raise ModelFormatError("Dropout in training mode is not supported")
    x = node.spec(0)
    if node.wants(1):
        mask = Spec(x.shape, bool)

        def bind(ins, outs, scratch):
            def run():
                if outs[0] is not None:
                    outs[0][...] = ins[0]
                outs[1][...] = True

            return run

        return Kernel([Spec(x.shape, x.dtype), mask], bind)
    return view(node, lambda x: x)


@op("Cast", "CastLike", "BitCast")
def _cast(node: Node) -> Kernel:
    x = node.spec(0)
    to = node.attr("to") if node.kind != "CastLike" else node.dtype(1).name
    target = element_type(to)
    if node.kind == "BitCast":
        if target.itemsize != x.dtype.itemsize:
            raise DTypeError(f"BitCast needs types of one size, got {x.dtype} and {target}")
        return view(node, lambda x: x.view(target))
    if is_bfloat16(to):
        return _map(node, f.to_bfloat16, [0], np.float32, blocked=True)
    if target == x.dtype:
        return view(node, lambda x: x)
    if x.dtype.kind == "f" and target.kind in "iu":
        return _map(node, partial(f.float_to_int, target), [0], target, blocked=True)
    return _map(node, _copy_into, [0], target)


def _copy_into(x, out):
    np.copyto(out, x, casting="unsafe")
