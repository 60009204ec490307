"""Calibration of small models: bounds kept, work resumed, bad input refused; the command line and its report."""

import json
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

import pyclattn
from pyclattn.calibration import calibrate, errors_of, quantize, report
from pyclattn.calibration.calibrate import _Prober
from pyclattn.calibration.ladder import COCLUSTERED, RIVAL, START, levels, setting_of
from pyclattn.calibration.metrics import METRICS
from pyclattn.calibration.pictures import short
from pyclattn.calibration.probing import Comparison, search
from pyclattn.calibration.records import Probe, Record, squares
from pyclattn.calibration.solving import expected_error, goal, length_classes, solve, solve_attention
from pyclattn.cli import main
from pyclattn.errors import ArgumentError, DTypeError, ModelFormatError
from pyclattn.graph.program import Op, Program, Value
from pyclattn.model import Model, load
from pyclattn.plan import Choice, Plan
from tests.calibration import models

pytestmark = pytest.mark.filterwarnings("ignore:all samples have")


@pytest.fixture(scope="module")
def small():
    return models.model()


@pytest.fixture(scope="module")
def samples():
    return [models.sample(1400, seed) for seed in range(2)]


@pytest.fixture
def steady(monkeypatch):
    """Times that a choice alone decides, as they are at 100,000 tokens: plans do not depend on the machine."""
    run = Comparison.run

    def timed(self, *choices):
        choice = choices[0]
        level = choice.parameters.get("n_exact", 2000)
        share = 0.05 * choice.parameters["cluster_factor"] + 0.0004 * level
        return replace(run(self, *choices), seconds=share * self.seen.seconds)

    monkeypatch.setattr(Comparison, "run", timed)


# -- the whole --------------------------------------------------------------------------------------------------------


def test_errors_stay_within_the_bound_on_other_inputs(small, samples, steady):
    plan = calibrate(small, samples, max_error=0.05)
    assert list(plan.calibrated) == small.attentions
    assert plan.model == small.fingerprint
    found = errors_of(small, plan, [models.sample(1300, seed) for seed in (7, 8)])
    assert [(e["sample"], e["attention"]) for e in found] == [(i, n) for i in (0, 1) for n in small.attentions]
    assert all(1e-4 < e["error"] <= 0.05 for e in found)
    for known in plan.calibrated.values():
        assert [(c.shortest, c.longest) for c in known.classes] == [(1400, 1400)]
        assert known.classes[0].error <= 0.05
        assert known.classes[0].choices[-1].method == "coclustered"


def test_errors_of_are_those_of_the_functions(small):
    near = {"n_exact": 32, "cluster_factor": 1.0}
    feed = models.sample(1200, spread=1.0)
    first, _ = errors_of(small, Plan(Choice("coclustered", near)), [feed])
    x = np.ascontiguousarray(feed["x"].reshape(1, 1200, models.HEADS, -1).transpose(0, 2, 1, 3))
    exact = pyclattn.scaled_dot_product_attention(x, x, x)
    found = pyclattn.coclustered_attention(x, x, x, n_exact=32, n_query_clusters=48)
    assert first["error"] == pytest.approx(np.linalg.norm(found - exact) / np.linalg.norm(exact), rel=1e-3)
    assert first["error"] > 1e-4


def test_padded_rows_do_not_count():
    x, mask, y = (Value(n, d, s) for n, d, s in (("x", "float32", (1, "n", 2, 16)), ("mask", "bool", (1, "n")),
                                                ("y", "float32", (1, "n", 2, 16))))  # fmt: skip
    op = Op("pyclattn:Attention", ("x", "x", "x", "", "mask"), ("y",), {"name": "only", "layout": "blhd"})
    model = Model(Program([x, mask], [y], [op]), n_threads=2)
    rows = models.sample(1200, heads=2)["x"].reshape(1, 1200, 2, 16)
    padding = np.arange(1200)[None] >= 1100
    rows[padding] = 3 * np.random.default_rng(0).standard_normal((100, 2, 16))  # in no cluster
    (found,) = errors_of(model, Plan.of("coclustered"), [{"x": rows, "mask": padding}])
    x, kept = np.ascontiguousarray(rows.swapaxes(1, 2)), slice(0, 1100)
    near = pyclattn.coclustered_attention(x, x, x, key_padding_mask=padding)[:, :, kept]
    exact = pyclattn.scaled_dot_product_attention(x, x, x, key_padding_mask=padding)[:, :, kept]
    assert found["error"] == pytest.approx(np.linalg.norm(near - exact) / np.linalg.norm(exact), rel=1e-3)
    assert squares(np.ones((1, 2, 4, 3)), 2, np.array([[True, False, False, True]])) == [6, 6]
    assert squares(np.ones((1, 4, 2, 3)), 2) == [12, 12]


