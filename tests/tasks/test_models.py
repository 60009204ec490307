"""The tasks' models with random weights against their definitions in float64."""

import definitions
import numpy as np
import pytest

import pyclattn
from bench.tasks import assignment, captures, lighterglue, tis_transformer, xfeat
from bench.tasks.xfeat import Features
from pyclattn.errors import ModelFormatError
from pyclattn.graph.ops.attention import METHODS
from pyclattn.layers.attention import Heads

LETTERS = np.array(list("ACGTN"))


def image_features(n, seed, size=(320, 256)):
    rng = np.random.default_rng(seed)
    descriptors = rng.standard_normal((n, 64))
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    return Features((rng.random((n, 2)) * size).astype(np.float32), descriptors.astype(np.float32), size)


@pytest.fixture(scope="module")
def glue():
    return definitions.lighterglue_weights()


def test_lighterglue_is_its_definition(glue, monkeypatch):
    monkeypatch.setattr(assignment, "LEAST", 0.0)
    first, second = image_features(90, 1), image_features(70, 2, (200, 300))
    scores = definitions.lighterglue(
        glue, (first.keypoints, second.keypoints), (first.descriptors, second.descriptors), (first.size, second.size)
    )
    pairs, chances = lighterglue.LighterGlue(glue)(first, second)
    assert len(pairs) > 5
    assert pairs.tolist() == definitions.mutual(scores, 0.0).tolist()
    np.testing.assert_allclose(chances, np.exp(scores[pairs[:, 0], pairs[:, 1]]), rtol=1e-4)


def test_lighterglue_takes_a_plan_by_name(glue, monkeypatch):
    monkeypatch.setattr(assignment, "LEAST", 0.0)
    first, second = image_features(300, 1), image_features(300, 2)
    exact = lighterglue.LighterGlue(glue)(first, second)[1]
    few = {"method": "clustered", "n_clusters": 2}
    assert set(lighterglue.LighterGlue.attentions) == {f"{i}.{kind}" for i in range(6) for kind in ("self", "cross")}
    for name in ("0.self", "5.cross"):
        found = lighterglue.LighterGlue(glue, {name: few})(first, second)[1]
        assert found.shape != exact.shape or not np.array_equal(found, exact)
    assert len(exact) > 5
    same = lighterglue.LighterGlue(glue, {"default": "exact"}, n_threads=1)(first, second)[1]
    np.testing.assert_array_equal(same, exact)


def test_lighterglue_says_what_a_file_lacks(glue):
    lacking = {name: array for name, array in glue.items() if "3.cross_attn.to_v" not in name}
    with pytest.raises(ModelFormatError, match=r"transformers\.3\.cross_attn\.to_v\.weight"):
        lighterglue.LighterGlue(lacking)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 700), (700, 5), (600, 520), (128, 129), (0, 4), (4, 0)])
def test_mutual_in_blocks_is_mutual_at_once(n, m):
    rng = np.random.default_rng(n + m)
    b = 3 * rng.standard_normal((m, 16)).astype(np.float32)
    a = (b[rng.integers(0, m, n)] if m else np.zeros((n, 16))) + rng.standard_normal((n, 16)) / 2
    known_a, known_b = (-rng.random(k).astype(np.float32) for k in (n, m))
    pairs, chances = assignment.mutual(a.astype(np.float32), b, known_a, known_b)
    if not n * m:
        assert pairs.shape == (0, 2)
        assert chances.shape == (0,)
        return
    scores = definitions.double_softmax(a.astype(np.float32), b, known_a, known_b)
    assert pairs.tolist() == definitions.mutual(scores, assignment.LEAST).tolist()
    np.testing.assert_allclose(chances, np.exp(scores[pairs[:, 0], pairs[:, 1]]), rtol=1e-3)


def test_mutual_gives_equal_points_one_partner():
    a = np.array([[9, 0], [9, 0], [0, 9]], np.float32)
    pairs, _ = assignment.mutual(a, a[1:], np.zeros(3, np.float32), np.zeros(2, np.float32))
    assert pairs.tolist() == [[0, 0], [2, 1]]


# -- TIS Transformer --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tis_weights():
    return definitions.tis_weights()


