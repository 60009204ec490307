"""Models by name; files that change."""

import os

import numpy as np
import pytest

from pyclattn.errors import ArgumentError, ModelFormatError
from pyclattn.serving.errors import RequestError
from pyclattn.serving.repository import Repository
from tests.serving.models import encoder, one_op, save, text


@pytest.fixture
def file(tmp_path):
    return save(tmp_path / "model.safetensors", encoder(0))


def opened(*paths, **options):
    repository = Repository(paths, **options)
    repository.open()
    return repository


def pooled(repository, name="model"):
    return repository.get(name).model(**text([20])[0])["pooler_output"]


def test_a_replaced_file_is_loaded_once_it_is_quiet(file):
    repository = opened(file)
    before, old = pooled(repository), repository.get("model")
    assert repository.refresh() == []
    save(file, encoder(1))
    assert repository.refresh() == []  # seen
    assert repository.refresh() == ["model"]  # and the same since
    assert repository.refresh() == []
    assert repository.get("model").number == 2
    assert not np.array_equal(pooled(repository), before)
    np.testing.assert_array_equal(old.model(**text([20])[0])["pooler_output"], before)  # who holds it may go on


def test_a_file_overwritten_in_place_changes_no_answer(file):
    """Truncated, then filled with another model's bytes: the pages that are mapped are not the file's."""
    repository = opened(file)
    before = pooled(repository)
    with file.open("r+b") as stream:
        stream.truncate(0)
        np.testing.assert_array_equal(pooled(repository), before)
        stream.write(os.urandom(1000))
    np.testing.assert_array_equal(pooled(repository), before)


def test_a_broken_file_leaves_the_old_model(file):
    said = []
    repository = opened(file, log=lambda event, **fields: said.append((event, fields)))
    before = pooled(repository)
    file.write_bytes(b"nonsense")
    for _ in range(4):
        assert repository.refresh() == []
    np.testing.assert_array_equal(pooled(repository), before)
    assert [event for event, _ in said] == ["model loaded", "model not loaded"]  # said once, tried once
    assert repository.n_failures == 1
    save(file, encoder(2))
    repository.refresh()
    assert repository.refresh() == ["model"]


def test_a_file_that_vanishes_is_served_on(file):
    repository = opened(file)
    file.unlink()
    assert repository.refresh() == []
    assert pooled(repository).shape == (1, 16)


def test_a_file_that_changes_while_it_is_read(file):
    from pyclattn.model import load

    def meddling(path):
        model = load(path)
        os.utime(file, ns=(0, meddling.time))
        meddling.time += 1
        return model

    meddling.time = 1
    with pytest.raises(ModelFormatError, match="changes while it is read"):
        opened(file, loader=meddling)


def test_a_folder_of_models_and_a_new_one(tmp_path, file):
    repository = opened(tmp_path)
    assert repository.names() == ["model"]
    save(tmp_path / "other.safetensors", one_op("Relu"))
    repository.refresh()
    assert repository.refresh() == ["other"]
    assert repository.names() == ["model", "other"]


def test_names_are_looked_up_and_never_opened(tmp_path):
    (tmp_path / "models").mkdir()
    save(tmp_path / "secret.safetensors", one_op("Relu"))
    save(tmp_path / "models" / "model.safetensors", one_op("Relu"))
    repository = opened(tmp_path / "models")
    for name in ("../secret", "secret", str(tmp_path / "secret"), "model.safetensors", "", ".", "model/../../secret"):
        with pytest.raises(RequestError) as told:
            repository.get(name)
        assert told.value.status == 404
    with pytest.raises(RequestError):
        repository.get("model", "2")


def test_two_files_of_one_name(tmp_path, file):
    (tmp_path / "b").mkdir()
    save(tmp_path / "b" / "model.safetensors", encoder(1))
    with pytest.raises(ArgumentError, match="same name, 'model'"):
        opened(file, tmp_path / "b" / "model.safetensors")


@pytest.mark.parametrize("what", ["missing", "empty", "broken"])
def test_nothing_to_serve_is_said_at_the_start(tmp_path, what):
    path = tmp_path if what == "empty" else tmp_path / "model.safetensors"
    if what == "broken":
        path.write_bytes(b"nonsense")
    with pytest.raises((ArgumentError, ModelFormatError)) as told:
        opened(path)
    assert str(path) in str(told.value)
    assert "/pyclattn-" not in str(told.value)  # the copy's place is nobody's business


def test_a_clustered_model_is_warm_before_its_first_request(file):
    """Nothing is compiled in a request: the loader has seen all methods at work."""
    from pyclattn.model import load

    seen = []

    def loading(path):
        model = load(path, {"method": "coclustered", "n_exact": 8})
        run = model.run
        model.run = lambda *given, **more: seen.append(given[1]["input_ids"].shape) or run(*given, **more)
        return model

    opened(save(file, encoder(n_positions=2000)), loader=loading)
    assert (1, 1088) in seen
    opened(file)
    assert len(seen) == 1
