"""Requests that are wrong, each with its answer; and the service answers the next one as before."""

import gzip
import json
import socket
import zlib
from contextlib import suppress

import numpy as np
import pytest

from pyclattn.model import Model
from tests.serving.models import encoder, save, text
from tests.serving.running import plain, running

INFER = "/v2/models/model/infer"
(GOOD,) = text([8])


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    path = save(tmp_path_factory.mktemp("models") / "model.safetensors", encoder())
    limits = ("--max-body-bytes", "200kB", "--max-json-bytes", "100kB", "--max-tensors", "4", "--max-tokens", "500",
              "--body-timeout", "1")  # fmt: skip
    with running(path, *limits) as service:
        yield service
        assert service.stop() == 0


@pytest.fixture(autouse=True)
def answers_as_before(service):
    yield
    wanted = Model(encoder(), n_threads=2)(**GOOD)["pooler_output"]
    np.testing.assert_allclose(service.infer(GOOD)["pooler_output"], wanted, rtol=1e-5, atol=1e-6)


def changed(**change):
    """A good request with changes to its first input, or (names ending in _) to the whole."""
    content = json.loads(plain(GOOD))
    for name, value in change.items():
        if name.endswith("_"):
            content[name[:-1]] = value
        elif value is None:
            del content["inputs"][0][name]
        else:
            content["inputs"][0][name] = value
    return json.dumps(content)


def with_outputs(*outputs):
    return changed(outputs_=list(outputs))


def bytes_request(size=64, header=None, extra=b"", **tensor):
    """A request in bytes whose first input says ``size``."""
    first = {"name": "input_ids", "datatype": "INT64", "shape": [1, 8], "parameters": {"binary_data_size": size}}
    other = {"name": "attention_mask", "datatype": "INT64", "shape": [1, 8], "data": [1] * 8}
    head = json.dumps({"inputs": [{**first, **tensor}, other]}).encode()
    return head + b"\1" * 64 + extra, {"Inference-Header-Content-Length": str(len(head) if header is None else header)}


