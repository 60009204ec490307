"""Statements about readers, for files hypothesis makes: valid ones come back, altered ones are refused or read."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch_files import Raw, Storages, legacy_file, zip_file

from pyclattn.errors import ModelFormatError
from pyclattn.weights import SafeTensors, write_safetensors
from pyclattn.weights.checkpoint import arrays_of, named_tensors
from pyclattn.weights.pytorch import read_legacy, read_zip
from pyclattn.weights.source import Source
from pyclattn.weights.tensors import named

ARRAYS = hnp.arrays(
    st.sampled_from(["float32", "float64", "float16", "int64", "int32", "uint8", "bool", "complex64"]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)
KEYS = st.text(max_size=8) | st.integers(-(2**40), 2**40)
PLAIN = st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | st.text(max_size=20)
TREES = st.recursive(
    PLAIN | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=30,
).filter(lambda tree: type(tree) is not bytes)  # which the writers take for a pickle
FORMS = {"zip": (zip_file, read_zip), "legacy": (legacy_file, read_legacy)}


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


@settings(max_examples=200)
@given(tree=TREES)
def test_values_come_back(form, tree):
    write, read = FORMS[form]
    assert arrays_of(read(Source(write(tree), "x")), "x") == tree


@settings(max_examples=100)
@given(arrays=st.dictionaries(st.text(max_size=8), ARRAYS, max_size=5))
def test_arrays_come_back(form, arrays):
    write, read = FORMS[form]
    storages = Storages()
    tree = {name: storages.tensor(array, legacy=form == "legacy") for name, array in arrays.items()}
    found = named_tensors(read(Source(write(tree, storages), "x")), "x", "")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        made = named(found[name], name, "x")
        assert (made.dtype, made.shape) == (array.dtype, array.shape)
        assert made.tobytes() == array.tobytes()


@settings(max_examples=100)
@given(data=st.data(), shape=hnp.array_shapes(max_dims=3, max_side=4), size=st.integers(0, 40))
def test_a_view_is_numpy_s_or_refused(data, shape, size):
    """Any offset and strides: the view NumPy has of the same memory, or an error where it leaves it."""
    strides = tuple(data.draw(st.lists(st.integers(0, 8), min_size=len(shape), max_size=len(shape))))
    offset = data.draw(st.integers(0, 10))
    storages, memory = Storages(), np.arange(size, dtype=np.int32)
    key = storages.add(memory.tobytes(), "int32", size)
    file = Source(zip_file({"w": storages.view(key, offset, shape, strides)}, storages), "x")
    fits = offset + sum((n - 1) * s for n, s in zip(shape, strides)) < size
    if not fits:
        with pytest.raises(ModelFormatError, match="ends at element"):
            read_zip(file)
        return
    index = offset + sum(np.arange(n).reshape([-1 if i == j else 1 for j in range(len(shape))]) * s
                         for i, (n, s) in enumerate(zip(shape, strides)))  # fmt: skip
    found = named(named_tensors(read_zip(file), "x")["w"], "w", "x")
    np.testing.assert_array_equal(found, memory[np.broadcast_to(index, shape)])


@settings(max_examples=300)
@given(code=st.lists(st.sampled_from([*b"()]}NaeusdltbR0122qhK.", 0x81, 0x85, 0x86, 0x87, 0x8F, 0x90, 0x91, 0x93, 0x94]
                                     ) | st.integers(0, 255), max_size=40).map(bytes))  # fmt: skip
def test_any_opcodes_are_read_or_refused(code):
    with suppress(ModelFormatError):
        arrays_of(read_zip(Source(zip_file(Raw(code + b".")), "x"), "placeholder"), "x")


@settings(max_examples=200)
@given(data=st.data(), arrays=st.dictionaries(st.text(max_size=5), ARRAYS, min_size=1, max_size=3))
def test_altered_safetensors_are_read_or_refused(tmp_path, data, arrays):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {n: a for n, a in arrays.items() if a.dtype != "complex64"})
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ModelFormatError):
        for array in SafeTensors.of(Source(bytes(whole), "x")).values():
            assert array.nbytes <= 4 * len(whole)
