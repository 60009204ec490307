"""Statements about any plan: what is written comes back, what is altered is refused or whole, every head runs once."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyclattn.calibration.solving import expected_error, goal
from pyclattn.errors import ModelFormatError
from pyclattn.plan import Calibrated, Choice, LengthClass, Plan
from pyclattn.plan.choice import choice_of

factors = st.floats(0.1, 9).map(lambda x: round(x, 3))
coclustered = st.fixed_dictionaries(
    {"method": st.just("coclustered"), "n_exact": st.integers(0, 4096)},
    optional={"cluster_factor": factors, "key_cluster_factor": factors, "rank": st.integers(1, 64)},
)
improved = st.fixed_dictionaries(
    {"method": st.just("improved-clustered"), "topk": st.integers(1, 512), "cluster_factor": factors},
    optional={"clustering": st.sampled_from(["lsh", "kmeans", "metric"]), "max_error": factors},
)
parameters = st.one_of(st.just("exact"), coclustered, improved)
lengths = st.integers(1, 10**6)
OTHERS = [None, True, -1, 0, 2, 1.5, 1e308, "", "exact", [], {}, [1], {"method": "exact"}]


@st.composite
def calibrated(draw, n_heads, group=1):
    """Length classes, heads shared among choices, those of a group together."""
    classes = []
    for _ in range(draw(st.integers(1, 3))):
        owners = draw(st.lists(st.integers(0, 2), min_size=n_heads // group, max_size=n_heads // group))
        choices = []
        for owner in sorted(set(owners)):
            heads = tuple(h for h in range(n_heads) if owners[h // group] == owner)
            choice = choice_of(draw(parameters))
            choices.append(Choice(choice.method, choice.parameters, heads))
        shortest, longest = sorted((draw(lengths), draw(lengths)))
        told = [draw(st.none() | factors) for _ in range(2)]
        classes.append(LengthClass(shortest, longest, tuple(choices), *told))
    return Calibrated(n_heads, tuple(sorted(classes, key=lambda c: c.shortest)))


@st.composite
def plans(draw, n_heads=6, group=1):
    names = draw(st.lists(st.text(max_size=8), max_size=3, unique=True))
    return Plan(
        choice_of(draw(parameters)), {"by name": choice_of(draw(parameters))},
        {name: draw(calibrated(n_heads, group)) for name in names}, draw(st.sampled_from(["", "f" * 32])),
        draw(st.none() | factors),
    )  # fmt: skip


@given(plans())
def test_what_is_written_comes_back(plan):
    assert Plan.from_json(plan.to_json()) == plan
    assert len(plan.summary().splitlines()) >= 2


@given(plans(), plans())
def test_merged_plans_are_plans(first, second):
    both = first.merge(second)
    assert Plan.from_json(both.to_json()) == both
    for name, theirs in second.calibrated.items():
        for c in theirs.classes:
            assert c in both.calibrated[name].classes


@pytest.mark.parametrize("group", [1, 2])
@given(data=st.data(), n_queries=lengths, n_keys=lengths)
def test_every_head_runs_once_at_any_length(group, data, n_queries, n_keys):
    plan = data.draw(plans(group=group))
    for name, known in plan.calibrated.items():
        parts = plan.parts(name, 6, 6 // group, n_queries, n_keys)
        heads = [h for own, _, _ in parts for h in range(6 // group)[own]]
        assert sorted(heads) == list(range(6 // group))
        near = known.nearest(max(n_queries, n_keys))
        seen = near.tells_of(max(n_queries, n_keys))
        for _, method, arguments in parts:
            assert not {"cluster_factor", "key_cluster_factor"} & set(arguments)
            assert min([n for n in arguments.values() if type(n) is int], default=0) >= 0
            if method != "exact" and not seen and plan.max_error is not None:
                assert arguments["max_error"] > 0


@settings(max_examples=200)
@given(plans(), st.data())
def test_altered_plans_are_refused_or_whole(plan, data):
    """One value anywhere in the file is another."""
    tree = json.loads(plan.to_json())
    at = tree
    while True:
        keys = list(at) if isinstance(at, dict) else range(len(at))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if not isinstance(at[key], (dict, list)) or data.draw(st.booleans()):
            break
        at = at[key]
    at[key] = data.draw(st.sampled_from(OTHERS))
    try:
        found = Plan.from_json(json.dumps(tree))
    except ModelFormatError:
        return
    assert Plan.from_json(found.to_json()) == found
    for name, known in found.calibrated.items():
        found.parts(name, known.n_heads, known.n_heads, 3000, 3000)


@given(st.lists(st.floats(1e-6, 0.5), min_size=1, max_size=9), st.floats(1.01, 3))
def test_what_is_expected_is_no_less_than_what_was_seen(errors, factor):
    expected = float(expected_error(errors))
    assert expected >= max(errors)
    np.testing.assert_allclose(expected_error(np.array(errors) * factor), factor * expected, rtol=1e-6)
    assert goal(0.02, len(errors)) < 0.02
