"""The safetensors file: round trips, agreement with the safetensors package, and a folder of abusive files."""

import json

import numpy as np
import pytest

from pyclattn.errors import DTypeError, ModelFormatError
from pyclattn.weights import SafeTensors, write_safetensors

ARRAYS = {
    "f4": np.arange(6, dtype=np.float32).reshape(2, 3),
    "f8": np.array(1.5),
    "i8": np.array([[-1, 2]], np.int64),
    "u1": np.arange(5, dtype=np.uint8),
    "b": np.array([True, False, True]),
    "f2": np.array([0.5, -2], np.float16),
    "empty": np.zeros((0, 4), np.float32),
    "strided": np.arange(12, dtype=np.float32).reshape(3, 4).T,
}


def test_round_trip(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, ARRAYS, {"a": "b", "ü": "\\"})
    file = SafeTensors(path)
    assert set(file) == set(ARRAYS)
    assert file.metadata == {"a": "b", "ü": "\\"}
    for name, array in ARRAYS.items():
        assert file[name].dtype == array.dtype
        np.testing.assert_array_equal(file[name], array)
        assert not file[name].flags.writeable
        assert file[name].flags.aligned


def test_the_safetensors_package_reads_ours_and_we_read_its(tmp_path):
    from safetensors import numpy as theirs

    arrays = {n: np.ascontiguousarray(a) for n, a in ARRAYS.items()}
    write_safetensors(tmp_path / "ours.safetensors", arrays, {"a": "b"})
    for name, array in theirs.load_file(tmp_path / "ours.safetensors").items():
        np.testing.assert_array_equal(array, arrays[name])
    theirs.save_file(arrays, tmp_path / "theirs.safetensors", {"c": "d"})
    file = SafeTensors(tmp_path / "theirs.safetensors")
    assert file.metadata == {"c": "d"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(file[name], array)


def raw(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_bfloat16_is_widened(tmp_path):
    path = tmp_path / "x.safetensors"
    values = np.array([1.5, -3.25, np.inf], np.float32)
    path.write_bytes(raw({"w": entry("BF16", (3,), (0, 6))}, (values.view(np.uint32) >> 16).astype("<u2").tobytes()))
    np.testing.assert_array_equal(SafeTensors(path)["w"], values)


def test_unaligned_tensors_are_read(tmp_path):
    path = tmp_path / "x.safetensors"
    header = {"a": entry("U8", (1,), (0, 1)), "w": entry("F32", (2,), (1, 9))}
    path.write_bytes(raw(header, b"\x07" + np.float32([1, 2]).tobytes()))
    np.testing.assert_array_equal(SafeTensors(path)["w"], [1, 2])
    assert SafeTensors(path)["w"].flags.aligned


ABUSE = {
    "empty": (b"", "truncated"),
    "too short": (b"\x01\x00", "truncated"),
    "length beyond the file": (raw(b"{}", length=1000), "1000 bytes"),
    "length huge": (raw(b"{}", length=2**63), "truncated"),
    "not JSON": (raw(b"{nonsense"), "not JSON"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "not JSON"),
    "a list": (raw(b"[]"), "object"),
    "infinity": (raw(b'{"w": Infinity}'), "Infinity"),
    "nested deep": (raw(b"[" * 50_000), "nested"),
    "nested in strings is fine, then not": (raw(b'{"[[[[[[": {"shape": [[[[1]]]]}}'), "nested"),
    "named twice": (raw(b'{"w": {}, "w": {}}'), "'w': named twice"),
    "entry is a number": (raw({"w": 3}), "tensor 'w'"),
    "entry lacks a field": (raw({"w": {"dtype": "F32", "shape": [1]}}), "tensor 'w'"),
    "unknown dtype": (raw({"w": entry("F9")}, b"0000"), "'F9'"),
    "dtype a list": (raw({"w": entry(["F32"])}, b"0000"), "tensor 'w'"),
    "negative shape": (raw({"w": entry(shape=(-1,))}, b"0000"), "tensor 'w'"),
    "shape of fractions": (raw({"w": entry(shape=(1.0,))}, b"0000"), "tensor 'w'"),
    "shape of truth": (raw({"w": entry(shape=(True,))}, b"0000"), "tensor 'w'"),
    "rank 1000": (raw({"w": entry(shape=[1] * 1000)}, b"0000"), "tensor 'w'"),
    "size overflows": (raw({"w": entry(shape=(2**61, 2**61))}, b"0000"), "needs"),
    "size does not fit": (raw({"w": entry(shape=(2,))}, b"0000"), "needs 8 bytes, got 4"),
    "beyond the data": (raw({"w": entry(offsets=(4, 8))}, b"0000"), "the file has 4"),
    "backwards": (raw({"w": entry(offsets=(4, 0))}, b"0000"), "tensor 'w'"),
    "overlap": (raw({"v": entry(), "w": entry(offsets=(2, 6))}, b"000000"), "overlaps"),
    "gap": (raw({"w": entry(offsets=(4, 8))}, b"00000000"), "gap"),
    "more data than described": (raw({"w": entry()}, b"00000000"), "8 bytes of data"),
    "metadata is a list": (raw({"__metadata__": []}), "__metadata__"),
    "metadata holds numbers": (raw({"__metadata__": {"a": 1}}), "__metadata__"),
}


@pytest.mark.parametrize("name", ABUSE)
def test_abuse(tmp_path, name):
    data, words = ABUSE[name]
    path = tmp_path / "abuse.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelFormatError) as caught:
        SafeTensors(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_bool_of_other_bytes(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw({"w": entry("BOOL", (2,), (0, 2))}, b"\x01\x02"))
    with pytest.raises(ModelFormatError, match=r"tensor 'w'.*got 2"):
        SafeTensors(path)["w"]


def test_missing_file(tmp_path):
    with pytest.raises(ModelFormatError, match=r"nothing\.safetensors"):
        SafeTensors(tmp_path / "nothing.safetensors")
    with pytest.raises(ModelFormatError):
        SafeTensors(tmp_path)


@pytest.mark.parametrize("cut", [0, 4, 8, 50, -1])
def test_a_cut_file_is_refused(tmp_path, cut):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, ARRAYS)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ModelFormatError, match=r"x\.safetensors"):
        SafeTensors(path)


def test_text_and_complex_numbers_are_refused(tmp_path):
    for array in (np.array(["a"]), np.array([1j]), np.array([{}], object)):
        with pytest.raises(DTypeError, match="'w'"):
            write_safetensors(tmp_path / "x.safetensors", {"w": array})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"w": np.ones(3)})
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_safetensors(path, {"w": np.zeros(1000)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
