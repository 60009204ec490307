"""Co-clustered attention with products of bfloat16 for the keys that are taken."""

import compare
import inputs
import numpy as np
import pytest

from pyclattn import _dispatch, coclustered_attention, scaled_dot_product_attention
from pyclattn.errors import BackendError
from pyclattn.functional.auto import auto_attention
from pyclattn.functional.precision import missing_bfloat16


@pytest.fixture(autouse=True)
def where_it_can_be():
    """As compiled, else in the reference."""
    with _dispatch.forced("reference" if missing_bfloat16() else None):
        yield


def attend(tensors, **options):
    return coclustered_attention(*tensors, precision="bfloat16", **options)


@pytest.mark.parametrize("n_exact", [32, 128])
def test_what_rounding_adds_is_small_beside_the_methods_own_error(n_exact):
    tensors = inputs.tensors("smooth", heads=2, n=1500, dim=32)
    exact = scaled_dot_product_attention(*tensors)
    near = coclustered_attention(*tensors, n_exact=n_exact)
    rounded = attend(tensors, n_exact=n_exact)
    own = compare.relative_error(near, exact)
    assert 0 < compare.relative_error(rounded, near) < 2.0**-8
    assert compare.relative_error(rounded, exact) < 1.05 * own + 1e-4


def test_logits_of_keys_are_not_rounded():
    """Near 80, a bfloat16 is one of every half."""
    tensors = inputs.tensors(heads=2, n=1100, dim=31)
    bias = 80 * np.random.default_rng(0).random((1, 1100), dtype=np.float32)
    near = coclustered_attention(*tensors, key_bias=bias, n_exact=100)
    assert compare.relative_error(attend(tensors, key_bias=bias, n_exact=100), near) < 2.0**-8


def test_the_same_bits_for_any_number_of_threads():
    tensors = inputs.tensors("blobs", batch=2, heads=3, n=1200, dim=36, width=21)
    want = attend(tensors, n_threads=1)
    for n_threads in (2, 5):
        compare.assert_same_bits(attend(tensors, n_threads=n_threads), want)


def test_a_key_that_is_not_finite_and_masked_reaches_nobody():
    query, key, value = inputs.tensors(n=1100, dim=16)
    key[:, :, 1000:], value[:, :, 1000:] = np.nan, np.inf
    mask = np.arange(1100)[None] >= 1000
    got = attend((query, key, value), key_padding_mask=mask)
    near = coclustered_attention(query, key, value, key_padding_mask=mask)
    assert compare.relative_error(got, near) < 2.0**-8


def test_short_sequences_are_exact():
    tensors = inputs.tensors(heads=2, n=300, dim=16)
    compare.assert_same_bits(attend(tensors), scaled_dot_product_attention(*tensors, precision="bfloat16"))


def test_auto_takes_it_along(monkeypatch):
    tensors = inputs.tensors(heads=2, n=1200, dim=16)
    for method, want in (
        ("coclustered", attend(tensors)),
        ("exact", scaled_dot_product_attention(*tensors, precision="bfloat16")),
    ):
        monkeypatch.setattr("pyclattn.functional.auto.method_for", lambda *_, m=method, **__: m)
        compare.assert_same_bits(auto_attention(*tensors, precision="bfloat16"), want)


def test_what_is_missing_is_named():
    with _dispatch.forced("cython", isa="baseline"), pytest.raises(BackendError, match="bfloat16 products need"):
        attend(inputs.tensors(n=1200))
