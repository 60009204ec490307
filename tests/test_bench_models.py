"""``python -m bench models`` and ``python -m bench report``: what figures become."""

import json

import numpy as np
import pytest

import pyclattn
from bench import models, report_page, report_plots
from bench.model_cases import CASES, Case, ratio, rows, uniform
from bench.model_worker import failure, flops
from bench.rows import Row
from pyclattn.graph.program import Op, Program, Value
from pyclattn.plan import Plan

BARS = {("pyclattn", "openvino"): 1.1, ("pyclattn", "onnxruntime"): 1.8}
ENGINES = ("pyclattn", "coclustered", "coclustered-int8+bf16", "openvino", "openvino-bf16", "onnxruntime")
CASE = Case("saliency 14", ENGINES, BARS, True, 4.0, 1.5)


def ran(*seconds, size=100, correlation=1.0, **more):
    return {
        "seconds": list(seconds),
        "bytes": size,
        "products": [0.5] * len(seconds),
        "correlation": correlation,
    } | more


FOUND = {
    "pyclattn": ran(1.0, 2.0, 1.0, size=90, flops=5e9),
    "coclustered": ran(0.6, 0.6, 0.6, layer_error=0.01, worst_layer=0.03),
    "coclustered-int8+bf16": ran(0.2, 0.2, 0.2, layer_error=0.01, worst_layer=0.03),
    "openvino": ran(1.2, 2.4, 9.0),
    "openvino-bf16": ran(0.7, 0.7, 0.7),
    "onnxruntime": ran(1.7, 3.4, 1.7),
}


def verdicts(found, case=CASE):
    return {row.what: (row.value and round(row.value, 6), row.verdict) for row in rows(case, found) if row.bar}


def test_ratios_of_the_same_rounds_beside_their_bars():
    assert verdicts(FOUND) == {
        "pyclattn against openvino": (1.2, "ok"),
        "pyclattn against onnxruntime": (1.7, "MISS"),
        "pyclattn: peak memory over openvino's": (0.9, "ok"),
        "clustered, float32, against OpenVINO's float32": (4.0, "ok"),
        "clustered, bf16 or int8, against OpenVINO's best": (3.5, "MISS"),
        "clustered, float32: time over its products'": (1.2, "ok"),
    }


@pytest.mark.parametrize("worse", [{"layer_error": 0.021}, {"correlation": 0.998}])
def test_only_what_keeps_the_answer_counts_as_ours(worse):
    engine = "coclustered-int8+bf16"
    got = verdicts(FOUND | {engine: FOUND[engine] | worse})
    assert got["clustered, bf16 or int8, against OpenVINO's best"] == (None, "none")


def test_only_what_keeps_the_answer_counts_as_theirs():
    got = verdicts(FOUND | {"openvino-bf16": ran(0.7, 0.7, 0.7, correlation=0.99)})
    assert got["clustered, bf16 or int8, against OpenVINO's best"] == (12.0, "ok")


class FakeWorker:
    """An engine that takes these seconds, one run after the other."""

    def __init__(self, engine, seconds, folder):
        self.engine, self.output, self.left = engine, folder / f"{engine}.npy", list(seconds)
        np.save(self.output, np.arange(3.0))

    def ask(self, line=""):
        if line == "about":
            return {"told": True}
        if not self.left:
            return {"failed": "no more"}
        return {"seconds": self.left.pop(0), "bytes": 7}

    def stop(self):
        pass


def test_quick_engines_are_warmed_up_and_run_often_slow_ones_once(monkeypatch, tmp_path):
    taken = {
        "pyclattn": [2.0, 1.0, 1.1, 1.2],
        "openvino": [61.0],
        "openvino-bf16": [16.0, 15.0, 17.0],
        "onnxruntime": [21.0, 22.0],
        "torch-eager": [1.0, 9.0],
    }
    monkeypatch.setattr(models, "REST", 0)
    monkeypatch.setattr(
        models, "started", lambda case, *_: [FakeWorker(name, taken[name], tmp_path) for name in case.engines]
    )
    found = models.measure(Case("saliency 14", tuple(taken)), 2, rounds=3)
    assert {name: own.get("seconds") for name, own in found.items()} == {
        "pyclattn": [1.0, 1.1, 1.2],  # the first does not count
        "openvino": [61.0],
        "openvino-bf16": [15.0, 17.0],
        "onnxruntime": [21.0, 22.0],
        "torch-eager": None,
    }
    assert found["torch-eager"] == {"failed": "no more"}
    assert (found["pyclattn"]["told"], found["pyclattn"]["correlation"]) == (True, pytest.approx(1))
    memory = models.measure(Case("encoder 64", ("pyclattn",), memory_share_bar=0.1), 2)
    assert memory["pyclattn"]["seconds"] == [2.0]  # one run says what there is to say