def test_lengths_get_classes_of_their_own(small, steady):
    lengths = (1100, 1200, 2400, 300)
    plan = calibrate(small, [models.sample(n, n) for n in lengths], max_error=0.05)
    classes = plan.calibrated["first"].classes
    assert [(c.shortest, c.longest) for c in classes] == [(300, 300), (1100, 1200), (2400, 2400)]
    assert classes[0].choices == (Choice(),)  # too short to cluster
    assert Choice() not in classes[1].choices + classes[2].choices


def test_what_cannot_be_clustered_stays_exact():
    causal = models.model(is_causal=True)
    assert all(c.choices == (Choice(),) for a in calibrate(causal, [models.sample(1100)]).calibrated.values()
               for c in a.classes)  # fmt: skip
    for rows in (np.zeros, np.ones):  # constant: no error at all, and no division by it
        plan = calibrate(models.model(), [{"x": rows((1, 1100, 48), np.float32)}])
        assert plan.calibrated["first"].n_heads == 3
    huge = {"x": np.full((1, 1100, 48), 1e30, np.float32)}  # products overflow
    plan = calibrate(models.model(), [huge])
    assert plan.calibrated["second"].classes[0].choices == (Choice(),)


def test_one_length_is_said(small, samples, steady):
    with pytest.warns(UserWarning, match="all samples have 1400 tokens"):
        calibrate(small, samples[:1], progress=False)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([], "at least one"),
        ({"x": 1}, "list of mappings"),
        ([3], r"samples\[0\] must map"),
        ([{"z": np.ones((1, 2, 48), np.float32)}], r"samples\[0\]: .*z"),
        ([models.sample(9), {"x": np.full((1, 2, 48), np.nan, np.float32)}], r"samples\[1\]: input 'x' holds NaN"),
        ([{"x": np.ones((1, 0, 48), np.float32)}], "empty"),
        ([{"x": np.ones((1, 4, 47), np.float32)}], r"samples\[0\].*48"),
    ],
)
def test_bad_samples(small, samples, words):
    with pytest.raises(ArgumentError, match=words):
        calibrate(small, samples)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_error": 0}, "max_error"),
        ({"max_error": "low"}, "max_error"),
        ({"max_error": float("nan")}, "max_error"),
        ({"metric": lambda a, b: 0}, "belong together"),
        ({"max_metric": 0.1}, "belong together"),
        ({"metric": "rank", "max_metric": 0.1}, "one of 'correlation', 'cosine', 'top-1', or callable"),
        ({"metric": "cosine", "max_metric": float("nan")}, "max_metric must be a finite number, got nan"),
        ({"metric": "cosine", "max_metric": "low"}, "max_metric must be a finite number"),
        ({"metric": "cosine"}, "belong together"),
    ],
)
def test_bad_bounds(small, samples, options, words):
    with pytest.raises(ArgumentError, match=words):
        calibrate(small, samples, **options)


def test_a_model_without_attention():
    x, y = Value("x", "float32", ("n",)), Value("y", "float32", ("n",))
    with pytest.raises(ArgumentError, match="no attention"):
        calibrate(Model(Program([x], [y], [Op("Relu", ("x",), ("y",))])), [{"x": np.ones(3, np.float32)}])


# -- state ------------------------------------------------------------------------------------------------------------


