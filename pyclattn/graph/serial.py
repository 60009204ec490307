"""A Program in one safetensors file: constants as tensors, the rest as JSON in the file's metadata."""

from __future__ import annotations

import json
import math
import os

import numpy as np

from pyclattn.errors import ModelFormatError
from pyclattn.graph.program import MAX_DEPTH, Op, Program, Value
from pyclattn.graph.quantise import bfloat16_names
from pyclattn.weights.safetensors import SafeTensors, write_safetensors

# Raised when an older pyclattn could not read a new file: 2 has weights of bfloat16.
FORMAT_VERSION = 2
VERSION_KEY, PROGRAM_KEY = "format_version", "pyclattn.program"


def save_program(path: str | os.PathLike, program: Program) -> None:
    """Write a program, whole or not at all.

    Parameters
    ----------
    path : path-like
    program : Program

    Examples
    --------
    >>> import tempfile
    >>> x, y = Value("x", "float32", ("n", 2)), Value("y", "float32", ("n", 2))
    >>> program = Program([x], [y], [Op("Add", ("x", "w"), ("y",))], {"w": np.ones(2, np.float32)})
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> save_program(path, program)
    >>> load_program(path).ops
    [Op(kind='Add', inputs=('x', 'w'), outputs=('y',), attributes={}, name='')]
    """
    program.validate()
    writer = _Writer()
    text = json.dumps(writer.program(program, ""), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    version = 2 if writer.bfloat16 else 1
    metadata = {VERSION_KEY: str(version), PROGRAM_KEY: text, "format": "np"}
    write_safetensors(path, writer.tensors, metadata, bfloat16=writer.bfloat16)


def load_program(path: str | os.PathLike) -> Program:
    """Read a program; its constants stay in the file, memory-mapped.

    Raises
    ------
    ModelFormatError
        If the file is not a model that `save_program` wrote, or was altered.
    """
    file = SafeTensors(path)
    try:
        version = int(file.metadata[VERSION_KEY])
        text = file.metadata[PROGRAM_KEY]
    except (KeyError, ValueError):
        raise ModelFormatError(
            f"{path}: weights only, no pyclattn model in it; a Hugging Face model is loaded by its folder, others are "
            "converted by pyclattn-export"
        ) from None
    if not 1 <= version <= FORMAT_VERSION:
        raise ModelFormatError(f"{path}: format_version {version}, this pyclattn reads 1 to {FORMAT_VERSION}")
    try:
        data = json.loads(text)
        program = _Reader(file).program(data, 0)
        program.validate()
    except RecursionError:
        raise ModelFormatError(f"{path}: the program is nested too deep") from None
    except ModelFormatError as error:
        message = str(error)
        raise ModelFormatError(message if message.startswith(str(path)) else f"{path}: {message}") from None
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ModelFormatError(f"{path}: the program is malformed: {error!r}") from error
    return program


class _Writer:
    """Turns programs into JSON values and collects their tensors."""

    def __init__(self) -> None:
        self.tensors: dict[str, np.ndarray] = {}
        self.bfloat16: set[str] = set()  # keys of tensors that are its bits
        self._keys: dict[int, str] = {}  # arrays used twice are written once

    def _store(self, name: str, array: np.ndarray) -> str:
        if id(array) in self._keys:
            return self._keys[id(array)]
        key, count = name or "constant", 0
        while key in self.tensors or key == "__metadata__":
            count += 1
            key = f"{name}#{count}"
        self.tensors[key] = array
        self._keys[id(array)] = key
        return key

    def program(self, program: Program, where: str) -> dict:
        return {
            "inputs": [self._value(v) for v in program.inputs],
            "outputs": [self._value(v) for v in program.outputs],
            "constants": self._constants(program),
            "ops": [self._op(op) for op in program.ops],
            "metadata": {str(k): self._attribute(v, "metadata") for k, v in program.metadata.items()},
        }

    def _constants(self, program: Program) -> dict:
        """Name -> key of its tensor; ``{"bfloat16": key}`` where it holds bits."""
        bits = bfloat16_names(program)
        found: dict = {}
        for name, array in program.constants.items():
            key = self._store(name, array)
            found[name] = {"bfloat16": key} if name in bits else key
            if name in bits:
                self.bfloat16.add(key)
        return found

    @staticmethod
    def _value(value: Value) -> list:
        return [value.name, value.dtype, list(value.shape)]

    def _op(self, op: Op) -> list:
        attributes = {name: self._attribute(a, f"{op.name}.{name}") for name, a in op.attributes.items()}
        return [op.kind, list(op.inputs), list(op.outputs), attributes, op.name]

    def _attribute(self, a, where: str):
        if a is None or isinstance(a, (bool, int, str)):
            return a
        if isinstance(a, Program):
            return {"program": self.program(a, where)}
        if isinstance(a, np.ndarray):
            return {"tensor": self._store(where, a)}
        if isinstance(a, np.generic):
            return self._attribute(a.item(), where)
        if isinstance(a, float):
            return a if math.isfinite(a) else {"float": repr(a)}
        if isinstance(a, (list, tuple)):
            return [self._attribute(v, where) for v in a]
        if isinstance(a, dict):
            return {"dict": {str(k): self._attribute(v, where) for k, v in a.items()}}
        raise ModelFormatError(f"attribute {where} is a {type(a).__name__}, which a file cannot hold")


class _Reader:
    """Turns JSON values back into programs; trusts nothing."""

    def __init__(self, tensors: SafeTensors):
        self.tensors = tensors

    def _tensor(self, key) -> np.ndarray:
        is_bits = isinstance(key, dict) and set(key) == {"bfloat16"}
        if is_bits:
            key = key["bfloat16"]
        if not isinstance(key, str) or key not in self.tensors:
            raise ModelFormatError(f"tensor {key!r} is not in the file")
        return self.tensors.bits(key) if is_bits else self.tensors[key]

    def program(self, data, depth: int) -> Program:
        if depth > MAX_DEPTH:
            raise ModelFormatError(f"programs are nested more than {MAX_DEPTH} deep")
        _expect(isinstance(data, dict), "a program must be an object")
        return Program(
            [self._value(v) for v in data["inputs"]],
            [self._value(v) for v in data["outputs"]],
            [self._op(o, depth) for o in data["ops"]],
            {_text(name): self._tensor(key) for name, key in data["constants"].items()},
            {name: self._attribute(v, depth) for name, v in data["metadata"].items()},
        )

    @staticmethod
    def _value(data) -> Value:
        name, dtype, shape = data
        good = all(isinstance(n, str) or (type(n) is int and n >= 0) for n in shape)
        _expect(good, f"the shape of {name!r} must hold names and whole numbers")
        if dtype:
            _expect(np.dtype(_text(dtype)).kind in "fiub", f"{name!r} cannot be {dtype!r}")
        return Value(_text(name), _text(dtype), tuple(shape))

    def _op(self, data, depth: int) -> Op:
        kind, inputs, outputs, attributes, name = data
        _expect(isinstance(inputs, list) and isinstance(outputs, list), f"node {name!r} must list its values")
        given = {_text(k): self._attribute(v, depth) for k, v in attributes.items()}
        return Op(_text(kind), tuple(map(_text, inputs)), tuple(map(_text, outputs)), given, _text(name))

    def _attribute(self, a, depth: int):
        if a is None or isinstance(a, (bool, int, float, str)):
            return a
        if isinstance(a, list):
            return [self._attribute(v, depth) for v in a]
        ((form, content),) = a.items()
        if form == "program":
            return self.program(content, depth + 1)
        if form == "tensor":
            return self._tensor(content)
        if form == "float":
            _expect(content in ("inf", "-inf", "nan"), f"float {content!r} is not inf, -inf or nan")
            return float(content)
        if form == "dict":
            return {_text(k): self._attribute(v, depth) for k, v in content.items()}
        raise ModelFormatError(f"attribute form {form!r} is not known")


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ModelFormatError(message)


def _text(value) -> str:
    _expect(isinstance(value, str), f"a name must be text, got {type(value).__name__}")
    return value
