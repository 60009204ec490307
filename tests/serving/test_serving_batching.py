"""Requests that share a run get what they get alone; those that would not, do not share."""

import numpy as np
import pytest

from pyclattn.graph.program import Op, Program, Value
from pyclattn.model import Model
from pyclattn.serving.batching import Rule, n_tokens, padded_length, rule_of
from tests.serving.models import encoder, one_op, text


@pytest.fixture(scope="module")
def model():
    return Model(encoder(), n_threads=2)


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].shape == wanted[name].shape
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lengths", [[65, 66, 72, 71], [1, 8, 3], [130], [16, 16, 16], [593, 600]])
def test_requests_of_similar_length_get_what_they_get_alone(model, lengths):
    rule, requests = rule_of(model), text(lengths)
    assert rule.kind == "padded"
    assert len({rule.key(feeds) for feeds in requests}) == 1
    merged = rule.merge(requests)
    assert merged["input_ids"].shape[1] <= padded_length(max(lengths))
    for found, feeds in zip(rule.split(model(**merged), requests), requests):
        same(found, model(**feeds))


def test_a_request_of_several_rows_with_its_own_mask(model):
    rule, (one, two) = rule_of(model), text([20, 23])
    one = {name: np.repeat(a, 3, axis=0) for name, a in one.items()}
    one["attention_mask"][1, 15:] = 0
    found = rule.split(model(**rule.merge([two, one])), [two, one])
    same(found[0], model(**two))
    same(found[1], model(**one))


def test_lengths_far_apart_do_not_share(model):
    rule, (short, long, other) = rule_of(model), text([16, 200, 17])
    assert len({rule.key(feeds) for feeds in (short, long, other)}) == 3


@pytest.mark.parametrize("n", [1, 7, 8, 9, 100, 128, 1000, 5000, 8192])
def test_padding_is_a_sixteenth_at_most(n):
    assert 0 <= padded_length(n) - n <= max(7, n / 16)
    assert padded_length(padded_length(n)) == padded_length(n)


@pytest.mark.parametrize("change", ["batch", "length"])
def test_inputs_that_disagree_run_alone(model, change):
    (feeds,) = text([20])
    other = feeds["attention_mask"]
    feeds["attention_mask"] = np.repeat(other, 2, 0) if change == "batch" else other[:, :10]
    assert rule_of(model).key(feeds) is None


def test_rows_of_equal_shape():
    model = Model(one_op("Softmax", {"axis": 1}))
    rule, rng = rule_of(model), np.random.default_rng(0)
    requests = [{"x": rng.standard_normal((n, 4)).astype(np.float32)} for n in (1, 3, 2)]
    assert rule.kind == "rows"
    for found, feeds in zip(rule.split(model(**rule.merge(requests)), requests), requests):
        same(found, model(**feeds))


ALONE = {
    "mixes rows": one_op("Softmax", {"axis": 0}),
    "sums over rows": one_op("CumSum", constants={"axis": np.array(0)}),
    "a fixed batch": one_op("Relu", shape=(1, 4)),
    "an unknown rank": one_op("Relu", shape=("...",)),
    "another number of rows": one_op("Concat", {"axis": 0}, {"more": np.zeros((1, 4), np.float32)}),
}


@pytest.mark.parametrize("name", ALONE)
def test_models_whose_rows_depend_on_each_other_run_alone(name):
    assert rule_of(Model(ALONE[name])) == Rule()


def test_a_scale_of_the_whole_tensor_forbids_sharing():
    """Dynamic quantisation: the smallest and largest number of the batch set everyone's rounding."""
    ops = [
        Op("DynamicQuantizeLinear", ("x",), ("q", "scale", "zero")),
        Op("DequantizeLinear", ("q", "scale", "zero"), ("y",)),
    ]
    x, y = (Value(n, "float32", ("batch", 4)) for n in "xy")
    assert rule_of(Model(Program([x], [y], ops))).kind == "alone"


@pytest.mark.parametrize(("mask", "token"), [("attention_mask", 1), ("valid", 1), ("pad_mask", 0), ("is_pad", 0)])
def test_a_mask_is_known_by_what_it_does(mask, token):
    model = Model(encoder(mask=mask, token=token), n_threads=2)
    rule, requests = rule_of(model), text([65, 66, 72])
    assert (rule.kind, rule.masks) == ("padded", {mask: token})
    for feeds in requests:
        feeds[mask] = np.full_like(feeds.pop("attention_mask"), token)
    requests[1][mask][0, 60:] = 1 - token
    for found, feeds in zip(rule.split(model(**rule.merge(requests)), requests), requests):
        same(found, model(**feeds))


def test_padding_that_one_marks_is_filled_with_ones():
    """Zeros would be tokens: beside values of zero, as without a bias, none of the examples' numbers would tell."""
    axes = ("batch", "length")
    ops = [
        Op("Reshape", ("x", "heads"), ("q",)),
        Op("pyclattn:Attention", (*"qqq", "", "mask"), ("a",), {"name": "layer", "layout": "blhd", "is_self": True}),
        Op("Reshape", ("a", "flat"), ("y",)),
    ]
    values = Value("x", "float32", (*axes, 16)), Value("mask", "bool", axes), Value("y", "float32", (*axes, 16))
    sizes = {"heads": np.array([0, 0, 2, 8]), "flat": np.array([0, 0, 16])}
    model, rng = Model(Program([*values[:2]], [values[2]], ops, sizes)), np.random.default_rng(0)
    rule = rule_of(model)
    requests = [
        {"x": rng.standard_normal((1, n, 16)).astype(np.float32), "mask": np.zeros((1, n), bool)} for n in (5, 7)
    ]
    assert (rule.kind, rule.masks) == ("padded", {"mask": 0})
    for found, feeds in zip(rule.split(model(**rule.merge(requests)), requests), requests):
        same(found, model(**feeds))


def test_a_mask_that_is_not_kept_is_found_out():
    """Without its padding mask the same model attends to padding: requests of equal shape only."""
    program = encoder()
    for op in program.ops:
        if op.kind == "pyclattn:Attention":
            op.inputs = op.inputs[:3]
    assert rule_of(Model(program)).kind == "rows"


@pytest.mark.parametrize(
    ("attention", "kind", "longest"),
    [
        ("exact", "padded", None),
        ("coclustered", "padded", 1023),
        ({"method": "improved-clustered", "n_clusters": 4, "topk": 4}, "rows", None),
    ],
)
def test_clustered_attention_is_padded_only_where_it_is_exact(attention, kind, longest):
    rule = rule_of(Model(encoder(), attention=attention))
    assert (rule.kind, rule.longest) == (kind, longest)


def test_tokens_count_open_dimensions_only(model):
    assert n_tokens(model.program.inputs, text([77])[0]) == 77
    assert n_tokens(one_op("Relu").inputs, {"x": np.zeros((3, 4))}) == 3