def test_work_is_resumed(tmp_path, small, samples, steady, monkeypatch):
    """Stopped in the second sample; what was measured is not measured again, and the plan is the same."""
    path, runs = tmp_path / "state.json", []
    probe = _Prober._probe

    def counted(self, comparison, choice):
        runs.append((self.sample, comparison.seen.name, str(choice)))
        if limit and len({r[:2] for r in runs}) > 3:
            raise KeyboardInterrupt
        return probe(self, comparison, choice)

    monkeypatch.setattr(_Prober, "_probe", counted)
    limit = True
    with pytest.raises(KeyboardInterrupt):
        calibrate(small, samples, state=path)
    first, limit = [r for r in runs if r[:2] != runs[-1][:2]], False
    runs.clear()
    plan = calibrate(small, samples, state=path)
    assert runs
    assert not set(first) & set(runs)
    runs.clear()
    assert calibrate(small, samples, state=path) == plan
    assert not runs


def test_states_of_something_else(tmp_path, small, samples):
    path = tmp_path / "state.json"
    calibrate(small, samples[:1], state=path)
    with pytest.raises(ModelFormatError, match="2 threads, not on"):
        calibrate(models.model(heads=4), [models.sample(1100, heads=4)], state=path)
    for text in ("", "[]", "{}", json.dumps({**json.loads(path.read_text()), "format_version": 99})):
        path.write_text(text)
        with pytest.raises(ModelFormatError, match=r"state\.json: not a state"):
            calibrate(small, samples, state=path)


# -- metric -----------------------------------------------------------------------------------------------------------


def test_a_metric_tightens_the_bound(small, samples, steady):
    seen = []

    def metric(exact, found):
        (name,) = exact
        value = float(np.linalg.norm(found[name] - exact[name]) / np.linalg.norm(exact[name]))
        seen.append(value)
        return value

    loose = calibrate(small, samples, 0.5, metric=metric, max_metric=10.0)
    assert seen[:2] == [0, 0]  # exact outputs and themselves
    assert len(seen) == 4
    assert loose.max_error == 0.5
    wanted = 0.3 * max(seen)
    assert wanted > 0
    tight = calibrate(small, samples, 0.5, metric=metric, max_metric=wanted)
    assert tight.max_error < 0.5
    outputs = [(Model(small.program, attention=tight, n_threads=2)(**s), small(**s)) for s in samples]
    assert all(metric(exact, found) <= wanted for found, exact in outputs)


def test_a_metric_that_nothing_meets(small, samples):
    with pytest.warns(UserWarning, match="the plan is exact"):
        plan = calibrate(
            small, samples[:1], 0.5, metric=lambda exact, found: 2.0 * (found is not exact), max_metric=1.0
        )
    assert plan == Plan(model=small.fingerprint, max_error=0.5)


@pytest.mark.parametrize(
    ("value", "words"), [(0.98, r"is 0\.98, above max_metric = 0\.01: .*one minus it"), (np.nan, "is nan")]
)
def test_a_metric_that_exact_outputs_miss_is_told_after_one_run(small, samples, monkeypatch, value, words):
    """A similarity in place of a distance: no plan could hold."""
    runs = []
    call = Model.__call__
    monkeypatch.setattr(Model, "__call__", lambda self, **feed: runs.append(1) or call(self, **feed))
    with pytest.raises(ArgumentError, match=words):
        calibrate(small, samples, metric=lambda exact, found: value, max_metric=0.01)
    assert len(runs) == 1


def test_metrics_by_name():
    rng = np.random.default_rng(0)
    exact = {"y": rng.random((5, 7)), "zero": np.zeros((2, 3), np.float32), "id": np.arange(3)}
    assert [m(exact, exact) for m in METRICS.values()] == [0, 0, 0]
    moved = {**exact, "y": exact["y"] + 0.1 * rng.standard_normal((5, 7))}
    a, b = exact["y"], moved["y"]
    assert METRICS["correlation"](exact, moved) == pytest.approx(1 - np.corrcoef(a.ravel(), b.ravel())[0, 1])
    rows = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b)]
    assert METRICS["cosine"](exact, moved) == pytest.approx(1 - min(rows))
    swapped = {**exact, "y": a.copy()}
    swapped["y"][1, a[1].argmin()] = 2
    assert METRICS["top-1"](exact, swapped) == 0.2
    assert METRICS["cosine"](exact, {**exact, "zero": np.ones((2, 3))}) == 1
    for spoiled in ("y", "zero"):
        wrong = {**exact, spoiled: np.full_like(exact[spoiled], np.nan)}
        assert all(np.isnan(METRICS[name](exact, wrong)) for name in ("correlation", "cosine"))
    with pytest.raises(ArgumentError, match="none of the outputs id holds numbers with a fraction"):
        METRICS["top-1"]({"id": exact["id"]}, {"id": exact["id"]})


