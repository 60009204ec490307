"""model.run(..., report=True), limits in plans, and "auto"."""

import threading
import warnings

import numpy as np
import pytest

from pyclattn.errors import AccuracyError, AccuracyWarning, ArgumentError
from pyclattn.functional import costs
from pyclattn.graph.program import Op, Program, Value
from pyclattn.model import Model
from pyclattn.plan import Calibrated, Choice, LengthClass, Plan

N, H, D = 1200, 3, 16
CO = {"method": "coclustered", "n_exact": 32}


def program(**attributes):
    """Two attentions in a row of x (B, L, H, D)."""
    shape = ("batch", "length", H, D)
    ops = [
        Op("pyclattn:Attention", (a,) * 3, (b,), {"name": f"layer{i}", "layout": "blhd", **attributes})
        for i, (a, b) in enumerate((("x", "h"), ("h", "y")))
    ]
    return Program([Value("x", "float32", shape)], [Value("y", "float32", shape)], ops, {})


def tokens(length=N, batch=1, seed=0):
    rng = np.random.default_rng(seed)
    centers = 2 * rng.standard_normal((30, H, D))
    x = centers[rng.integers(0, 30, (batch, length))] + 0.7 * rng.standard_normal((batch, length, H, D))
    return x.astype(np.float32)


def test_a_report_changes_nothing_and_tells_all():
    model = Model(program(), attention={"layer0": CO, "default": "exact"}, n_threads=2)
    x = tokens(batch=2)
    (y,) = model.run(None, {"x": x})
    (again,), report = model.run(["y"], {"x": x}, report=True)
    np.testing.assert_array_equal(again, y)
    first, second = report.attentions
    assert (first.name, first.method, first.parameters, first.heads) == (
        "layer0",
        "coclustered",
        {"n_exact": 32},
        (0, 1, 2),
    )
    assert first.errors.shape == (2, H)
    assert (first.errors > 0).all()
    assert not first.fell_back.any()
    assert (second.name, second.method, second.parameters) == ("layer1", "exact", {})
    assert (second.errors == 0).all()
    assert 0 < first.seconds + second.seconds < report.seconds


def test_heads_above_a_limit_are_exact_and_said():
    x = tokens()
    _, seen = Model(program(), attention=CO).run(None, {"x": x}, report=True)
    errors = seen.attentions[0].errors[0]
    limit = float(np.sort(errors)[1])
    worst = int(errors.argmax())
    (mixed,), report = Model(program(), attention={"layer0": {**CO, "max_error": limit}}).run(
        None, {"x": x}, report=True
    )
    first = report.attentions[0]
    np.testing.assert_array_equal(first.errors[0], errors)
    assert np.flatnonzero(first.fell_back[0]).tolist() == [worst]
    assert f"max_error={limit}" in str(report)
    (plain,) = Model(program(), attention={"layer0": {**CO, "max_error": limit}}).run(None, {"x": x})
    np.testing.assert_array_equal(mixed, plain)


@pytest.mark.parametrize("is_reported", [False, True])
def test_warn_and_raise_name_the_attention(is_reported):
    x = tokens()
    with pytest.warns(AccuracyWarning) as warned:
        Model(program(), attention={**CO, "max_error": 0, "on_error": "warn"}).run(None, {"x": x}, report=is_reported)
    said = [str(warning.message) for warning in warned]
    assert len(said) == 2
    for i, message in enumerate(said):
        assert message.startswith(f"attention 'layer{i}': estimated errors are above max_error = 0: sequence 0 head 0:")
    with pytest.raises(AccuracyError, match="attention 'layer0': estimated errors are above max_error = 0: sequence 0"):
        Model(program(), attention={**CO, "max_error": 0, "on_error": "raise"}).run(None, {"x": x}, report=is_reported)


@pytest.mark.parametrize("action", ["warn", "raise"])
def test_heads_are_named_by_their_numbers_in_the_model(action):
    """Where a plan runs some heads so and others so."""
    limited = {"n_exact": 32, "max_error": 0.0, "on_error": action}
    choices = (Choice("exact", {}, (0, 2)), Choice("coclustered", limited, (1,)))
    plan = Plan(calibrated={"layer0": Calibrated(H, (LengthClass(1, 5000, choices),))})
    model = Model(program(), attention=plan)
    names = r"attention 'layer0': estimated errors are above max_error = 0: sequence 0 head 1: [\d.e-]+$"
    with pytest.warns(AccuracyWarning, match=names) if action == "warn" else pytest.raises(AccuracyError, match=names):
        model(x=tokens())


@pytest.mark.parametrize("method", ["coclustered", "auto", "improved-clustered"])
def test_below_the_limit_nothing_is_said(method):
    """And the output is that without a limit."""
    x, asked = tokens(), {"method": method}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Model(program(), attention={**asked, "max_error": 1e9, "on_error": "warn"})(x=x)
    np.testing.assert_array_equal(found["y"], Model(program(), attention=asked)(x=x)["y"])


