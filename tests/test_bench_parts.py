"""Benches of several parts, and what the benches of outputs and estimates find on small inputs."""

import json

import numpy as np
import pytest

from bench import estimates, outputs, report_page
from bench.__main__ import COMMANDS
from bench.parts import gathered, run_parts
from bench.rows import Row


def test_a_stopped_run_goes_on_with_what_is_missing(tmp_path, capsys):
    path, measured = tmp_path / "found.json", []

    def part(name, value):
        def measure(n_threads):
            assert n_threads == 2
            measured.append(name)
            if value is None:
                raise KeyboardInterrupt
            yield Row("group", f"{name} is", "", value, bar=2.0)

        return measure

    stopped = {"one": part("one", 3.0), "two": part("two", None)}
    with pytest.raises(KeyboardInterrupt):
        run_parts("some", "", stopped, path, ["--n-threads", "2"])
    parts = {"one": part("one", 1.0), "two": part("two", 2.5)}
    assert run_parts("some", "", parts, path, ["--n-threads", "2"]) == 0
    assert measured == ["one", "two", "two"]
    assert "2 bars hold, 0 missed" in capsys.readouterr().out
    assert run_parts("some", "", parts, path, ["--n-threads", "2", "--only", "one"]) == 1  # now it is below its bar
    assert [(row["part"], row["value"], row["verdict"]) for row in json.loads(path.read_text())["rows"]] == [
        ("one", 1.0, "MISS"), ("two", 2.5, "ok"),
    ]  # fmt: skip
    run_parts("some", "", parts, path, ["--n-threads", "2", "--fresh"])
    assert measured == ["one", "two", "two", "one", "one", "two"]


def test_every_row_says_when_it_was_measured(tmp_path, monkeypatch):
    path, parts = tmp_path / "found.json", {}
    for name in ("one", "two"):
        parts[name] = lambda name=name: iter([Row("group", name, "", np.float32(1))])

    def marks(at, due):
        monkeypatch.setattr("bench.machine.moment", lambda: at)
        return [row.measured for row in gathered(parts, path, 1, due)]

    assert marks("first", None) == ["first", "first"]
    assert marks("later", ["two"]) == ["first", "later"]
    assert [row["measured"] for row in json.loads(path.read_text())["rows"]] == ["first", "later"]
    (part,) = report_page.parts(_renamed(path, "dense"))
    assert "rows measured first to later" in part.about


def test_every_command_that_keeps_results_has_a_section_in_the_report():
    keep_nothing = {"overhead", "report", "demo"}
    assert set(report_page.PARTS) == set(COMMANDS) - keep_nothing


def _renamed(path, name):
    path.rename(path.with_name(f"{name}.json"))
    return path.parent


def test_attentions_are_timed_and_let_go_again():
    before = dict(outputs.METHODS)
    x = np.ones((1, 1, 20, 8), np.float32)
    with outputs.clock() as seconds:
        outputs.METHODS["exact"](x, x, x)
        outputs.METHODS["coclustered"](x, x, x)
    assert len(seconds) == 2
    assert min(seconds) > 0
    assert before == outputs.METHODS


def test_ratios_leave_out_errors_that_are_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    rows = 2 * rng.standard_normal((30, 16))[rng.integers(0, 30, (1, 2, 1500))]
    spread = rows + np.array([0.0, 1.0])[:, None, None] * rng.standard_normal(
        rows.shape
    )  # the first head clusters fully
    layer = (spread.astype(np.float32),) * 3

    class Contest:
        task = "matching"

    monkeypatch.setattr(estimates, "_layers", lambda contest: {"only": layer})
    ratios = estimates._ratios(Contest(), 2)
    assert ratios.shape == (len(estimates.N_EXACT["matching"]),)
    assert ratios.min() > 0.4
    assert ratios.max() < 2.5
