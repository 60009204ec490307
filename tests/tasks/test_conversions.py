"""Models in pyclattn's format are kept, and made anew by another version of the converter."""

import os

import pytest

from bench.tasks import conversions


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"a model")
    return path


def test_a_model_is_converted_once_by_each_version(source, monkeypatch):
    made = []

    def make(target):
        made.append(target)
        target.write_bytes(b"converted")

    first = conversions.kept(source, make)
    small = conversions.kept(source, make, "int8")
    assert [conversions.kept(source, make), conversions.kept(source, make, "int8")] == [first, small] == made
    assert (first.stem, small.stem) == ("m", "m.int8")
    monkeypatch.setattr(conversions, "stamp", lambda: "0" * conversions.STAMP)
    second = conversions.kept(source, make)
    assert second != first
    assert made == [first, small, second]
    assert first.exists()
    os.utime(first.parent, (0, 0))
    assert conversions.kept(source, make, "int8") == made[3]
    assert [path for path in source.parent.iterdir() if path != source] == [second.parent]  # what is old is gone


def test_another_source_is_another_version(tmp_path, monkeypatch):
    folder = tmp_path / "some_converter"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('only looked at')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(conversions, "SOURCES", (("some_converter", "*.py"),))
    found = []
    for text in ("one", "other", "one"):
        (folder / "passes.py").write_text(text)
        conversions.stamp.cache_clear()
        found.append(conversions.stamp())
    conversions.stamp.cache_clear()
    assert found[0] == found[2] != found[1]
    assert len(found[0]) == conversions.STAMP


def test_all_sources_are_found():
    """A renamed folder would be a version that never changes."""
    for package, pattern in conversions.SOURCES:
        (folder,) = conversions.find_spec(package).submodule_search_locations
        assert list(conversions.Path(folder).glob(pattern))