@pytest.mark.parametrize(("name", "most"), [("correlation", 1e-6), ("cosine", 1e-5), ("top-1", 0)])
def test_a_named_metric_is_kept(small, samples, steady, name, most):
    loose = [Model(small.program, attention=calibrate(small, samples, 0.5), n_threads=2)(**s) for s in samples]
    assert max(METRICS[name](small(**s), found) for s, found in zip(samples, loose)) > most
    plan = calibrate(small, samples, 0.5, metric=name, max_metric=most)
    fast = Model(small.program, attention=plan, n_threads=2)
    assert max(METRICS[name](small(**s), fast(**s)) for s in samples) <= most


# -- search and choice, on made-up measurements -----------------------------------------------------------------------


def record(n_tokens=5000, seconds=1.0, n_heads=4):
    return Record(n_heads, n_heads, n_tokens, n_tokens, seconds, [1.0] * n_heads)


def measured(scale, weights=(1, 1, 1, 1), slope=0.6, tries=None):
    """What a choice would give: errors that fall with its level, time that rises."""

    def run(choice):
        factor, level = choice.parameters["cluster_factor"], choice.parameters.get("n_exact")
        if tries is not None:
            tries.append(str(choice))
        if level is None:  # the rival: no good
            return Probe(0.9, [1.0] * len(weights))
        error = scale * (level / 64) ** -slope * factor**-0.5
        return Probe(0.08 * factor + 0.0004 * level, [w * error**2 for w in weights])

    return run


def test_the_search_brackets_the_target():
    for scale in (0.001, 0.03, 0.06, 0.2, 9.0):
        found, tries = record(), []
        search(found, measured(scale, tries=tries), 0.02, [])
        assert len(tries) == len(set(tries)) <= 18
        probes = sorted(found.probes[START.name])
        good = [found.error(START.name, n) <= 0.02 for n in probes]
        assert good == sorted(good)
        assert good[-1] or probes[-1] >= 512  # within, unless none was on the way up
        assert not good[0] or probes[0] == 32
        assert (RIVAL.name in found.probes) == (scale >= 0.2)


def test_the_next_sample_begins_where_the_last_ended():
    first, second, tries = record(), record(), []
    search(first, measured(0.06), 0.02, [])
    search(second, measured(0.061, tries=tries), 0.02, [first])
    assert len(tries) <= 4
    again = list(tries)
    search(second, measured(0.061, tries=tries), 0.02, [first])
    assert tries == again


def test_key_clusters_grow_where_exact_keys_do_not_help():
    """As on genes: what is not exact is many keys of little weight each."""
    tries = []

    def run(choice):
        tries.append(str(choice))
        given = choice.at(10_000, 10_000)
        others, level = given.get("n_key_clusters", 75), given.get("n_exact", 0)
        return Probe(
            0.1 + 1e-4 * (others + level), [(0.03 * (others / 75) ** -0.5 * (1 + level / 256) ** -0.1) ** 2] * 4
        )

    found = record(10_000)
    search(found, run, 0.016, [])
    (choice,) = solve([found], 0.04).choices
    assert choice.at(10_000, 10_000)["n_key_clusters"] > 150
    assert len(tries) <= 18


