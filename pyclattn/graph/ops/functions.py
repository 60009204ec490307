"""Element-wise functions on arrays, written for blocks that lie in cache: each call is ``function(x, ..., out)``.

No function reads an input after it has begun to write ``out``, unless it wrote that element from it: in place is safe.
"""

from __future__ import annotations

import math

import numpy as np

# erf(z) = tanh(z P(z^2)): atanh(erf(z)) / z is smooth, so degree 6 is enough for 1.4e-7 absolute and 6.5e-7 relative
# on [0, 3.8] in float32 (fitted by re-weighted least squares on Chebyshev nodes); beyond 3.8 float32's erf is 1.
_ERF = (1.12837971, 0.102765481, -0.000184382505, -0.000625720574, 8.97129269e-05, -5.9857336e-06, 1.58961419e-07)
_ERF_END = 3.8**2
# the same with z = x / sqrt(2), for GELU
_PHI = tuple(c / 2 ** (k + 0.5) for k, c in enumerate(_ERF))
_PHI_END = 2 * _ERF_END

# the largest argument whose exponential is finite, a little less
_EXP_MAX = {"float32": 88.0, "float64": 709.0}

_erf_exact = np.frompyfunc(math.erf, 1, 1)


def _tanh_of_odd(coefficients, end, x, out):
    """tanh(x P(x^2)) with x^2 cut at ``end``, in two temporaries."""
    square = np.multiply(x, x)
    np.minimum(square, end, out=square)
    total = np.multiply(square, coefficients[-1])
    for c in coefficients[-2:0:-1]:
        np.add(total, c, total)
        np.multiply(total, square, total)
    np.add(total, coefficients[0], total)
    np.multiply(total, x, total)
    np.tanh(total, out)


def erf(x, out):
    """The error function; 1.4e-7 in float32."""
    if x.dtype == np.float32:
        _tanh_of_odd(_ERF, _ERF_END, x, out)
    else:
        out[...] = _erf_exact(x).astype(x.dtype)


def gelu(x, out):
    """x Phi(x) with the normal distribution function Phi."""
    if x.dtype == np.float32:
        phi = np.empty_like(x)
        _tanh_of_odd(_PHI, _PHI_END, x, phi)
        np.add(phi, 1.0, phi)
        np.multiply(phi, 0.5, phi)
        np.multiply(phi, x, out)
    else:
        phi = _erf_exact(x.astype(np.float64) * math.sqrt(0.5)).astype(np.float64)
        out[...] = 0.5 * x * (1 + phi)


def gelu_tanh(x, out):
    """GELU by its tanh approximation."""
    inner = np.multiply(x, x)
    np.multiply(inner, 0.044715 * math.sqrt(2 / math.pi), inner)
    np.add(inner, math.sqrt(2 / math.pi), inner)
    np.multiply(inner, x, inner)
    np.tanh(inner, inner)
    np.add(inner, 1.0, inner)
    np.multiply(inner, 0.5, inner)
    np.multiply(inner, x, out)


def sigmoid(x, out):
    """1 / (1 + exp(-x)), right to the last digits for small results too."""
    y = np.negative(x, dtype=np.float32 if x.dtype == np.float16 else None)
    np.minimum(y, _EXP_MAX[y.dtype.name], out=y)
    np.exp(y, y)
    np.add(y, 1.0, y)
    np.reciprocal(y, out, casting="same_kind")


def swish(alpha, x, out):
    """x sigmoid(alpha x)."""
    y = np.multiply(x, alpha)
    sigmoid(y, y)
    np.multiply(x, y, out)


def silu(x, out):
    """x sigmoid(x)."""
    swish(1.0, x, out)


def quick_gelu(x, out):
    """x sigmoid(1.702 x)."""
    swish(1.702, x, out)


def relu(x, out):
    """max(x, 0)."""
    np.maximum(x, 0, out=out)


def tanh(x, out):
    """The hyperbolic tangent."""
    np.tanh(x, out)


GELU = {"none": gelu, "tanh": gelu_tanh, "quick": quick_gelu}
ACTIVATIONS = {
    "": None,
    "relu": relu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "silu": silu,
    "tanh": tanh,
    "sigmoid": sigmoid,
}


def hard_sigmoid(alpha, beta, x, out):
    """min(max(alpha x + beta, 0), 1)."""
    np.multiply(x, alpha, out)
    np.add(out, beta, out)
    np.clip(out, 0, 1, out)


def hard_swish(x, out):
    """x hard_sigmoid(x / 6 + 1 / 2)."""
    y = np.empty_like(x)
    hard_sigmoid(1 / 6, 0.5, x, y)
    np.multiply(x, y, out)


def softsign(x, out):
    """x / (1 + |x|)."""
    np.divide(x, np.abs(x) + x.dtype.type(1), out)


def softplus(x, out):
    """log(1 + exp(x))."""
    np.logaddexp(x, x.dtype.type(0), out)


def mish(x, out):
    """x tanh(softplus(x))."""
    np.multiply(x, np.tanh(np.logaddexp(x, x.dtype.type(0))), out)


def leaky_relu(alpha, x, out):
    """x where positive, else alpha x."""
    np.copyto(out, np.where(x < 0, x * x.dtype.type(alpha), x))


def prelu(x, slope, out):
    """x where positive, else slope x."""
    np.copyto(out, np.where(x < 0, x * slope, x))


def elu(alpha, gamma, x, out):
    """gamma x where positive, else gamma alpha (exp(x) - 1)."""
    one = x.dtype.type
    np.copyto(out, np.where(x < 0, one(gamma * alpha) * np.expm1(np.minimum(x, 0)), one(gamma) * x))


def celu(alpha, x, out):
    """max(x, 0) + min(alpha (exp(x / alpha) - 1), 0)."""
    one = x.dtype.type
    np.add(np.maximum(x, 0), one(alpha) * np.expm1(np.minimum(x, 0) / one(alpha)), out=out)


def thresholded_relu(alpha, x, out):
    """x above alpha, else 0."""
    np.copyto(out, np.where(x > alpha, x, x.dtype.type(0)))


def shrink(lambd, bias, x, out):
    """x + bias below -lambd, x - bias above lambd, else 0."""
    np.copyto(out, np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0)).astype(x.dtype, copy=False))


def cube(x, out):
    """x^3."""
    np.multiply(x * x, x, out)


def truncated_divide(x, y, out):
    """Whole-number division towards zero."""
    quotient = np.floor_divide(x, y)
    wrong = (np.multiply(quotient, y) != x) & ((x < 0) != (y < 0))
    np.add(quotient, wrong.astype(quotient.dtype), out)


def float_to_int(dtype, x, out):
    """The fraction is cut off; what does not fit wraps around through int64."""
    np.copyto(out, x if dtype.itemsize == 8 else x.astype(np.int64), casting="unsafe")


def to_bfloat16(x, out):
    """The nearest bfloat16, ties to even, kept as float32."""
    x = np.ascontiguousarray(x, np.float32)
    bits = x.view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) & np.uint32(0xFFFF0000)
    np.copyto(out, np.where(np.isnan(x), x, rounded.view(np.float32)))
