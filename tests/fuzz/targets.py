"""What is fuzzed: each reader on bytes in memory, and what must hold of whatever it makes of them.

A reader may give arrays or raise ModelFormatError. Anything else it raises is a finding, and so is an array that cannot
be read or shows far more than the input holds.
"""

import numpy as np

from pyclattn.errors import ArgumentError, ModelFormatError
from pyclattn.weights import SafeTensors, kinds
from pyclattn.weights.checkpoint import arrays_of, named_tensors
from pyclattn.weights.pytorch import _finder, _storage_id, read_legacy, read_zip
from pyclattn.weights.source import Source
from pyclattn.weights.tensors import MAX_SHOWN, Storage, named
from pyclattn.weights.unpickler import ROOM, Machine

SMALL = 1 << 16  # elements that are looked at


def pytorch(data):
    source = Source(data, "fuzz")
    # by its kind where it has one; else as if it had, which a mutation rarely hits
    read = read_legacy if kinds.kind_of(source) == kinds.LEGACY else read_zip
    try:
        tree = read(source, "placeholder")
        for name, leaf in named_tensors(tree, "fuzz").items():
            look(named(leaf, name, "fuzz"), len(data))
        arrays_of(tree, "fuzz")
    except ModelFormatError:
        return False
    return True


def pickles(data):
    """Objects alone: the machine without the container around it; every storage lies at the start of the input."""
    source = Source(data, "fuzz")

    def persistent(given):
        kind, key, n_bytes = _storage_id(given[:5] if type(given) is tuple else given)
        return Storage(source, key, kind.dtype, min(n_bytes, len(data)), 0)

    try:
        machine = Machine(source.view, 0, "fuzz", _finder("fuzz", "placeholder"), persistent, ROOM + len(data))
        tree = machine.run()
        for name, leaf in named_tensors(tree, "fuzz", "").items():
            look(named(leaf, name, "fuzz"), len(data))
        arrays_of(tree, "fuzz")
    except ModelFormatError:
        return False
    return True


def safetensors(data):
    try:
        file = SafeTensors.of(Source(data, "fuzz"))
        for array in file.values():
            look(array, len(data))
    except ModelFormatError:
        return False
    return True


def onnx(data):
    from pyclattn_export.from_onnx import from_onnx, ready
    from pyclattn_export.tensors import parse_bytes

    try:
        program = ready(from_onnx(parse_bytes(data, "fuzz")), "fuzz")
        for array in program.constants.values():
            look(array, len(data))
    except (ModelFormatError, ArgumentError):
        return False
    return True


def look(array, size):
    """Read an array, so that a wrong view of memory would fault here."""
    assert array.nbytes <= 8 * size + 2 * MAX_SHOWN, (array.shape, array.dtype)
    if array.dtype != object:
        np.count_nonzero(array.reshape(-1)[:SMALL] if array.size <= SMALL else array[(0,) * array.ndim])


TARGETS = {"pytorch": pytorch, "pickles": pickles, "safetensors": safetensors, "onnx": onnx}