def test_the_table_lines_up():
    model = Model(program(), attention={"layer0": {**CO, "max_error": 1e-9}, "layer1": "improved-clustered"})
    _, report = model.run(None, {"x": tokens()}, report=True)
    head, *lines, total = str(report).splitlines()
    assert len(lines) == 2
    for column in ("method", "parameters"):
        at = head.index(column)
        assert all(line[at - 1] == " " and line[at] != " " for line in lines)
    assert "0-2" in lines[0]
    assert total.startswith("attention ")


def test_parts_of_the_heads_are_lines_of_their_own():
    choices = (Choice("exact", {}, (0, 2)), Choice("coclustered", {"n_exact": 32}, (1,)))
    plan = Plan(calibrated={"layer0": Calibrated(H, (LengthClass(1, 5000, choices),))})
    _, report = Model(program(), attention=plan).run(None, {"x": tokens()}, report=True)
    assert [(run.name, run.method, run.heads) for run in report.attentions] == [
        ("layer0", "exact", (0, 2)), ("layer0", "coclustered", (1,)), ("layer1", "exact", (0, 1, 2)),
    ]  # fmt: skip


def test_causal_attention_with_a_limit_is_exact():
    attention = {"method": "improved-clustered", "n_clusters": 20}
    x = tokens(400)
    _, report = Model(program(is_causal=True), attention=attention).run(None, {"x": x}, report=True)
    assert report.attentions[0].method == "improved-clustered"
    assert report.attentions[0].errors is None
    assert "not known" in str(report)
    (y,), report = Model(program(is_causal=True), attention={**attention, "max_error": 0.1}).run(
        None, {"x": x}, report=True
    )
    assert report.attentions[0].method == "exact"
    np.testing.assert_array_equal(y, Model(program(is_causal=True)).run(None, {"x": x})[0])


def test_callers_at_once_get_their_own_reports():
    model = Model(program(), attention=CO, n_threads=1)
    inputs = [tokens(1100 + 50 * i, seed=i) for i in range(4)]
    expected = [model.run(None, {"x": x}, report=True)[1] for x in inputs]
    found = [None] * 8

    def ask(i):
        if i % 2:
            found[i] = model.run(None, {"x": inputs[i // 2]}, report=True)[1]
        else:
            model.run(None, {"x": inputs[i // 2]})

    callers = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for own, report in zip(expected, found[1::2]):
        assert [run.name for run in report.attentions] == ["layer0", "layer1"]
        for a, b in zip(own.attentions, report.attentions):
            np.testing.assert_array_equal(a.errors, b.errors)


@pytest.mark.parametrize("method", ["coclustered", "exact"])
def test_auto_is_measured_when_loaded_and_not_in_a_run(monkeypatch, method):
    asked = []
    monkeypatch.setattr(costs, "rates", lambda n_threads: asked.append(n_threads))
    model = Model(program(), attention={"method": "auto", "n_exact": 32}, n_threads=2)
    assert asked == [2]
    monkeypatch.setattr(costs, "faster", lambda *args, **kwargs: method)
    x = tokens()
    (y,), report = model.run(None, {"x": x}, report=True)
    assert [run.method for run in report.attentions] == [method] * 2
    np.testing.assert_array_equal(y, Model(program(), attention=CO if method != "exact" else "exact")(x=x)["y"])
    Model(program(), attention=CO)
    assert asked == [2]


def test_auto_asks_nothing_about_a_short_input(monkeypatch):
    monkeypatch.setattr(costs, "rates", lambda n_threads: None)
    monkeypatch.setattr(costs, "faster", lambda *args, **kwargs: pytest.fail("asked"))
    model, x = Model(program(), attention="auto"), tokens(500)
    np.testing.assert_array_equal(model(x=x)["y"], Model(program())(x=x)["y"])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_error": -1}, "max_error must be a number of at least 0, got -1"),
        ({"max_error": "low"}, "max_error must be a number of at least 0, got 'low'"),
        ({"on_error": "stop"}, "on_error must be 'exact', 'warn' or 'raise', got 'stop'"),
    ],
)
def test_bad_limits_are_refused_when_loaded(parameters, message):
    for method in ("clustered", "improved-clustered", "coclustered", "auto"):
        with pytest.raises(ArgumentError, match=message):
            Plan.of({"method": method, **parameters})
    with pytest.raises(ArgumentError, match="attention 'exact' has no parameter"):
        Plan.of({"method": "exact", **parameters})


def test_a_limit_is_in_the_memory_estimate():
    without = Model(program(), attention=CO).estimate(x=(1, 8000, H, D))
    assert Model(program(), attention={**CO, "max_error": 0.1}).estimate(x=(1, 8000, H, D)) > without