def test_query_clusters_grow_alone_where_key_clusters_do_not_help():
    """As on images, where the error may be large."""

    def run(choice):
        given = choice.parameters
        factor, others = given.get("cluster_factor"), given.get("key_cluster_factor", 0.75)
        seconds = 0.1 + 0.02 * factor + 0.1 * others + 4e-4 * given.get("n_exact", 2000)
        return Probe(seconds, [(0.1 / factor * (given.get("n_exact", 32) / 64) ** -0.5) ** 2] * 4)

    found = record(10_000)
    search(found, run, 0.016, [])
    (choice,) = solve([found], 0.04).choices
    assert choice.parameters["cluster_factor"] == 2.5
    assert "key_cluster_factor" not in choice.parameters


def test_all_heads_together_where_they_err_alike():
    records = [record(), record()]
    for i, own in enumerate(records):
        search(own, measured(0.06 + 0.002 * i), goal(0.02, 2), records[:i])
    option = solve(records, 0.02)
    assert len(option.choices) == 1
    assert option.choices[0].method == "coclustered"
    assert max(option.errors) < option.expected <= 0.02
    assert option.share < 0.5


def test_a_head_that_cannot_be_clustered_is_exact():
    records = [record()]
    search(records[0], measured(0.5, weights=(0.001, 1, 0.001, 0.001)), 0.015, [])
    aside, rest = solve(records, 0.02).choices
    assert (aside.method, aside.heads) == ("exact", (1,))
    assert (rest.method, rest.heads) == ("coclustered", (0, 2, 3))


def test_nothing_is_chosen_that_is_no_faster_or_not_finite():
    slow, wild = record(seconds=0.05), record()
    search(slow, measured(0.01), 0.015, [])
    search(wild, measured(float("nan")), 0.015, [])
    for own in (slow, wild):
        assert solve([own], 0.02).choices == (Choice(),)


def test_the_worst_sample_counts():
    assert expected_error([0.01] * 20) < expected_error([0.01] * 4) < expected_error([0.01]) < 0.03
    assert expected_error([0.01, 0.03]) >= 0.03
    assert expected_error([0.01, float("inf")]) == float("inf")
    assert expected_error([0.0]) < 1e-9


def test_length_classes():
    records = [record(n) for n in (3000, 1000, 1400, 1600)]
    assert [[r.n_tokens for r in own] for own in length_classes(records)] == [[1000, 1400], [1600], [3000]]


def test_levels_rise_to_the_end():
    for low, high in ((32, 1024), (64, 64), (256, 512)):
        found = levels(low, high)
        assert (found[0], found[-1]) == (low, high)
        assert all(0 < b - a <= max(8, 0.25 * a) for a, b in pairwise(found))
    assert COCLUSTERED[0].rungs(300) == (32, 64, 128)


def test_names_without_what_all_share():
    assert short(["a.b.c"]) == {"a.b.c": "a.b.c"}
    assert list(short(["m.1.self", "m.1.cross", "m.2.self"]).values()) == ["1.self", "1.cross", "2.self"]
    assert list(short(["a", "b"]).values()) == ["a", "b"]


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, small):
    small.save(tmp_path / "model.safetensors")
    np.savez(tmp_path / "one.npz", **models.sample(1025, 1))
    np.save(tmp_path / "two.npy", models.sample(1600, 2)["x"])
    np.savez(tmp_path / "nan.npz", x=np.full((1, 1100, 48), np.nan, np.float32))
    Plan(by_name={"stranger": Choice("coclustered")}).save(tmp_path / "stranger.json")
    return tmp_path


def test_the_command_line(files, capsys, steady):
    model, one, two = (str(files / n) for n in ("model.safetensors", "one.npz", "two.npy"))
    plan, whole, report = (str(files / n) for n in ("plan.json", "with.safetensors", "report"))
    given = ["calibrate", model, one, "--max-error", "0.1", "-o", plan, "--state", str(files / "s.json")]
    assert main(given) == 0
    assert main(["calibrate", model, two, "-o", plan, "--merge", plan, "--embed", whole, "--report", report]) == 0
    out = capsys.readouterr()
    lines = out.err.splitlines()  # no bar without a terminal
    assert len(lines) == 2
    assert all(line.startswith("pyclattn: all samples have") for line in lines)
    assert "1025" in out.out
    known = Plan.load(plan).calibrated["first"]
    assert [c.shortest for c in known.classes] == [1025, 1600]
    assert load(whole).plan == Plan.load(plan)
    for extra in ([], ["--attention", plan]):
        assert main(["run", whole, "-i", one, "-o", str(files / "out.npz"), *extra]) == 0
    text = (files / "report" / "report.md").read_text()
    pictures = re.findall(r"\]\((.*?)\)", text)
    assert pictures == ["errors.png", "heads.png", "whole.png", "times.png", "output_0.png", "clusters.png"]
    for name in pictures:
        assert (files / "report" / name).read_bytes()[:4] == b"\x89PNG"
    assert "first" in text