@pytest.mark.parametrize("length", [3, 254, 600])
def test_tis_transformer_is_its_definition(tis_weights, length):
    sequence = "".join(LETTERS[np.random.default_rng(length).integers(0, 5, length)])
    found = tis_transformer.TisTransformer(tis_weights)(sequence)
    wanted = definitions.tis(tis_weights, tis_transformer.tokens_of(sequence))
    assert np.ptp(wanted) > 0.01
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 40])
def test_windows_see_themselves_and_their_neighbours(length):
    q, k, v = np.random.default_rng(length).standard_normal((3, 1, 2, length, 16)).astype(np.float32)
    found = tis_transformer.windowed(Heads(q, k, v), 8)
    for h in range(2):
        wanted = definitions.windows(*(a[0, h].astype(float) for a in (q, k, v)), 8)
        np.testing.assert_allclose(found[0, :, 16 * h : 16 * h + 16], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [0, tis_transformer.LONGEST + 1])
def test_tis_transformer_refuses_lengths(tis_weights, length):
    with pytest.raises(ValueError, match="1 to 30,000 nucleotides"):
        tis_transformer.TisTransformer(tis_weights)("A" * length)


# -- XFeat ------------------------------------------------------------------------------------------------------------


def test_xfeat_is_its_definition():
    w = definitions.xfeat_weights()
    image = np.random.default_rng(0).integers(0, 256, (96, 64, 3)).astype(np.uint8)
    features, reliability, heat = definitions.xfeat_maps(w, image.mean(-1))
    extract = xfeat.XFeat(w)
    maps = extract._network(image=image.mean(-1, dtype=np.float32)[None, None])
    for name, wanted in (("features", features), ("reliability", reliability[None]), ("heat", heat[None])):
        np.testing.assert_allclose(maps[name][0], wanted, rtol=2e-3, atol=2e-5, err_msg=name)
    found = extract(image, 20)
    assert found.size == (64, 96)
    assert len(found.keypoints) == 20
    around = np.lib.stride_tricks.sliding_window_view(np.pad(heat, 2), (5, 5)).max((2, 3))
    wanted = np.argwhere((heat == around) & (heat > xfeat.THRESHOLD))[:, ::-1]
    assert sorted(extract(image, 10_000).keypoints.astype(int).tolist()) == sorted(wanted.tolist())
    assert len(wanted) > 20
    np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=1), 1, rtol=1e-5)


def test_xfeat_samples_where_a_keypoint_is():
    """Between pixels of a map of cells: linearly, and by the cubic kernel with a = -0.75, zeros around."""
    extract = xfeat.XFeat(definitions.xfeat_weights())
    row = np.random.default_rng(0).standard_normal(12).astype(np.float32)
    values = row[None, None, None].repeat(10, 2)
    x = np.array([0.0, 30.0, 47.0, 61.0, 95.0])
    grid = np.stack([2 * x / 95 - 1, np.zeros(5)], 1)[None, None].astype(np.float32)
    at = x * 96 / 95 / 8 - 0.5

    def cubic(t, a=-0.75):
        near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
        return np.where(t <= 1, near, np.where(t < 2, far, 0))

    away = abs(at[:, None] - np.arange(12))
    for mode, weights in (("linear", np.maximum(0, 1 - away)), ("cubic", cubic(away))):
        np.testing.assert_allclose(extract._sample(mode, values, grid)[:, 0], weights @ row, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(33, 32), (32, 32, 3, 1), (0, 32), (32,)])
def test_xfeat_refuses_shapes(shape):
    with pytest.raises(ValueError, match="multiples of 32"):
        xfeat.XFeat(definitions.xfeat_weights())(np.zeros(shape, np.uint8), 10)


# -- captures ---------------------------------------------------------------------------------------------------------


def test_captured_arrays_are_what_attention_was_given():
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 50, 8)).astype(np.float32)
    results = []

    def run():
        results.append(METHODS["exact"](q, k, v, scale=0.7))
        METHODS["exact"](v, k, q)

    found = captures.captured(run, ["a", None])
    assert sorted(found) == ["a.k", "a.q", "a.v"]
    again = pyclattn.scaled_dot_product_attention(*(found[f"a.{n}"][None] for n in "qkv"))
    np.testing.assert_allclose(again, results[0], rtol=1e-5, atol=1e-6)
    assert METHODS["exact"] is pyclattn.scaled_dot_product_attention


def test_captured_puts_attention_back_after_an_error():
    with pytest.raises(ZeroDivisionError):
        captures.captured(lambda: 1 / 0, [])
    assert METHODS["exact"] is pyclattn.scaled_dot_product_attention


def test_captured_knows_every_attention_of_a_model(tis_weights):
    model = tis_transformer.TisTransformer(tis_weights)
    found = captures.captured(lambda: model("ACGT" * 10), model.attentions)
    assert sorted({name.rsplit(".", 1)[0] for name in found}) == sorted(model.attentions)
    assert {a.shape for a in found.values()} == {(3, 42, 16)}
