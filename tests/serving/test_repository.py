"""Models by name; files that change."""

import os

import numpy as np
import pytest

from pyclattn.errors import ArgumentError, ModelFormatError
from pyclattn.serving.errors import RequestError
from pyclattn.serving.repository import Repository
from tests.layers.test_folder import write
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


def test_a_folder_overwritten_in_place_changes_no_answer(tmp_path):
    """Its weights were mapped: other numbers were answered, and a cut file ended the process."""
    folder = write(tmp_path / "bert", "bert")
    feeds = {"input_ids": np.array([[3, 8, 5]]), "attention_mask": np.ones((1, 3), np.int64)}
    repository = opened(folder)
    wanted = repository.get("bert").model(**feeds)["last_hidden_state"]
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    with weights.open("r+b") as stream:
        stream.seek(-size // 2, os.SEEK_END)
        stream.write(bytes(size // 2))
    np.testing.assert_array_equal(repository.get("bert").model(**feeds)["last_hidden_state"], wanted)
    os.truncate(weights, 8)
    np.testing.assert_array_equal(repository.get("bert").model(**feeds)["last_hidden_state"], wanted)
    assert repository.get("bert").model.path == str(folder)


def test_a_file_without_utf8_in_its_name_is_served_under_one_that_can_be_sent(tmp_path):
    save(tmp_path / "model.safetensors", one_op("Relu")).rename(tmp_path / os.fsdecode(b"bad\xff.safetensors"))
    assert opened(tmp_path).names() == ["bad\ufffd"]


def test_what_may_not_be_looked_into_is_no_model(tmp_path, file, monkeypatch):
    """As lost+found at the root of a volume."""
    (tmp_path / "lost+found").mkdir()
    stat = os.stat

    def refusing(path, *given, **more):
        if "lost+found/" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *given, **more)

    monkeypatch.setattr(os, "stat", refusing)
    assert opened(tmp_path).names() == ["model"]


def test_an_ending_in_capitals(tmp_path):
    path = save(tmp_path / "model.safetensors", encoder(0)).rename(tmp_path / "model.SAFETENSORS")
    repository = opened(tmp_path)
    before = pooled(repository)
    os.truncate(path, 0)  # it was copied, too
    np.testing.assert_array_equal(pooled(repository), before)


def test_two_files_of_one_name_while_serving_stop_no_other(tmp_path, file):
    said = []
    repository = opened(tmp_path, log=lambda event, **fields: said.append((event, fields)))
    save(tmp_path / "twice.safetensors", one_op("Relu"))
    (tmp_path / "twice.onnx").write_bytes(b"")
    save(file, encoder(1))
    repository.refresh()
    assert repository.refresh() == ["model"]
    for _ in range(3):
        assert repository.refresh() == []
    (failure,) = [fields for event, fields in said if event == "model not loaded"]
    assert "same name, 'twice'" in failure["error"]
    (tmp_path / "twice.onnx").unlink()
    repository.refresh()
    assert repository.refresh() == ["twice"]


def test_a_model_that_fails_in_a_way_nobody_thought_of_stops_no_other(tmp_path, file):
    from pyclattn.model import load

    def failing(path):
        if path.stat().st_size == 3:
            raise KeyError("what")
        return load(path)

    repository = opened(file, loader=failing, copies=False)
    other = tmp_path / "z.safetensors"
    repository._paths = [other, *repository._paths]
    other.write_bytes(b"abc")
    save(file, encoder(1))
    repository.refresh()
    assert repository.refresh() == ["model"]
    assert repository.n_failures == 1


def test_a_full_disk_is_no_fault_of_the_file(tmp_path, file, monkeypatch):
    """What failed for the machine's reasons is tried again, though the file is as it was."""
    from pyclattn.serving import repository as module

    now = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    repository = opened(file)
    save(file, encoder(1))

    def full(source, target):
        raise OSError(28, "No space left on device", str(target))

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "copyfile", full)
        repository.refresh()
        assert repository.refresh() == []
        assert repository.refresh() == []
        assert repository.n_failures == 1
    assert repository.refresh() == repository.refresh() == []  # not at once
    now[0] += module.RETRY
    repository.refresh()
    assert repository.refresh() == ["model"]


def test_without_a_place_for_copies_the_way_out_is_told(file, monkeypatch):
    import tempfile

    def none():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(ArgumentError, match=r"No usable temporary directory.*TMPDIR.*--no-copy"):
        opened(file)
    assert opened(file, copies=False).names() == ["model"]
