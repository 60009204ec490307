"""Operators that stand for several become the plain ones, or the attention they are."""

import numpy as np
import pytest
from onnx_models import Builder, check, kinds

D = 16
B, H, L, W = 2, 4, 7, 8
X = np.random.default_rng(1).standard_normal((B, L, H * W)).astype(np.float32)
MASK = np.ones((B, L), np.int32)
MASK[1, 5:] = 0


def attention_of(program, report, mask):
    assert [found.mask for found in report.attentions] == [mask]
    assert report.attentions[0].n_heads == H
    assert not {"Attention", "com.microsoft:Attention", "com.microsoft:MultiHeadAttention"} & set(kinds(program))


@pytest.mark.parametrize("mask", ["none", "key padding", "causal", "bias"])
def test_attention_of_onnx_runtime(mask):
    g = Builder()
    x = g.input("x", ["b", "l", H * W], X)
    inputs = [x, g.weight(H * W, 3 * H * W), g.weight(3 * H * W)]
    if mask == "key padding":
        inputs += [g.input("mask", ["b", "l"], MASK, "int32")]
    if mask == "bias":
        inputs += ["", "", g.input("bias", [1, H, L, L], g.rng.standard_normal((1, H, L, L)))]
    attributes = {"unidirectional": 1} if mask == "causal" else {}
    y = g("Attention", *inputs, domain="com.microsoft", num_heads=H, **attributes)
    attention_of(*check(g.model(y), g.feeds), mask)


@pytest.mark.parametrize("mask", ["none", "key padding", "bias"])
def test_multi_head_attention_of_onnx_runtime(mask):
    g = Builder()
    x = g.input("x", ["b", "l", H * W], X)
    inputs = [g("MatMul", x, g.weight(H * W, H * W)) for _ in range(3)] + [g.weight(3 * H * W)]
    if mask == "key padding":
        inputs += [g.input("mask", ["b", "l"], MASK, "int32")]
    if mask == "bias":
        inputs += ["", g.input("bias", [1, H, L, L], g.rng.standard_normal((1, H, L, L)))]
    y = g("MultiHeadAttention", *inputs, domain="com.microsoft", num_heads=H)
    attention_of(*check(g.model(y), g.feeds), mask)


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("mask", ["none", "key padding", "causal", "bias"])
def test_attention_of_onnx(mask, rank):
    g = Builder()
    shape = (B, L, H * W) if rank == 3 else (B, H, L, W)
    inputs = [g.input(name, ["b", *shape[1:]], g.rng.standard_normal(shape)) for name in "qkv"]
    if mask == "key padding":
        mask_input = g.input("mask", ["b", L], MASK, "int64")
        kept = g("Cast", g("Unsqueeze", mask_input, g.const([1, 2], np.int64)), to=9)
        inputs += [g("Expand", kept, g.const([1, 1, L, L], np.int64))]
    if mask == "bias":
        inputs += [g.input("bias", [1, H, L, L], g.rng.standard_normal((1, H, L, L)))]
    attributes = {"q_num_heads": H, "kv_num_heads": H} if rank == 3 else {}
    y = g("Attention", *inputs, is_causal=int(mask == "causal"), scale=0.3, **attributes)
    attention_of(*check(g.model(y, opset=23), g.feeds), mask)


def test_attention_that_shows_its_scores_stays():
    g = Builder()
    inputs = [g.input(name, ["b", H, L, W], g.rng.standard_normal((B, H, L, W))) for name in "qkv"]
    y, _, _, scores = g("Attention", *inputs, outputs=4)
    program, report = check(g.model(y, scores, opset=23), g.feeds)
    assert kinds(program) == ["Attention"]
    assert not report.attentions


def test_other_fused_forms():
    g = Builder()
    x = g.input("x", ["b", "l", D], g.rng.standard_normal((B, L, D)))
    y = g("SkipLayerNormalization", x, g("Neg", x), g.weight(D), g.weight(D), g.weight(D), domain="com.microsoft")
    y = g("BiasGelu", y, g.weight(D), domain="com.microsoft")
    y = g("FastGelu", y, g.weight(D), domain="com.microsoft")
    y = g("FusedMatMul", y, g.weight(8, D), transB=1, alpha=0.5, domain="com.microsoft")
    program, _ = check(g.model(y), g.feeds)
    assert not [kind for kind in kinds(program) if kind.startswith("com.microsoft")]


def test_fused_matmul_in_an_attention():
    g = Builder()
    q, k, v = (g.input(name, ["b", H, L, W], g.rng.standard_normal((B, H, L, W))) for name in "qkv")
    scores = g("FusedMatMul", q, k, transB=1, alpha=0.25, domain="com.microsoft")
    _, report = check(g.model(g("MatMul", g("Softmax", scores, axis=-1), v)), g.feeds)
    assert report.attentions[0].scale == pytest.approx(0.25)
