"""Plans: their JSON, their errors, and heads that run by them."""

import json

import numpy as np
import pytest

import pyclattn
from pyclattn.errors import ArgumentError, ModelFormatError
from pyclattn.graph.identity import fingerprint
from pyclattn.graph.program import Op, Program, Value
from pyclattn.layers import Linear, MultiHeadAttention
from pyclattn.model import Model, load
from pyclattn.plan import Calibrated, Choice, LengthClass, Plan
from pyclattn.plan.classes import progressions
from tests.calibration import models

NEAR = Choice("coclustered", {"n_exact": 64, "cluster_factor": 2.5})


def one_class(*choices, n_heads=models.HEADS, tokens=(1000, 2000), **more):
    return Calibrated(n_heads, (LengthClass(*tokens, choices, 0.01, 3.0),), **more)


def by_heads(heads, rest, n_heads=models.HEADS):
    """A plan that runs ``rest`` near, and ``heads`` exactly."""
    choices = Choice("exact", {}, heads), Choice(NEAR.method, NEAR.parameters, rest)
    return Plan(calibrated={"first": one_class(*choices, n_heads=n_heads)})


def test_json_there_and_back(tmp_path):
    plan = Plan(
        Choice("coclustered"), {"a": Choice("clustered", {"n_clusters": 9})},
        {"ü": one_class(Choice("exact", {}, (0, 2)), Choice("coclustered", {"n_exact": 8}, (1,)))}, "f" * 32, 0.02,
    )  # fmt: skip
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert Plan.of(str(tmp_path / "plan.json")) == plan


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(format_version=3), "format_version 3"),
        (lambda d: d.update(format_version=True), "format_version True"),
        (lambda d: d.update(format="other"), "not a plan"),
        (lambda d: d.pop("default"), "malformed"),
        (lambda d: d["default"].update(method="magic"), "magic"),
        (lambda d: d["default"].update(n_exact=3), "n_exact"),
        (lambda d: d["by_name"].update(x={"method": "coclustered", "n_exact": [1]}), "numbers"),
        (lambda d: d["by_name"].update(x={"method": "coclustered", "cluster_factor": -1}), "cluster_factor"),
        (lambda d: d["calibrated"]["first"].update(heads=4), "each of 4 heads"),
        (lambda d: d["calibrated"]["first"].update(heads=-3), "-3"),
        (lambda d: d["calibrated"]["first"].update(classes=[]), "length class"),
        (lambda d: d["calibrated"]["first"]["classes"][0].update(tokens=[9, 8]), "shortest"),
        (lambda d: d["calibrated"]["first"]["classes"][0].update(error="low"), "low"),
        (lambda d: d["calibrated"]["first"]["classes"][0]["choices"][0].update(heads=[2, 0]), "ascend"),
        (lambda d: d.update(max_error=1e999), "number"),
    ],
)
def test_altered_plans(tmp_path, change, words):
    data = json.loads(by_heads((0, 2), (1,)).to_json())
    change(data)
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(ModelFormatError) as caught:
        Plan.load(tmp_path / "plan.json")
    assert "plan.json" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "3", "[" * 100_000, "\xff"])