def test_a_report_of_each_head(steady):
    """Errors of heads in the chosen family, of heads set aside too; none where nothing was tried."""
    records = {"a": [record(), record()], "b": [record()]}
    for own in records["a"]:
        search(own, measured(0.5, weights=(0.001, 1, 0.002, 0.001)), 0.01, [])
    records["b"][0].is_fixed = True
    longest = {name: (own, solve_attention(own, 0.02).classes[-1]) for name, own in records.items()}
    assert list(report.head_curves(longest)) == ["a"]
    curve = report.head_curves(longest)["a"]
    assert curve.aside == {1}
    assert curve.chosen in curve.shares
    family, level = setting_of(longest["a"][1].choices)
    at = curve.shares.tolist().index(curve.chosen)
    error = 0.5 * (level / 64) ** -0.6 * dict(family.fixed)["cluster_factor"] ** -0.5
    np.testing.assert_allclose(curve.errors[at], error * np.sqrt([0.001, 1, 0.002, 0.001]), rtol=1e-6)


def test_a_report_of_what_stays_exact(tmp_path):
    """Short inputs, and an output of whole numbers: no setting was tried, no picture of clusters."""
    calibrate(models.model(), [models.sample(100)], report=tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert re.findall(r"\]\((.*?)\)", text) == ["whole.png", "times.png", "output_0.png"]
    assert "No setting was tried" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: g.__setitem__(-1, "plan.txt"), "must end in .json"),
        (lambda g: g.__setitem__(2, "nothing.npz"), "nothing.npz"),
        (lambda g: g.extend(["--max-error", "-1"]), "max_error"),
        (lambda g: g.__setitem__(-1, "none/plan.json"), "folder that exists"),
        (lambda g: g.extend(["--embed", "none/m.safetensors"]), "folder that exists"),
        (lambda g: g.extend(["--state", "none/s.json"]), "folder that exists"),
        (lambda g: g.extend(["--report", "two.npy"]), "report must be a folder, 'two.npy' cannot be made"),
        (lambda g: g.extend(["--merge", "nothing.json"]), "nothing.json"),
        (lambda g: g.extend(["--merge", "stranger.json"]), "attention names 'stranger', the model's are first, second"),
        (lambda g: g.insert(3, "nan.npz"), "nan.npz: input 'x' holds NaN or infinity"),
        (lambda g: g.extend(["--metric", "f1", "--max-metric", "0.1"]), "metric must be one of 'correlation', "),
        (lambda g: g.extend(["--max-metric", "0.1"]), "belong together"),
    ],
)
def test_wrong_commands(files, capsys, change, words, monkeypatch):
    monkeypatch.chdir(files)
    given = ["calibrate", "model.safetensors", "one.npz", "-o", "plan.json"]
    change(given)
    assert main(given) == 1
    assert words in capsys.readouterr().err
    assert not (files / "plan.json").exists()


def test_a_report_needs_matplotlib(small, samples, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ArgumentError, match=r"pyclattn\[calibrate\]"):
        calibrate(small, samples, report=tmp_path)


def test_a_metric_gives_a_number(small, samples, steady):
    with pytest.raises(ArgumentError, match="metric must return a number, got 'near'"):
        calibrate(small, samples, metric=lambda exact, found: "near", max_metric=1e-3)


@pytest.mark.parametrize("function", [calibrate, quantize, lambda model, samples: errors_of(model, Plan(), samples)])
def test_a_path_is_no_model(function, samples):
    with pytest.raises(DTypeError, match=r"model must be a pyclattn\.Model, as pyclattn\.load gives it, got str"):
        function("model.safetensors", samples)
