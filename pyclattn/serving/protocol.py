"""Open Inference Protocol v2: a request's bytes as arrays, arrays as an answer's bytes. Knows no HTTP and no model.

JSON with the tensors in it, or JSON followed by the tensors' bytes: KServe's "Predict Protocol Version 2" and Triton's
"Binary Tensor Data Extension".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyclattn.graph.program import Value
from pyclattn.serving.datatypes import NAMES, dtype_of, from_bytes, from_json, shape_of, to_bytes
from pyclattn.serving.errors import RequestError
from pyclattn.serving.limits import Limits

# A list costs 60 bytes where "[]" has two; a tensor has one bracket for each row.
MAX_BRACKETS = 1_000_000
MAX_NAME = 256  # characters of a tensor's name, and of an id


@dataclass(frozen=True)
class InferRequest:
    """What a client asked for.

    Attributes
    ----------
    id : str
    inputs : dict of str to ndarray
    outputs : list of str or None
        Wanted, in this order; None for all.
    binary : dict of str to bool
        Outputs wanted as bytes, or not; the others are as ``is_binary`` says.
    is_binary : bool
    parameters : dict
    """

    id: str
    inputs: dict[str, np.ndarray]
    outputs: list[str] | None = None
    binary: dict[str, bool] = field(default_factory=dict)
    is_binary: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)


def decode(body: bytes, json_length: int | None, limits: Limits) -> InferRequest:
    """Read a request.

    Parameters
    ----------
    body : bytes
    json_length : int or None
        Of the JSON at its beginning; None where there is nothing else.
    limits : Limits

    Raises
    ------
    RequestError

    Examples
    --------
    >>> text = b'{"inputs": [{"name": "x", "datatype": "INT64", "shape": [1, 2], "data": [3, 4]}]}'
    >>> decode(text, None, Limits()).inputs
    {'x': array([[3, 4]])}
    """
    size = len(body) if json_length is None else json_length
    if not 0 <= size <= len(body):
        raise RequestError(400, f"Inference-Header-Content-Length is {size}, the body has {len(body)} bytes")
    content = _parse(body[:size], limits)
    parameters = _object(content, "parameters", "the request")
    rest = memoryview(body)[size:]
    id_ = content.get("id", "")
    if not isinstance(id_, str) or len(id_) > MAX_NAME:
        raise RequestError(400, f"id must be text of at most {MAX_NAME} characters")
    inputs = _inputs(_tensors(content, "inputs", limits), rest)
    is_binary = _flag(parameters, "binary_data_output", "the request")
    outputs: list[str] | None = None
    binary: dict[str, bool] = {}
    if content.get("outputs"):
        outputs, binary = _outputs(_tensors(content, "outputs", limits))
    return InferRequest(id_, inputs, outputs, binary, is_binary, parameters)


def _parse(text: bytes, limits: Limits) -> dict:
    if len(text) > limits.max_json_bytes:
        raise RequestError(
            413,
            f"{len(text)} bytes of JSON, at most {limits.max_json_bytes} are read: send large tensors as binary data",
        )
    if text.count(b"[") + text.count(b"{") > MAX_BRACKETS:
        raise RequestError(
            413, f"JSON has more than {MAX_BRACKETS} lists and objects: send large tensors as binary data"
        )

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        content = json.loads(text.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the request is not JSON: {str(error)[:200]}") from None
    if not isinstance(content, dict):
        raise RequestError(400, f"the request must be a JSON object, got {type(content).__name__}")
    return content


def _object(content: Mapping, key: str, where: str) -> dict:
    found = content.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise RequestError(400, f"{where}: {key} must be an object, got {type(found).__name__}")
    return found


def _flag(parameters: Mapping, key: str, where: str) -> bool:
    value = parameters.get(key, False)
    if not isinstance(value, bool):
        raise RequestError(400, f"{where}: {key} must be true or false")
    return value


def _tensors(content: Mapping, key: str, limits: Limits) -> list[tuple[str, dict, dict]]:
    """(name, tensor, its parameters) of each entry of a list, named once each."""
    given = content.get(key)
    if not isinstance(given, list) or not given:
        raise RequestError(400, f"{key} must be a list of tensors, and not empty")
    if len(given) > limits.max_tensors:
        raise RequestError(413, f"{len(given)} {key}, at most {limits.max_tensors} are allowed")
    found: dict[str, tuple[str, dict, dict]] = {}
    for i, tensor in enumerate(given):
        name = tensor.get("name") if isinstance(tensor, dict) else None
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
            raise RequestError(400, f"{key}[{i}] must be an object with a name of at most {MAX_NAME} characters")
        if name in found:
            raise RequestError(400, f"{key}: {name!r} is given twice")
        parameters = _object(tensor, "parameters", f"{key} {name!r}")
        for option in parameters:
            if option.startswith("shared_memory") or (option == "classification" and parameters[option]):
                raise RequestError(400, f"{key} {name!r}: {option} is not supported")
        found[name] = name, tensor, parameters
    return list(found.values())


def _inputs(tensors: list[tuple[str, dict, dict]], rest: memoryview) -> dict[str, np.ndarray]:
    inputs, used = {}, 0
    for name, tensor, parameters in tensors:
        where = f"input {name!r}"
        dtype, shape = dtype_of(tensor.get("datatype"), where), shape_of(tensor.get("shape"), where)
        size = parameters.get("binary_data_size")
        if (size is None) == ("data" not in tensor):
            raise RequestError(400, f"{where} needs either data or the parameter binary_data_size")
        if size is None:
            inputs[name] = from_json(tensor["data"], dtype, shape, where)
            continue
        if type(size) is not int or not 0 <= size <= len(rest) - used:
            raise RequestError(
                400, f"{where}: binary_data_size is {size!r}, the body has {len(rest) - used} bytes left"
            )
        inputs[name] = from_bytes(rest[used : used + size], dtype, shape, where)
        used += size
    if used != len(rest):
        raise RequestError(400, f"the body has {len(rest)} bytes of tensors, inputs account for {used}")
    return inputs


def _outputs(tensors: list[tuple[str, dict, dict]]) -> tuple[list[str], dict[str, bool]]:
    binary = {
        name: _flag(parameters, "binary_data", f"output {name!r}")
        for name, _, parameters in tensors
        if "binary_data" in parameters
    }
    return [name for name, *_ in tensors], binary


def encode(
    request: InferRequest,
    model: str,
    version: str,
    outputs: Mapping[str, np.ndarray],
    parameters: Mapping | None = None,
) -> tuple[bytes, int | None]:
    """An answer, and the length of its JSON where bytes follow.

    Raises
    ------
    RequestError
        If a number that is not finite would have to be written as JSON.

    Examples
    --------
    >>> asked = InferRequest("7", {})
    >>> encode(asked, "m", "1", {"y": np.ones((1, 2), np.float32)})[0].decode()[-64:]
    '[{"name":"y","datatype":"FP32","shape":[1,2],"data":[1.0,1.0]}]}'
    """
    listed, tail = [], []
    for name, array in outputs.items():
        tensor: dict[str, Any] = {"name": name, "datatype": NAMES[array.dtype.name], "shape": list(array.shape)}
        if request.binary.get(name, request.is_binary):
            tail.append(to_bytes(array))
            tensor["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            tensor["data"] = array.ravel().tolist()
        listed.append(tensor)
    answer: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id:
        answer["id"] = request.id
    if parameters:
        answer["parameters"] = dict(parameters)
    try:
        text = json.dumps({**answer, "outputs": listed}, separators=(",", ":"), allow_nan=False).encode()
    except ValueError:
        raise RequestError(
            422, "outputs have numbers that JSON cannot hold (infinite, or none): ask for binary_data"
        ) from None
    return b"".join([text, *tail]), len(text) if tail else None


def tensor_metadata(value: Value) -> dict:
    """An input or output as the protocol describes it: open dimensions are -1."""
    shape = [n if isinstance(n, int) else -1 for n in value.shape]
    return {"name": value.name, "datatype": NAMES.get(value.dtype, value.dtype or "FP32"), "shape": shape}
