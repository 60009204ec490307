"""Functions of single elements and norms of rows, in every room and at every instruction set."""

import compare
import numpy as np
import pytest

from bench.functions import EXACT, sweep, units
from pyclattn.errors import ArgumentError, ShapeError
from pyclattn.functional.rows import FUNCTIONS, bound_apply, bound_normalise

rng = np.random.default_rng(0)
# Units in the last place, wherever the result is above 1e-35; the tanh form of GELU is right to 2 of x itself.
ULP = {"relu": 0, "exp": 1, "tanh": 1.5}  # all others: 2


def normal(*shape):
    return rng.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_size_of_number(room, name):
    """`python -m bench functions` looks at 50 times as many."""
    x = np.concatenate([*sweep(100003 if room == "reference" else 9973), np.linspace(-20, 20, 20001, dtype=np.float32)])
    got = np.empty_like(x)
    bound_apply(name, x, got)()
    assert units(name, x, got).max() <= ULP.get(name, 2)


def test_errors_are_counted_in_units_of_the_result():
    x = np.array([1, 1, -200, -200, 88, 88, 0], np.float32)
    got = np.exp(x.astype(np.float64)).astype(np.float32)
    got[1], got[3], got[5] = np.nextafter(got[1], np.float32(9)), 1e-30, np.inf
    found = units("exp", x, got)
    assert found[[0, 2, 4, 6]].max() <= 0.5
    assert 0.5 <= found[1] <= 1.5
    assert found[[3, 5]].min() > 1e30


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_infinity_and_lengths(room, name):
    x = np.array([np.nan, np.inf, -np.inf, 0], np.float32)
    out = np.empty_like(x)
    bound_apply(name, x, out)()
    assert np.isnan(out[0])
    with np.errstate(all="ignore"):
        want = EXACT[name](x.astype(np.float64))
    np.testing.assert_array_equal(out[3], np.float32(want[3]))
    if not name.endswith(("gelu", "silu", "gelu_tanh")):
        np.testing.assert_array_equal(out[1:3], want[1:3].astype(np.float32))
    for n in (0, 1, 15, 17, 33):
        x = normal(n)
        wide = np.full(n + 2, 7, np.float32)
        bound_apply(name, x, wide[1:-1])()
        assert wide[0] == wide[-1] == 7
        compare.assert_close(wide[1:-1].copy(), EXACT[name](x.astype(np.float64)), 1e-6)


def naive_norm(x, residual, weight, bias, epsilon, is_rms):
    out = np.empty(x.shape)
    for i in range(len(x)):
        y = [float(v) + (0 if residual is None else float(residual[i, j])) for j, v in enumerate(x[i])]
        mean = 0 if is_rms else sum(y) / len(y)
        square = sum((v - mean) ** 2 for v in y) / len(y)
        for j, v in enumerate(y):
            out[i, j] = (v - mean) / (square + epsilon) ** 0.5 * (1 if weight is None else float(weight[j]))
            out[i, j] += 0 if bias is None else float(bias[j])
    return out


@pytest.mark.parametrize("is_rms", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 64), (4, 100), (2, 131)])
def test_norms(room, shape, is_rms):
    x, residual, weight, bias = normal(*shape), normal(*shape), normal(shape[1]), normal(shape[1])
    for added, factor, shift in ((None, None, None), (residual, weight, None), (residual, weight, bias)):
        want = naive_norm(x, added, factor, shift, 1e-3, is_rms)
        out, total = np.empty_like(x), np.empty_like(x)
        options = {"residual": added, "epsilon": 1e-3, "is_rms": is_rms}
        bound_normalise(x, factor, shift, **options, total=None if added is None else total, out=out)()
        compare.assert_close(out, want, 2e-6)
        if added is not None:
            compare.assert_same_bits(total, x + added)
        taken = x.copy()
        bound_normalise(taken, factor, shift, **options, out=taken)()
        compare.assert_same_bits(taken, out)


def test_norms_of_wide_arrays_over_threads(room):
    wide = normal(400, 210)
    x = wide[:, 3:203]
    outs = []
    for n_threads in (1, 2, 5):
        outs.append(np.full((400, 203), 7, np.float32))
        bound_normalise(x, n_threads=n_threads, out=outs[-1][:, 1:201])()
    for out in outs[1:]:
        compare.assert_same_bits(out, outs[0])
    assert (outs[0][:, [0, 201, 202]] == 7).all()
    np.testing.assert_allclose(outs[0][:, 1:201].mean(1), 0, atol=1e-6)


def test_a_nan_stays_in_its_row(room):
    x = normal(5, 40)
    x[2, 39] = np.nan
    out = np.empty_like(x)
    bound_normalise(x, out=out)()
    assert np.isnan(out[2]).all()
    assert np.isfinite(np.delete(out, 2, 0)).all()


def test_bad_calls():
    x = normal(3, 4)
    with pytest.raises(ArgumentError, match=r"name must be one of .* got 'mish'"):
        bound_apply("mish", x, x)
    with pytest.raises(ShapeError, match=r"one shape, got \(3, 4\) and \(2, 4\)"):
        bound_apply("exp", x, x[:2].copy())
    with pytest.raises(ArgumentError, match="x must be a float32 array in C order"):
        bound_apply("exp", x.T, x)
    with pytest.raises(ShapeError, match=r"weight must have shape \(4,\), got \(3,\)"):
        bound_normalise(x, x[:, 0], out=x)
    with pytest.raises(ShapeError, match=r"residual must have shape \(3, 4\), got \(2, 4\)"):
        bound_normalise(x, residual=x[:2], out=x)
