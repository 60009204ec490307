"""Exact attention against the definition, in every room and at every instruction set."""

from functools import cache

import compare
import inputs
import naive
import numpy as np
import pytest

from pyclattn import scaled_dot_product_attention as attend

LENGTHS = (1, 2, 15, 16, 17, 47, 48, 49, 191, 193, 255, 257, 300)
DIMS = (1, 3, 16, 32, 36, 64, 65, 96, 128)

# name -> what `inputs.tensors` takes
SHAPES = {
    **{f"L{n}": {"n": n, "dim": 16} for n in LENGTHS},
    **{f"S{n}": {"n": 33, "n_keys": n, "dim": 8} for n in (1, 2, 16, 49, 300, 513)},
    **{f"D{dim}": {"n": 49, "n_keys": 65, "dim": dim} for dim in DIMS},
    **{f"E{width}": {"n": 50, "n_keys": 70, "dim": 16, "width": width} for width in DIMS},
    "grouped": {"batch": 2, "heads": 6, "kv_heads": 2, "n": 49, "n_keys": 33, "dim": 36, "width": 20},
    "one_kv_head": {"batch": 1, "heads": 4, "kv_heads": 1, "n": 65, "dim": 64},
    "batch": {"batch": 3, "heads": 2, "n": 50, "n_keys": 61, "dim": 64, "width": 32},
    "long": {"heads": 1, "n": 40, "n_keys": 1500, "dim": 64},
}


@cache
def case(shape, kind):
    tensors = inputs.tensors(kind, seed=len(shape), **SHAPES[shape])
    return tensors, naive.attention(*tensors)


@pytest.mark.parametrize("kind", ["random", "blobs"])
@pytest.mark.parametrize("shape", SHAPES)
def test_plain(room, shape, kind):
    tensors, want = case(shape, kind)
    compare.assert_close(attend(*tensors), want, compare.EXACT)


@pytest.mark.parametrize("kind", inputs.KINDS)
def test_structured(room, kind):
    tensors, want = case("long", kind)
    compare.assert_close(attend(*tensors), want, compare.EXACT)


def bool_mask(shape, seed=0, share=0.5):
    return np.random.default_rng(seed).random(shape) < share


