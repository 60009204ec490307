"""ONNX tensors as NumPy arrays, and the rule for weights kept in files beside the model.

A model's external data may be hostile: its location must resolve to a regular file under the model's directory, or
under the real directory of the real model file (caches keep models as symbolic links into a folder of blobs). Every
size is checked against the file before anything is read, and what is read is memory-mapped.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from pyclattn.errors import ModelFormatError
from pyclattn_export import wire

MAX_RANK = 64  # NumPy's
MAX_EMPTY = 1 << 20  # an array of 2^40 x 0 numbers is nothing, but its rows as lists are not
DTYPES = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.INT8: "int8",
    TensorProto.INT16: "int16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.UINT8: "uint8",
    TensorProto.UINT16: "uint16",
    TensorProto.UINT32: "uint32",
    TensorProto.UINT64: "uint64",
    TensorProto.BOOL: "bool",
    TensorProto.COMPLEX64: "complex64",
    TensorProto.COMPLEX128: "complex128",
    TensorProto.STRING: "str",
    # NumPy has no such types; the nearest wider one holds every value of theirs.
    TensorProto.BFLOAT16: "float32",
    TensorProto.INT4: "int8",
    TensorProto.UINT4: "uint8",
}


def dtype_name(elem_type: int, where: str) -> str:
    """NumPy's name of an ONNX element type.

    Parameters
    ----------
    elem_type : int
        A value of ``onnx.TensorProto.DataType``.
    where : str
        What has this type, for the message.

    Raises
    ------
    ModelFormatError
        If pyclattn holds no such type.

    Examples
    --------
    >>> dtype_name(1, "input x")
    'float32'
    """
    if elem_type not in DTYPES:
        known = TensorProto.DataType.Name(elem_type) if elem_type in TensorProto.DataType.values() else elem_type
        raise ModelFormatError(f"{where} has element type {known}, which pyclattn does not hold")
    return DTYPES[elem_type]


def to_array(tensor: TensorProto, where: str, base: Path | None) -> np.ndarray:
    """The array of an ONNX tensor, memory-mapped where its data lie in a file of their own.

    Parameters
    ----------
    tensor : onnx.TensorProto
    where : str
        File and node, for messages.
    base : Path or None
        The model's file; None for a model that came without one.

    Raises
    ------
    ModelFormatError
        If sizes do not fit, or external data leave the model's directory, are missing, truncated or altered.
    """
    where = f"{where}: tensor {tensor.name!r}"
    if any(d < 0 for d in tensor.dims) or len(tensor.dims) > MAX_RANK:
        raise ModelFormatError(
            f"{where} has a negative dimension or more than {MAX_RANK} of them in {list(tensor.dims)[:8]}"
        )
    if 0 in tensor.dims and math.prod(list(tensor.dims)[: list(tensor.dims).index(0)]) > MAX_EMPTY:
        raise ModelFormatError(f"{where} of shape {list(tensor.dims)[:8]} is empty, in more than {MAX_EMPTY} parts")
    name = dtype_name(tensor.data_type, where)
    if tensor.data_location == TensorProto.EXTERNAL:
        return _external(tensor, where, base)
    if tensor.data_type in (TensorProto.BFLOAT16, TensorProto.INT4, TensorProto.UINT4, TensorProto.STRING):
        return _with_onnx(tensor, where).astype(object if name == "str" else name)
    if tensor.HasField("raw_data"):
        wanted = math.prod(tensor.dims) * np.dtype(name).itemsize
        if len(tensor.raw_data) != wanted:
            raise ModelFormatError(
                f"{where} of shape {list(tensor.dims)} and type {name} needs {wanted} bytes, has {len(tensor.raw_data)}"
            )
        # ONNX is little-endian by definition; the cast is free on such machines.
        if not wanted:
            return _empty(tensor, name, where)
        if name == "bool" and max(tensor.raw_data) > 1:
            raise ModelFormatError(f"{where} is bool but has bytes other than 0 and 1: altered")
        array = np.frombuffer(tensor.raw_data, np.dtype(name).newbyteorder("<")).reshape(tuple(tensor.dims))
        return array.astype(name, copy=False)
    return _with_onnx(tensor, where)


def _empty(tensor: TensorProto, name: str, where: str) -> np.ndarray:
    try:
        return np.zeros(tuple(tensor.dims), name)
    except ValueError as error:  # lengths beside the zero may still be beyond NumPy's
        raise ModelFormatError(f"{where} of shape {list(tensor.dims)[:8]} is beyond any array: {error}") from error


def _with_onnx(tensor: TensorProto, where: str) -> np.ndarray:
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, OverflowError, IndexError) as error:
        raise ModelFormatError(f"{where} of shape {list(tensor.dims)} cannot be read: {error}") from error


def external_path(location: str, base: Path, where: str) -> Path:
    """The real file of an external-data location, or an error where it leaves the model's directory."""
    if not location or "\0" in location or os.path.isabs(location) or location[:1] in "/\\":
        raise ModelFormatError(f"{where}: external data location must be a relative path, got {location!r}")
    directory = os.path.realpath(base.parent)
    real_parent = os.path.dirname(os.path.realpath(base))
    path = os.path.realpath(os.path.join(base.parent, location))
    if not any(os.path.commonpath([path, folder]) == folder for folder in (directory, real_parent)):
        raise ModelFormatError(f"{where}: external data {location!r} lies outside the model's directory")
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise ModelFormatError(f"{where}: external data file {location!r} is missing ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        raise ModelFormatError(f"{where}: external data {location!r} is not a regular file")
    return Path(path)


def _external(tensor: TensorProto, where: str, base: Path | None) -> np.ndarray:
    # Only these keys are read, whatever else the file offers: attributes are never set by name.
    keys = {entry.key: entry.value for entry in tensor.external_data}
    if base is None:
        raise ModelFormatError(f"{where} keeps its data in a file, but the model was not given as a path")
    path = external_path(keys.get("location", ""), base, where)
    try:
        offset, length = int(keys.get("offset", "0")), int(keys.get("length", "-1"))
    except ValueError as error:
        raise ModelFormatError(f"{where}: external data offset and length must be whole numbers: {error}") from error
    four_bit = tensor.data_type in (TensorProto.INT4, TensorProto.UINT4)
    stored = "uint16" if tensor.data_type == TensorProto.BFLOAT16 else DTYPES[tensor.data_type]
    if stored == "str":
        raise ModelFormatError(f"{where}: text cannot be external data")
    count = math.prod(tensor.dims)
    wanted = (count + 1) // 2 if four_bit else count * np.dtype(stored).itemsize
    size = path.stat().st_size
    if length not in (-1, wanted):
        raise ModelFormatError(f"{where} of shape {list(tensor.dims)} needs {wanted} bytes, the model says {length}")
    if offset < 0 or offset + wanted > size:
        raise ModelFormatError(
            f"{where} needs bytes {offset} to {offset + wanted} of {path.name!r}, "
            f"which has {size}: truncated or altered"
        )
    if wanted == 0:
        return _empty(tensor, DTYPES[tensor.data_type], where)
    data = np.memmap(path, np.uint8, "r", offset, (wanted,))
    if "checksum" in keys and not _checksum_fits(path, keys["checksum"]):
        raise ModelFormatError(f"{where}: the checksum of {path.name!r} is not the one the model names: altered")
    if four_bit:
        low, high = data & 15, data >> 4
        values = np.stack([low, high], -1).reshape(-1)[:count].astype(np.uint8)
        if tensor.data_type == TensorProto.INT4:
            values = ((values ^ 8).astype(np.int8) - 8).astype(np.int8)
        return values.reshape(tuple(tensor.dims))
    array = data.view(np.dtype(stored).newbyteorder("<")).reshape(tuple(tensor.dims))
    if tensor.data_type == TensorProto.BFLOAT16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    if stored == "bool" and data.max() > 1:
        raise ModelFormatError(f"{where} is bool but has bytes other than 0 and 1: altered")
    return array.astype(stored, copy=False)


def _checksum_fits(path: Path, wanted: str) -> bool:
    digest = hashlib.sha1(usedforsecurity=False)  # the ONNX format's choice: a checksum, not a signature
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == wanted.lower()


def parse(path: Path) -> onnx.ModelProto:
    """The model in an ONNX file, its external data left where they are.

    Raises
    ------
    ModelFormatError
        If the file is missing, truncated, or not an ONNX model.
    """
    try:
        size = path.stat().st_size
        data = path.read_bytes() if path.is_file() and size < 2**31 else None
    except OSError as error:
        raise ModelFormatError(f"{path}: cannot be read ({error.strerror})") from error
    if data is None:
        reason = (
            "not a file" if not path.is_file() else f"{size} bytes, but ONNX keeps models over 2 GB beside the file"
        )
        raise ModelFormatError(f"{path}: {reason}")
    return parse_bytes(data, str(path))


def parse_bytes(data: bytes, where: str) -> onnx.ModelProto:
    """The model in the bytes of an ONNX file; errors as `parse`."""
    # protobuf's DecodeError is imported late: only onnx knows which protobuf it brought.
    from google.protobuf.message import DecodeError

    wire.check(data, where)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelFormatError(f"{where}: not an ONNX model, or truncated or altered ({error})") from error
    if not model.HasField("graph") or not model.opset_import:
        raise ModelFormatError(f"{where}: no graph or no opset in it; not an ONNX model, or truncated")
    return model