def test_engines_with_unlike_rounds_are_compared_by_medians():
    assert ratio(ran(60.0), ran(9.0, 5.0, 6.0)) == 10
    assert ratio(ran(4.0, 6.0, 9.0), ran(2.0, 1.0, 3.0)) == 3  # of 2, 6, 3


def test_every_case_of_clustered_engines_has_a_setting():
    cases = [case for case in CASES if "coclustered" in case.engines]
    assert len(cases) == 3
    assert all(Plan.of(uniform(case.name)).methods("any") == ("coclustered",) for case in cases)


def test_what_failed_is_said():
    found = FOUND | {"onnxruntime": {"failed": "no memory"}}
    assert verdicts(found)["pyclattn against onnxruntime"] == (None, "none")
    assert [row.note for row in rows(CASE, found) if row.value is None] == ["no memory", "onnxruntime: no memory"]
    assert all(row.value is None for row in rows(CASE, {"pyclattn": {"failed": "gone"}}))


def test_a_peer_that_was_refused_memory_counts_with_what_it_asked_for():
    refused = failure(RuntimeError("Failed to allocate memory for requested buffer of size 8000000000"))
    assert refused["bytes"] > 8e9
    assert failure(MemoryError())["bytes"] > 0
    assert failure(RuntimeError("no such node")) == {"failed": "no such node"}
    case = Case("encoder 64", ("pyclattn", "onnxruntime"), memory_share_bar=0.1)
    (row,) = rows(case, {"pyclattn": {"bytes": 4e8}, "onnxruntime": {"failed": "no", "bytes": 8e9}})
    assert (row.value, row.verdict) == (0.05, "ok")
    assert "failed to allocate" in row.note
    (row,) = rows(case, {"pyclattn": {"bytes": 4e8}, "onnxruntime": {"failed": "no such file"}})
    assert (row.value, row.note) == (None, "no such file")


def test_flops_of_a_product():
    ops = [Op("MatMul", ("x", "w"), ("y",))]
    weight = np.ones((8, 5), np.float32)
    program = Program([Value("x", "float32", ("n", 8))], [Value("y", "float32", ("n", 5))], ops, {"w": weight})
    assert flops(pyclattn.Model(program), {"x": np.ones((3, 8), np.float32)}) == 2 * 3 * 8 * 5


def test_flops_of_transposed_convolutions_are_those_that_are_run():
    ops = [Op("ConvTranspose", ("x", "w"), ("y",), {"strides": [2, 2], "pads": [1, 1, 1, 1]})]
    x = np.ones((1, 64, 8, 8), np.float32)
    for channels, products in ((128, 36), (8, 64)):  # for 4 x 4 outputs; of few channels all are run
        weight = np.ones((64, channels, 4, 4), np.float32)
        values = [Value("x", "float32", x.shape)], [Value("y", "float32", (1, channels, 16, 16))]
        model = pyclattn.Model(Program(*values, ops, {"w": weight}))
        assert flops(model, {"x": x}) == 2 * 64 * channels * 16 * products


def test_the_report_holds_every_row_and_picture(tmp_path):
    results, pages = tmp_path / "results", tmp_path / "pages"
    results.mkdir()
    shown = list(rows(CASE, FOUND, 1e10))
    content = {"machine": {"cpu": "<fast>"}, "peak": 1e10, "found": {"saliency 14": FOUND}}
    content["rows"] = [row.as_dict() for row in shown]
    (results / "models.json").write_text(json.dumps(content))
    given = ["--results", str(results), "--html", str(pages), "--markdown", str(pages / "report.md")]
    assert report_page.main(given) == 0
    page, text = (pages / "index.html").read_text(), (pages / "report.md").read_text()
    assert page.count("<tr>") == 1 + len(shown)
    assert page.count("data:image/png") == text.count("](report_") == 2
    assert all(row.what in text for row in shown)
    assert "&lt;fast&gt;" in page
    assert "python -m bench attention" in text  # among what is not measured
    assert text.startswith("# Report")
    assert "4 bars hold, 2 missed" in text


def test_without_results_the_report_says_so(tmp_path, capsys):
    assert report_page.main(["--results", str(tmp_path)]) == 1
    assert "no results" in capsys.readouterr().err


def test_times_of_attention_by_length():
    row = Row("exact", "exact", "1,024", 1.0, detail={"seconds": {"exact": {"median": 2.0}, "other": {"median": 1.0}}})
    assert report_plots.attention_times([row.as_dict()]) == {"exact": {1024: 2.0}}
    assert report_plots.exponent([10, 100], [1.0, 1000.0]) == pytest.approx(3)


@pytest.mark.parametrize("given", [["saliency", "1023"], ["saliency 1023"]])
def test_an_unknown_case_is_refused(given, capsys):
    with pytest.raises(SystemExit):
        models.main(["--case", *given])
    assert "no case begins with 'saliency 1023'; there are: minilm 32 128" in capsys.readouterr().err