def float_mask(shape, seed=0):
    """Biases, with a third of the places shut."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < 0.33, -np.inf, rng.standard_normal(shape)).astype(np.float32)


B, H, L, S = 2, 4, 51, 67
HOLES = inputs.padding(B, S, holes=0.4)
TAIL = inputs.padding(B, S, lengths=[17, 67])
ALL_PADDED = inputs.padding(B, S, lengths=[0, 30])

# name -> arguments of the call; naive.attention takes key_padding for key_padding_mask
MASKS = {
    "causal": {"is_causal": True},
    "bool": {"attn_mask": bool_mask((B, H, L, S))},
    "bool_sparse": {"attn_mask": bool_mask((B, H, L, S), share=0.02)},  # rows that see nothing
    "bool_queries_keys": {"attn_mask": bool_mask((L, S))},
    "bool_heads": {"attn_mask": bool_mask((H, 1, S))},
    "bool_batch": {"attn_mask": bool_mask((B, 1, 1, S))},
    "bool_one": {"attn_mask": np.array([True])},
    "bool_none": {"attn_mask": np.zeros((1, 1, L, S), bool)},
    "bool_column": {"attn_mask": bool_mask((B, H, L, 1))},
    "bias": {"attn_mask": float_mask((B, H, L, S))},
    "bias_queries_keys": {"attn_mask": float_mask((L, S))},
    "bias_keys": {"attn_mask": float_mask((S,))},
    "bias_column": {"attn_mask": float_mask((B, 1, L, 1))},
    "bias_scalar": {"attn_mask": np.float32(-3.5)},
    "bias_float64": {"attn_mask": float_mask((B, 1, L, S)).astype(np.float64)},
    "bias_float16": {"attn_mask": float_mask((B, 1, L, S)).astype(np.float16)},
    "bias_shut_rows": {"attn_mask": np.where(np.arange(L)[:, None] % 5 == 0, -np.inf, float_mask((H, L, S)))},
    "padding_tail": {"key_padding_mask": TAIL},
    "padding_holes": {"key_padding_mask": HOLES},
    "padding_all": {"key_padding_mask": ALL_PADDED},
    "padding_none": {"key_padding_mask": np.zeros((B, S), bool)},
    "padding_causal_tail": {"key_padding_mask": TAIL, "is_causal": True},
    "padding_causal_holes": {"key_padding_mask": HOLES, "is_causal": True},
    "padding_bool": {"key_padding_mask": HOLES, "attn_mask": bool_mask((B, H, L, S))},
    "padding_bool_keys": {"key_padding_mask": HOLES, "attn_mask": bool_mask((B, 1, 1, S))},
    "padding_bias": {"key_padding_mask": HOLES, "attn_mask": float_mask((B, 1, L, S))},
    "bool_causal": {"attn_mask": bool_mask((1, H, L, S)), "is_causal": True},
    "bias_causal": {"attn_mask": float_mask((H, L, S)), "is_causal": True},
    "all_at_once": {"attn_mask": float_mask((B, H, L, S)), "is_causal": True, "key_padding_mask": HOLES},
    "scale": {"scale": 0.7},
    "scale_zero": {"scale": 0.0},
    "scale_negative": {"scale": -0.9},
    "scale_zero_causal_holes": {"scale": 0.0, "is_causal": True, "key_padding_mask": HOLES},
}


@cache
def masked_case(name, kv_heads):
    tensors = inputs.tensors(batch=B, heads=H, kv_heads=kv_heads, n=L, n_keys=S, dim=20, width=24)
    options = dict(MASKS[name])
    options["key_padding"] = options.pop("key_padding_mask", None)
    return tensors, naive.attention(*tensors, **options)


@pytest.mark.parametrize("name", MASKS)
def test_masks(room, name):
    tensors, want = masked_case(name, 2)
    compare.assert_close(attend(*tensors, **MASKS[name]), want, compare.EXACT)


@cache
def causal_case(n, n_keys):
    tensors = inputs.tensors(n=n, n_keys=n_keys, dim=32, seed=n)
    return tensors, naive.attention(*tensors, is_causal=True)


@pytest.mark.parametrize("n_keys", [1, 50, 400])
@pytest.mark.parametrize("n", [1, 2, 16, 49, 193, 385, 400])
def test_causal_lengths(room, n, n_keys):
    """Diagonals through every part of a block, with fewer and with more keys than queries."""
    tensors, want = causal_case(n, n_keys)
    compare.assert_close(attend(*tensors, is_causal=True), want, compare.EXACT)


@cache
def long_mask_case(kind):
    """Enough keys for several blocks, of which masks shut whole ones."""
    n, n_keys = 60, 1100
    tensors = inputs.tensors(n=n, n_keys=n_keys, dim=16, seed=4)
    far = np.abs(np.arange(n)[:, None] * 18 - np.arange(n_keys)) > 40
    if kind == "bool":
        options = {"attn_mask": ~far}
    elif kind == "bias":
        options = {"attn_mask": np.where(far, -np.inf, np.linspace(-2, 2, n_keys)).astype(np.float32)}
    else:
        options = {"key_padding_mask": (np.arange(n_keys) // 300 % 2 == 0)[None]}
    named = {"key_padding" if key == "key_padding_mask" else key: mask for key, mask in options.items()}
    return tensors, options, naive.attention(*tensors, **named)


@pytest.mark.parametrize("kind", ["bool", "bias", "padding"])
def test_whole_blocks_shut(room, kind):
    tensors, options, want = long_mask_case(kind)
    compare.assert_close(attend(*tensors, **options), want, compare.EXACT)


@pytest.mark.parametrize("size", [1e-30, 1e-3, 30.0, 1e3, 1e4])
def test_logits_of_every_size(room, size):
    """The largest logits near +-size; float32 holds a logit to 6e-8 of its size, and the output moves as much."""
    query, key, value = inputs.tensors(heads=2, n=60, n_keys=300, dim=16)
    logits = np.einsum("bhld,bhsd->bhls", query, key) * 0.25
    query = (query * (size / np.abs(logits).max())).astype(np.float32)
    want = naive.attention(query, key, value)
    compare.assert_close(attend(query, key, value), want, compare.EXACT + 1e-7 * size)
    compare.assert_close(
        attend(query, key, value, is_causal=True),
        naive.attention(query, key, value, is_causal=True), compare.EXACT + 1e-7 * size,
    )  # fmt: skip


def test_logits_rise_and_fall_by_thousands(room):
    """Each block of keys has a much larger maximum than the one before, or a much smaller one."""
    key = np.linspace(-1e4, 1e4, 2000, dtype=np.float32).reshape(1, 1, -1, 1)
    query = np.array([1.0, -1.0, 0.0, 0.5], np.float32).reshape(1, 1, -1, 1)
    value = np.random.default_rng(0).standard_normal((1, 1, 2000, 5), dtype=np.float32)
    compare.assert_close(attend(query, key, value, scale=1.0), naive.attention(query, key, value, scale=1.0), 1e-3)


def test_shared_huge_logit_cancels(room):
    """Logits near 1e4 that differ by whole numbers: exact in float32, so the output is as exact as any."""
    rng = np.random.default_rng(1)
    query = np.ones((1, 1, 7, 2), np.float32)
    key = np.stack([np.full(300, 10000.0), rng.integers(-6, 6, 300)], axis=-1)[None, None].astype(np.float32)
    value = rng.standard_normal((1, 1, 300, 8), dtype=np.float32)
    for sign in (1.0, -1.0):
        want = naive.attention(query * sign, key, value, scale=1.0)
        # exp2(x log2 e) with |x log2 e| near 1.4e4 keeps 9.8e-4 of absolute accuracy unless the peak is taken off first
        compare.assert_close(attend(query * sign, key, value, scale=1.0), want, 2e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_additive_finfo_min(room, dtype):
    """The usual -inf of model code: shut where others are open, uniform where all are shut, never NaN."""
    import ml_dtypes

    finfo = ml_dtypes.finfo(dtype)
    tensors = inputs.tensors(batch=2, heads=2, n=9, n_keys=70, dim=8)
    mask = np.zeros((2, 1, 9, 70), finfo.dtype)
    mask[bool_mask(mask.shape, seed=3)] = finfo.min
    mask[..., 0] = 0
    got = attend(*tensors, attn_mask=mask)
    compare.assert_close(got, naive.attention(*tensors, attn_mask=mask != finfo.min), compare.EXACT)
    if dtype != "float64":  # as float32, float64's smallest is -inf: there is nothing to attend to
        mask[:, :, 4] = finfo.min
        got = attend(*tensors, attn_mask=mask)
        assert np.isfinite(got).all()
        if dtype != "float16":  # -65504 leaves the differences between logits standing
            uniform = np.broadcast_to(tensors[2].astype(np.float64).mean(axis=2), got[:, :, 4].shape)
            compare.assert_close(got[:, :, 4], uniform, 1e-5)


def test_packed_is_each_sequence_alone(room):
    lengths, key_lengths = [5, 0, 1, 130, 49, 7], [3, 9, 1, 300, 0, 16]
    query, _, _ = inputs.tensors(heads=4, n=sum(lengths), dim=16, seed=1)
    _, key, value = inputs.tensors(heads=2, n=sum(key_lengths), dim=16, width=12, seed=2)
    offsets, key_offsets = np.cumsum([0, *lengths]), np.cumsum([0, *key_lengths])
    for is_causal in (False, True):
        got = attend(query[0], key[0], value[0], offsets=offsets, key_offsets=key_offsets, is_causal=is_causal)
        assert got.shape == (4, sum(lengths), 12)
        for s in range(len(lengths)):
            own, keys = slice(*offsets[s : s + 2]), slice(*key_offsets[s : s + 2])
            want = naive.attention(query[:, :, own], key[:, :, keys], value[:, :, keys], is_causal=is_causal)
            compare.assert_close(got[None, :, own], want, compare.EXACT)


@pytest.mark.parametrize("is_causal", [False, True])
def test_padding_behind_is_packed(room, is_causal):
    """The same tokens padded and packed give the same rows."""
    lengths = [0, 13, 70, 1]
    query, key, value = inputs.tensors(batch=4, heads=3, n=70, dim=16)
    mask = inputs.padding(4, 70, lengths=lengths)
    there = ~mask
    pack = lambda x: np.ascontiguousarray(x.swapaxes(1, 2)[there].swapaxes(0, 1))
    padded = attend(query, key, value, key_padding_mask=mask, is_causal=is_causal)
    packed = attend(pack(query), pack(key), pack(value), offsets=np.cumsum([0, *lengths]), is_causal=is_causal)
    compare.assert_close(pack(padded), packed, compare.EXACT)
    assert not padded[0].any()