BODIES = {
    "empty": (b"", 400, "not JSON"),
    "not JSON": (b"hello", 400, "not JSON"),
    "cut off": (plain(GOOD)[:50], 400, "not JSON"),
    "not UTF-8": (b'{"id": "\xff\xfe"}', 400, "not JSON"),
    "a list": ("[1, 2]", 400, "must be a JSON object"),
    "null": ("null", 400, "must be a JSON object"),
    "a deep nest": ("[" * 50_000, 400, "not JSON"),
    "a deep nest of data": (changed(data=json.loads("[" * 40 + "]" * 40)), 400, "nested deeper"),
    "a number of 100,000 digits": ("9" * 99_000, 400, "not JSON"),
    "NaN": (changed(data=[float("nan")] * 8), 400, "NaN is not JSON"),
    "infinite": (changed(data=[float("inf")] * 8), 400, "Infinity is not JSON"),
    "no inputs": ("{}", 400, "inputs must be a list"),
    "inputs an object": (changed(inputs_={}), 400, "inputs must be a list"),
    "inputs empty": (changed(inputs_=[]), 400, "inputs must be a list"),
    "an input a number": (changed(inputs_=[3]), 400, "inputs[0] must be an object"),
    "an input without a name": (changed(name=None), 400, "inputs[0] must be an object"),
    "a name that is no text": (changed(name=7), 400, "inputs[0] must be an object"),
    "an unknown name": (changed(name="ids"), 400, "missing input_ids; unknown ids"),
    "a name of 50,000 letters": (changed(name="x" * 50_000), 400, "at most 256 characters"),
    "an input twice": (changed(name="attention_mask"), 400, "given twice"),
    "an input missing": (changed(inputs_=json.loads(plain(GOOD))["inputs"][:1]), 400, "missing attention_mask"),
    "too many inputs": (changed(inputs_=[{"name": str(i)} for i in range(9)]), 413, "at most 4"),
    "no datatype": (changed(datatype=None), 400, "datatype None is not supported"),
    "an unknown datatype": (changed(datatype="INT65"), 400, "supported are"),
    "BYTES": (changed(datatype="BYTES", data=["a"] * 8), 400, "supported are"),
    "a datatype that is a list": (changed(datatype=["INT64"]), 400, "supported are"),
    "another datatype": (changed(datatype="INT32"), 400, "must be int64"),
    "no shape": (changed(shape=None), 400, "shape must be a list"),
    "a negative shape": (changed(shape=[-1, -8]), 400, "shape must be a list"),
    "a shape of fractions": (changed(shape=[1.0, 8.0]), 400, "shape must be a list"),
    "a shape of booleans": (changed(shape=[True, 8]), 400, "shape must be a list"),
    "a huge shape": (changed(shape=[1 << 39, 1 << 39]), 400, "elements"),
    "a shape beyond all integers": (changed(shape=[1 << 80, 1]), 400, "shape must be a list"),
    "a shape of 40 dimensions": (changed(shape=[1] * 39 + [8]), 400, "at most 16"),
    "another rank": (changed(shape=[8]), 400, "elements"),
    "another rank, flat": (changed(shape=[8], data=[1] * 8), 400, "must have shape"),
    "no data": (changed(data=None), 400, "either data or"),
    "data and bytes": (changed(parameters={"binary_data_size": 64}), 400, "either data or"),
    "data a number": (changed(data=3), 400, "data must be a list"),
    "data an object": (changed(data={"0": 1}), 400, "data must be a list"),
    "too few data": (changed(data=[1, 2]), 400, "has 8 elements"),
    "ragged data": (changed(data=[[1, 2], [3]]), 400, "ragged"),
    "data of lists and numbers": (changed(data=[[1] * 7, 1]), 400, "ragged"),
    "text": (changed(data=["1"] * 8), 400, "must be whole numbers, got str"),
    "null data": (changed(data=[None] * 8), 400, "must be whole numbers, got NoneType"),
    "fractions": (changed(data=[1.5] * 8), 400, "must be whole numbers, got float"),
    "booleans": (changed(data=[True] * 8), 400, "must be whole numbers, got bool"),
    "a number beyond 64 bits": (changed(data=[1 << 70] * 8), 400, "cannot hold"),
    "beyond the vocabulary": (changed(data=[10**12] * 8), 400, "beyond"),
    "nothing at all": (changed(shape=[0, 0], data=[]), 400, ""),
    "inputs that disagree": (changed(shape=[1, 4], data=[1] * 4), 400, ""),
    "more tokens than allowed": (plain(text([501])[0]), 413, "at most 500"),
    "an id that is a number": (changed(id_=7), 400, "id must be text"),
    "a long id": (changed(id_="x" * 1000), 400, "id must be text"),
    "parameters a list": (changed(parameters_=[1]), 400, "parameters must be an object"),
    "an input's parameters a list": (changed(parameters=[1]), 400, "parameters must be an object"),
    "a timeout of text": (changed(parameters_={"timeout": "soon"}), 400, "microseconds"),
    "a timeout of nothing": (changed(parameters_={"timeout": 0}), 400, "microseconds"),
    "a timeout of a moment": (changed(parameters_={"timeout": 1}), 504, "no answer within"),
    "a flag that is a number": (changed(parameters_={"binary_data_output": 1}), 400, "true or false"),
    "shared memory": (changed(parameters={"shared_memory_region": "x"}), 400, "not supported"),
    "an unknown output": (with_outputs({"name": "y"}), 400, "the model has hidden, pooler_output"),
    "an output of half a surrogate pair": (with_outputs({"name": "\ud800"}), 400, "outputs \\ud800 do not exist"),
    "an input of half a surrogate pair": (changed(name="\ud800"), 400, "unknown \\ud800"),
    "an output twice": (with_outputs({"name": "hidden"}, {"name": "hidden"}), 400, "given twice"),
    "outputs of text": (with_outputs("hidden"), 400, "outputs[0] must be an object"),
    "outputs an object": (changed(outputs_={"name": "hidden"}), 400, "outputs must be a list"),
    "classification": (with_outputs({"name": "hidden", "parameters": {"classification": 3}}), 400, "not supported"),
    "much JSON": (changed(data=[1] * 60_000), 413, "at most 100000"),
    "a large body": (b" " * 300_000, 413, "larger than 200000"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_malformed_body(service, name):
    body, status, words = BODIES[name]
    found, headers, answer = service.ask("POST", INFER, body)
    assert (found, headers["content-type"]) == (status, "application/json")
    assert words in json.loads(answer)["error"]
    assert len(answer) < 2000


BINARY = {
    "bytes missing": (bytes_request(1000), 400, "64 bytes left"),
    "bytes left over": (bytes_request(extra=b"more"), 400, "inputs account for 64"),
    "another number of bytes": (bytes_request(56, extra=b""), 400, "has 64 bytes, got 56"),
    "a negative size": (bytes_request(-1), 400, "binary_data_size is -1"),
    "a size of text": (bytes_request("64"), 400, "binary_data_size is '64'"),
    "a header beyond the body": (bytes_request(header=10_000), 400, "Inference-Header-Content-Length is 10000"),
    "a header of text": (bytes_request(header="many"), 400, "must be a number"),
    "a negative header": (bytes_request(header=-5), 400, "must be a number"),
    "a header too short": (bytes_request(header=10), 400, "not JSON"),
    "a header in no digits of ours": (bytes_request(header="\xb2"), 400, "must be a number"),
    "an unknown encoding": ((plain(GOOD), {"Content-Encoding": "br"}), 415, "gzip and deflate are"),
    "gzip that is none": ((b"hello", {"Content-Encoding": "gzip"}), 400, "not what Content-Encoding says"),
    "gzip cut off": ((gzip.compress(plain(GOOD).encode())[:-9], {"Content-Encoding": "gzip"}), 400, "cut off"),
    "gzip and more": ((gzip.compress(b"{}") + b"more", {"Content-Encoding": "gzip"}), 400, "cut off, or something"),
    "a bomb": ((zlib.compress(b" " * 50_000_000), {"Content-Encoding": "deflate"}), 413, "larger than 200000"),
    "another host": ((plain(GOOD), {"Host": "example.com"}), 421, "--allow-host"),
}


@pytest.mark.parametrize("name", BINARY)
def test_a_malformed_request_of_bytes_or_headers(service, name):
    (body, headers), status, words = BINARY[name]
    found, _, answer = service.ask("POST", INFER, body, headers)
    assert found == status
    assert words in json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", INFER, 405),
        ("DELETE", "/v2/models/model", 405),
        ("POST", "/v2/models/nothing/infer", 404),
        ("POST", "/v2/models/..%2f..%2fetc%2fpasswd/infer", 404),
        ("POST", "/v2/models/%2e%2e/infer", 404),
        ("POST", "/v2/models/model%00/infer", 404),
        ("GET", "/v2/models/model.safetensors", 404),
        ("GET", "/v2/models/" + "x" * 5000, 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/v2/nothing", 404),
        ("POST", "/v2/repository/models/model/unload", 404),
    ],
)
def test_other_paths_and_methods(service, method, path, status):
    found, _, answer = service.ask(method, path, plain(GOOD) if method == "POST" else None)
    assert found == status
    assert "error" in json.loads(answer)


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8000", "127.0.0.1:1", "[::1]", "[::1]:8000"])
def test_names_of_this_machine(service, host):
    assert service.ask("GET", "/v2/health/live", headers={"Host": host})[0] == 200


RAW = {
    "not HTTP": (b"hello\r\n\r\n", b"400"),
    "a length of text": (b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: many\r\n\r\n", b"400"),
    "a negative length": (b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", b"400"),
    "two lengths": (b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", b"400"),
    "endless headers": (b"POST %b HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000, b"4"),
    "a chunk of no size": (b"POST %b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxx\r\n", b"400"),
    "a body that never comes": (b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{", b"408"),
    "a length of terabytes": (b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999999\r\n\r\n", b"413"),
    "chunks without end": (
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"10000\r\n" + b" " * 65536 + b"\r\n" + b"40000\r\n" + b" " * 262144 + b"\r\n", b"413"),
}  # fmt: skip


@pytest.mark.parametrize("name", RAW)
def test_what_is_hardly_http(service, name):
    content, status = RAW[name]
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        with suppress(ConnectionError):  # the answer is there, and the rest was not wanted
            connection.sendall(content.replace(b"%b", INFER.encode()))
        try:
            answer = connection.recv(4096)
        except ConnectionError:
            answer = b""
    if answer or len(content) < 60_000:  # a connection that is closed on a sender may lose the answer
        assert answer.startswith(b"HTTP/1.1 " + status)


def test_how_many_kinds():
    assert len(BODIES) + len(BINARY) + len(RAW) >= 90
