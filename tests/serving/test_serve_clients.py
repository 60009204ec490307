"""Clients as they are: tritonclient, and requests as KServe's documentation writes them."""

import json
import threading

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from pyclattn.functional.precision import missing_bfloat16
from pyclattn.model import Model
from tests.serving.models import encoder, one_op, save, text
from tests.serving.running import plain, running


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save(folder / "model.safetensors", encoder())
    save(folder / "other.safetensors", one_op("Log"))
    with running(folder) as service:
        yield service


@pytest.fixture
def client(service):
    with triton.InferenceServerClient(f"127.0.0.1:{service.port}") as client:
        yield client


@pytest.fixture(scope="module")
def expected():
    model = Model(encoder(), n_threads=2)
    return lambda feeds: model(**feeds)


def given(feeds, is_binary=True):
    made = []
    for name, array in feeds.items():
        made.append(triton.InferInput(name, list(array.shape), "INT64"))
        made[-1].set_data_from_numpy(array, binary_data=is_binary)
    return made


@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize("wanted", [None, True, False])
def test_infer(client, expected, is_binary, wanted):
    (feeds,) = text([33])
    outputs = None
    if wanted is not None:
        outputs = [triton.InferRequestedOutput("pooler_output", binary_data=wanted)]
    result = client.infer("model", given(feeds, is_binary), outputs=outputs, request_id="seven")
    assert result.get_response()["id"] == "seven"
    assert result.get_response()["model_name"] == "model"
    names = ["hidden", "pooler_output"] if wanted is None else ["pooler_output"]
    assert [output["name"] for output in result.get_response()["outputs"]] == names
    for name in names:
        np.testing.assert_allclose(result.as_numpy(name), expected(feeds)[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_requests(client, expected, encoding):
    (feeds,) = text([64])
    result = client.infer(
        "model", given(feeds), request_compression_algorithm=encoding, response_compression_algorithm=encoding
    )
    np.testing.assert_allclose(result.as_numpy("hidden"), expected(feeds)["hidden"], rtol=1e-5, atol=1e-6)


def test_many_at_once(service, expected):
    """Six clients with five requests each: every one gets its own answer, whoever shared its run."""
    requests, found = text(list(range(5, 35))), {}

    def ask(first):
        with triton.InferenceServerClient(f"127.0.0.1:{service.port}") as client:
            for i in range(first, len(requests), 6):
                found[i] = client.infer("model", given(requests[i])).as_numpy("hidden")

    clients = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    for i, feeds in enumerate(requests):
        np.testing.assert_allclose(found[i], expected(feeds)["hidden"], rtol=1e-5, atol=1e-6)


def test_metadata_and_health(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("model")
    assert client.is_model_ready("model", "1")
    assert not client.is_model_ready("nothing")
    assert not client.is_model_ready("model", "2")
    assert client.get_server_metadata()["name"] == "pyclattn"
    found = client.get_model_metadata("model")
    assert found["inputs"][0] == {"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]}
    assert found["outputs"][0] == {"name": "hidden", "datatype": "FP32", "shape": [-1, -1, 16]}
    assert found["versions"] == ["1"]
    assert {m["name"] for m in client.get_model_repository_index()} == {"model", "other"}


@pytest.mark.parametrize(
    ("model", "change", "status", "words"),
    [
        ("nothing", {}, "404", "there is: model, other"),
        ("model", {"version": "9"}, "404", "has version 1"),
        ("model", {"names": ("input_ids", "mask")}, "400", "missing attention_mask; unknown mask"),
        ("model", {"ids": 50}, "400", "beyond"),
        ("model", {"length": 700}, "400", "beyond"),
        ("model", {"output": "nothing"}, "400", "the model has hidden, pooler_output"),
        ("model", {"timeout": 1}, "504", "no answer within"),
    ],
)
def test_errors(client, model, change, status, words):
    (feeds,) = text([change.get("length", 20)])
    feeds["input_ids"][0, 3] = change.get("ids", 3)
    feeds = dict(zip(change.get("names", feeds), feeds.values()))
    outputs = [triton.InferRequestedOutput(change["output"])] if "output" in change else None
    with pytest.raises(InferenceServerException) as told:
        client.infer(
            model, given(feeds), outputs=outputs, model_version=change.get("version", ""),
            timeout=change.get("timeout"),
        )  # fmt: skip
    assert told.value.status() == status
    assert words in told.value.message()
    assert "safetensors" not in told.value.message()  # where files lie is nobody's business


def test_as_kserve_writes_it(service, expected):
    """JSON in and out, flat and nested; unknown parameters are of no concern."""
    (feeds,) = text([9])
    for nested in (True, False):
        content = json.loads(plain(feeds, id="42", parameters={"content_type": "np"}))
        if not nested:
            for tensor in content["inputs"]:
                tensor["data"] = tensor["data"][0]
        status, headers, body = service.ask("POST", "/v2/models/model/versions/1/infer", json.dumps(content))
        found = json.loads(body)
        assert status == 200
        assert headers["content-type"] == "application/json"
        assert (found["id"], found["model_name"], found["model_version"]) == ("42", "model", "1")
        output = found["outputs"][1]
        assert output["shape"] == [1, 16]
        np.testing.assert_allclose(output["data"], expected(feeds)["pooler_output"][0], rtol=1e-5, atol=1e-6)
    assert json.loads(service.ask("GET", "/v2/health/live")[2]) == {"live": True}
    assert json.loads(service.ask("GET", "/v2/health/ready")[2]) == {"ready": True}
    assert json.loads(service.ask("GET", "/v2/models/model/ready")[2]) == {"name": "model", "ready": True}


def test_numbers_that_json_cannot_hold_are_refused_as_json_and_given_as_bytes(service):
    x = np.array([[0, 1, 2, 3]], np.float32)  # log(0)
    status, _, body = service.ask("POST", "/v2/models/other/infer", plain({"x": x}))
    assert status == 422
    assert b"binary_data" in body
    assert np.isneginf(service.infer({"x": x}, "other")["y"][0, 0])


def test_a_report_tells_time_memory_and_attention(service):
    (feeds,) = text([50])
    status, _, body = service.ask("POST", "/v2/models/model/infer", plain(feeds, parameters={"report": True}))
    told = json.loads(body)["parameters"]
    assert status == 200
    assert told["run_ms"] > 0
    assert told["memory_bytes"] > 10_000
    assert [a["name"] for a in told["attentions"]] == ["layers.0.attention", "layers.1.attention"]
    assert {a["method"] for a in told["attentions"]} == {"exact"}
    plan = json.loads(service.ask("GET", "/v2/models/model/plan")[2])
    assert plan["batching"] == "padded"
    assert plan["precision"] == "float32"
    assert [a["name"] for a in plan["attentions"]] == ["layers.0.attention", "layers.1.attention"]


def test_precision(tmp_path, monkeypatch):
    if missing_bfloat16():  # the reference has it everywhere
        monkeypatch.setenv("PYCLATTN_BACKEND", "reference")
    (feeds,) = text([50])
    path = save(tmp_path / "model.safetensors", encoder())
    with running(path, "--precision", "bfloat16") as service:
        found = service.infer(feeds)["pooler_output"]
        plan = json.loads(service.ask("GET", "/v2/models/model/plan")[2])
    assert plan["precision"] == "bfloat16"
    exact = Model(encoder(), n_threads=2)(**feeds)["pooler_output"]
    assert 1e-4 < np.linalg.norm(found - exact) / np.linalg.norm(exact) < 1e-2


def test_metrics_and_page(service):
    service.infer(text([30])[0])
    for pattern in (
        'pyclattn_requests_total{model="model",status="200"}', "pyclattn_tokens_total", "pyclattn_queue_seconds_count",
        "pyclattn_run_seconds_count", "pyclattn_request_seconds_count", "process_resident_memory_bytes",
        'pyclattn_model_version{model="model"}',
    ):  # fmt: skip
        assert service.metric(pattern.replace("{", r"\{")) > 0, pattern
    assert service.metric("pyclattn_queue_requests") == 0
    status, headers, body = service.ask("GET", "/")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert b"<script" in body
    assert b"http://" not in body
    assert b"https://" not in body  # nothing from elsewhere