def test_what_is_no_plan(tmp_path, text):
    (tmp_path / "plan.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelFormatError, match=r"plan\.json"):
        Plan.load(tmp_path / "plan.json")
    with pytest.raises(ModelFormatError, match="cannot be read"):
        Plan.load(tmp_path / "nothing.json")


def test_every_slice_is_found():
    for bits in range(1, 1 << 7):
        numbers = [i for i in range(7) if bits >> i & 1]
        for step in (None, 1):
            found = progressions(numbers, step)
            assert [i for s in found for i in range(7)[s]] == numbers
            assert step is None or all(s.step == 1 for s in found)
    assert len(progressions([1, 3, 5])) == 1
    assert progressions([]) == []


def test_cluster_factor():
    plan = Plan.of({"method": "improved-clustered", "cluster_factor": 2})
    assert plan.parts("a", 2, 2, 900, 400) == [(slice(0, 2, 1), "improved-clustered", {"topk": 32, "n_clusters": 60})]
    with pytest.raises(ArgumentError, match="n_clusters both"):
        Plan.of({"method": "improved-clustered", "cluster_factor": 2, "n_clusters": 9})


def test_cluster_factor_of_coclustered_attention_fills_panels():
    (found,) = Plan.of({"method": "coclustered", "cluster_factor": 1.5}).parts("a", 2, 2, 5330, 5330)
    assert found[2]["n_query_clusters"] == 144  # 1.5 roots are 110


def test_key_cluster_factor():
    near = {"method": "coclustered", "key_cluster_factor": 1.5}
    for method in ("coclustered", "auto"):
        parts = Plan.of({**near, "method": method}).parts("a", 2, 2, 900, 6400)
        assert parts == [(slice(0, 2, 1), method, {"n_key_clusters": 120})]
    (found,) = Plan.of({**near, "cluster_factor": 1.5}).parts("a", 2, 2, 900, 1600)
    assert found[2] == {"n_query_clusters": 48, "n_key_clusters": 60}
    with pytest.raises(ArgumentError, match="key_cluster_factor and n_key_clusters both"):
        Plan.of({**near, "n_key_clusters": 9})
    with pytest.raises(ArgumentError, match="key_cluster_factor must be a positive number, got 0"):
        Plan.of({**near, "key_cluster_factor": 0})
    with pytest.raises(ArgumentError, match="no parameter key_cluster_factor"):
        Plan.of({**near, "method": "clustered"})


def test_plans_of_the_first_format_are_read():
    data = json.loads(by_heads((0, 2), (1,)).to_json())
    assert Plan.from_json(json.dumps({**data, "format_version": 1})) == by_heads((0, 2), (1,))


def test_the_nearest_length_class_is_taken():
    classes = [LengthClass(n, 2 * n, (Choice("coclustered", {"n_exact": n}),)) for n in (1000, 4000)]
    plan = Plan(calibrated={"a": Calibrated(1, tuple(classes))})
    for n_tokens, expected in ((1, 1000), (1000, 1000), (2800, 1000), (2850, 4000), (8000, 4000), (10**6, 4000)):
        for counts in ((n_tokens, 1), (1, n_tokens)):
            ((_, _, parameters),) = plan.parts("a", 1, 1, *counts)
            assert parameters["n_exact"] == expected


def test_lengths_that_no_class_tells_of_are_checked():
    near, limited = NEAR, Choice("coclustered", {"n_exact": 8, "max_error": 0.5})
    classes = LengthClass(1000, 1200, (near,)), LengthClass(9000, 9000, (limited,))
    plan = Plan(calibrated={"a": Calibrated(1, classes)}, max_error=0.02)
    limits = {500: 0.02, 900: None, 1200: None, 1500: None, 2000: 0.02, 7000: 0.5, 9**6: 0.5}
    for n_tokens, limit in limits.items():
        ((_, _, parameters),) = plan.parts("a", 1, 1, n_tokens, 1)
        assert parameters.get("max_error") == limit
    exact = Plan(calibrated={"a": one_class(Choice(), n_heads=1)}, max_error=0.02)
    assert exact.parts("a", 1, 1, 9**6, 1) == [(slice(0, 1, 1), "exact", {})]
    free = Plan(calibrated={"a": one_class(near, n_heads=1)})
    assert "max_error" not in free.parts("a", 1, 1, 9**6, 1)[0][2]


def test_a_length_far_from_all_samples_keeps_the_bound():
    """Its rows are in no clusters: what was calibrated errs by far more than the bound there."""
    program, feeds = models.attentions(names=["first"]), models.sample(3000, spread=3.0)
    calibrated = {"first": one_class(NEAR, tokens=(1100, 1100))}
    model = Model(program, attention=Plan(calibrated=calibrated, max_error=0.02), n_threads=2)
    _, report = model.run(None, feeds, report=True)
    (run,) = report.attentions
    assert run.fell_back.all()
    found, exact = (m(**feeds)["y0"] for m in (model, Model(program, attention="exact", n_threads=2)))
    np.testing.assert_allclose(found, exact, atol=1e-5)


def test_merge():
    short, long = one_class(NEAR), one_class(Choice(), tokens=(5000, 6000))
    merged = Plan(calibrated={"a": long}, model="m", max_error=0.01).merge(Plan(calibrated={"a": short, "b": short}))
    assert [c.shortest for c in merged.calibrated["a"].classes] == [1000, 5000]
    assert list(merged.calibrated) == ["a", "b"]
    assert merged.model == "m"
    again = merged.merge(Plan(calibrated={"a": one_class(Choice("clustered"), tokens=(1500, 1600))}))
    assert [c.shortest for c in again.calibrated["a"].classes] == [1500, 5000]
    with pytest.raises(ArgumentError, match=r"3 heads .* 4"):
        merged.merge(Plan(calibrated={"a": one_class(NEAR, n_heads=4)}))
    with pytest.raises(ArgumentError, match="different models"):
        merged.merge(Plan(model="other"))


def test_the_summary_lines_up():
    lines = by_heads((0, 2), (1,)).summary().splitlines()
    assert lines[0].split() == ["attention", "tokens", "heads", "method", "error", "speed"]
    assert lines[1].split() == ["first", "1000-2000", "0,2", "exact", "0.0100", "3.0x"]
    column = lines[0].index("method")
    assert [line[column:].split()[0] for line in lines] == ["method", "exact", "coclustered"]


# -- models -----------------------------------------------------------------------------------------------------------


def test_each_group_of_heads_runs_its_choice():
    length, program = 1200, models.attentions(names=["first"])
    feeds = models.sample(length, spread=1.0)
    heads = np.ascontiguousarray(feeds["x"].reshape(1, length, models.HEADS, -1).transpose(0, 2, 1, 3))
    exact = pyclattn.scaled_dot_product_attention(heads, heads, heads, n_threads=2)
    own = heads[:, 1:2]
    near = pyclattn.coclustered_attention(own, own, own, n_exact=64, n_query_clusters=96)
    expected = exact.copy()
    expected[:, 1:2] = near
    assert np.abs(near - exact[:, 1:2]).max() > 1e-5  # it is not exact
    found = Model(program, attention=by_heads((0, 2), (1,)), n_threads=2)(**feeds)["y0"] - feeds["x"]
    np.testing.assert_allclose(found, expected.transpose(0, 2, 1, 3).reshape(found.shape), atol=1e-5)
    np.testing.assert_array_equal(
        Model(program, attention=by_heads((0, 2), (1,)), n_threads=1)(**feeds)["y0"] - feeds["x"], found
    )


def test_heads_that_share_keys_run_together():
    feeds = models.sample(1200, heads=4, spread=1.0)
    program = models.attentions(names=["first"], heads=4, kv_heads=2)
    exact, near = (Model(program, attention=a, n_threads=2)(**feeds)["y0"] for a in ("exact", Plan(NEAR)))
    found = Model(program, attention=by_heads((0, 1), (2, 3), 4), n_threads=2)(**feeds)["y0"]
    half = found.shape[-1] // 2
    np.testing.assert_array_equal(found[..., :half], exact[..., :half])
    assert np.abs(found - exact)[..., half:].max() > 1e-5
    assert np.linalg.norm(found - near) < 0.1 * np.linalg.norm(near)
    with pytest.raises(ArgumentError, match="share keys"):
        Model(program, attention=by_heads((0, 2), (1, 3), 4))(**feeds)


def test_layers_run_by_a_plan_of_heads():
    x = models.sample(1200, spread=1.0)["x"]
    same = Linear(np.tile(np.eye(x.shape[2], dtype=np.float32), (3, 1)))
    exact, found = (
        MultiHeadAttention(models.HEADS, qkv=same, name="first", attention=a)(x)
        for a in ("exact", by_heads((0, 2), (1,)))
    )
    gap = np.abs(exact - found).max(axis=(0, 1)).reshape(models.HEADS, -1).max(axis=1)
    assert gap[0] == gap[2] == 0 < gap[1]
    packed = MultiHeadAttention(models.HEADS, qkv=same, name="first", attention=by_heads((0, 2), (1,)))
    np.testing.assert_allclose(packed(x[0], offsets=[0, 1200]), found[0], atol=1e-5)


def test_a_plan_for_other_head_counts():
    plan = by_heads((0, 2), (1, 3), 4)
    with pytest.raises(ArgumentError, match=r"4 heads for attention 'first', the model has 3"):
        Model(models.attentions(), attention=plan)(**models.sample(64))


def test_a_plan_for_another_model(tmp_path):
    ours, theirs = models.model(), models.model(heads=4)
    plan = Plan(NEAR, model=ours.fingerprint)
    assert Model(ours.program, attention=plan).plan is plan
    with pytest.raises(ArgumentError, match=f"another model.*{ours.fingerprint}.*{theirs.fingerprint}"):
        Model(theirs.program, attention=plan)
    with pytest.raises(ArgumentError, match="another model"):
        theirs.save(tmp_path / "m.safetensors", plan)


def test_a_plan_travels_with_the_model(tmp_path):
    first, second, third = (tmp_path / f"{n}.safetensors" for n in "abc")
    plan = by_heads((0, 2), (1,))
    models.model().save(first, plan)
    loaded = load(first)
    assert loaded.plan == plan
    assert loaded.describe_attentions()[0]["method"] == "exact, coclustered"
    assert load(first, "exact").plan == Plan()
    loaded.save(second)
    assert load(second).plan == plan
    loaded.save(third, Plan())
    assert load(third).plan == Plan()
    program = models.attentions()
    program.metadata["pyclattn.plan"] = "{"
    with pytest.raises(ModelFormatError, match=r"pyclattn\.plan"):
        Model(program)


def test_the_estimate_counts_the_parts():
    program = models.attentions(names=["first"])
    exact, near, parts = (
        Model(program, attention=a, n_threads=2).estimate(x=(1, 4000, models.HEADS * models.DEPTH))
        for a in ("exact", Plan(NEAR), by_heads((0, 2), (1,)))
    )
    assert exact < parts < near


# -- what a model is --------------------------------------------------------------------------------------------------


def linear(weight, name="w", kind="MatMul", dims=("n", 64)):
    x, y = Value("x", "float32", dims), Value("y", "float32", dims)
    return Program([x], [y], [Op(kind, ("x", name), ("y",))], {name: weight})


def test_fingerprints():
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    same = fingerprint(linear(weight))
    assert len(same) == 32
    for other in (linear(weight.T), linear(np.asfortranarray(weight)), linear(weight, "v"), linear(weight, kind="Add")):
        assert fingerprint(other) == same
    halves = linear(weight)
    halves.constants = {"w": np.tile(weight, (2, 1))[:64], "small": np.ones(9, np.float32)}
    assert fingerprint(halves) == same
    changed = weight.copy()
    changed[3, 4] += 1e-6
    for other in (linear(changed), linear(weight.astype(np.float64)), linear(weight, dims=("n", 1, 64))):
        assert fingerprint(other) != same


def test_the_fingerprint_is_that_of_the_file(tmp_path):
    model = models.model()
    model.save(tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors").fingerprint == model.fingerprint
