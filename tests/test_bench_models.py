"""The table of ``python -m bench models``: what the figures of one case become."""

from bench.models import Case, rows

CASE = Case("saliency 14", ("pyclattn", "openvino", "onnxruntime"), {"openvino": 1.1, "onnxruntime": 1.8}, True, 1.5)
OURS = {"seconds": [1.0, 2.0, 1.0], "bytes": 90, "products": [0.8, 1.6, 0.5], "difference": 0.0}


def peer(*seconds, size=100):
    return {"seconds": list(seconds), "bytes": size, "products": [0.0] * len(seconds), "difference": 1e-6}


def verdicts(**found):
    return {row.what.partition(": ")[2]: (row.value, row.verdict) for row in rows(CASE, found)}


def test_ratios_of_the_same_rounds_beside_their_bars():
    got = verdicts(pyclattn=OURS, openvino=peer(1.2, 2.4, 9.0), onnxruntime=peer(1.7, 3.4, 1.7))
    assert got == {
        "pyclattn": (1.0, ""),
        "against openvino": (1.2, "ok"),
        "peak memory over openvino's": (0.9, "ok"),
        "against onnxruntime": (1.7, "MISS"),
        "time over its products'": (1.25, "ok"),
    }


def test_what_failed_is_said():
    got = list(
        rows(CASE, {"pyclattn": OURS, "openvino": peer(1, 1, 1, size=80), "onnxruntime": {"failed": "no memory"}})
    )
    assert [row.verdict for row in got] == ["", "MISS", "MISS", "none", "ok"]
    assert got[3].note == "no memory"
    assert [row.value for row in rows(CASE, {"pyclattn": {"failed": "gone"}})] == [None]
