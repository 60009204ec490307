"""A look at an ONNX file's bytes before protobuf builds objects from them: how many, and what they would cost.

Two bytes in the file can be an empty node, which takes hundreds in memory. Messages are walked by the few fields that
can repeat; contents (weights, text) are stepped over by their length.
"""

from __future__ import annotations

from pyclattn.errors import ModelFormatError

# What messages may cost, besides the size of the file; and one field, and one node with what becomes of it, in bytes.
ROOM = 40 << 20
PER_FIELD, PER_NODE = 100, 1000

# Message -> field -> the message in it. Numbers are onnx.proto's.
FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "", 14: "", 25: "function"},
    "graph": {1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value", 14: "", 15: "sparse", 16: ""},
    "function": {4: "", 5: "", 6: "", 7: "node", 9: "", 11: "attribute", 12: "value", 14: ""},
    "node": {1: "", 2: "", 5: "attribute", 9: ""},
    "attribute": {5: "tensor", 6: "graph", 9: "", 10: "tensor", 11: "graph", 14: "value", 15: "value"},
    "tensor": {6: "", 13: ""},
    "sparse": {1: "tensor", 2: "tensor"},
    "value": {2: "type", 4: ""},
    "type": {1: "type", 2: "shape", 4: "type", 5: "type", 8: "type", 9: "type"},
    "shape": {1: ""},
}


def check(data: bytes, where: str) -> None:
    """Refuse what would take far more memory than the file has bytes.

    Raises
    ------
    ModelFormatError
        Where messages are too many. What is no protobuf is left for protobuf to say.
    """
    room = ROOM + len(data)
    open_ones = [("model", 0, len(data))]
    while open_ones:
        kind, position, end = open_ones.pop()
        fields = FIELDS[kind]
        while position < end:
            tag, position = _varint(data, position, end)
            wire = tag & 7
            room -= PER_FIELD
            if wire == 2:
                length, position = _varint(data, position, end)
                inner = fields.get(tag >> 3)
                if inner == "node":
                    room -= PER_NODE
                if inner and position + length <= end:
                    open_ones.append((inner, position, position + length))
                position += length
            elif wire == 0:
                _, position = _varint(data, position, end)
            elif wire in (1, 5):
                position += 8 if wire == 1 else 4
            else:
                break  # no protobuf
            if room < 0:
                raise ModelFormatError(
                    f"{where}: its messages would take far more memory than the file's {len(data)} bytes and {ROOM}: "
                    "hostile, or not a model"
                )


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    return 0, end + 1  # cut off, or no number
