"""The command line."""

import json
from pathlib import Path

import numpy as np
import pytest

from pyclattn.cli import main
from pyclattn.graph.ops import supported_ops
from pyclattn.graph.serial import save_program
from pyclattn.weights.targets import write_atomically
from tests.graph.build import mlp, mlp_result
from tests.graph.test_model import attention_model


@pytest.fixture
def path(tmp_path):
    save_program(tmp_path / "model.safetensors", mlp())
    return str(tmp_path / "model.safetensors")


def test_info_lists_the_operators_that_run(capsys):
    assert main(["info", "--ops"]) == 0
    assert capsys.readouterr().out.split() == supported_ops()


def test_info_of_a_file(path, capsys):
    assert main(["info", path, "--ops", "--shape", "x=100x8"]) == 0
    out = capsys.readouterr().out
    for words in ("rows x 8", "272", "MatMul", "pyclattn:Linear", "memory of a run"):
        assert words in out


def test_info_names_the_attentions(tmp_path, capsys):
    save_program(tmp_path / "m.safetensors", attention_model())
    assert main(["info", str(tmp_path / "m.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "layer0" in out
    assert "layer1" in out


@pytest.mark.parametrize("form", ["npy", "npz", "named"])
def test_run(path, tmp_path, form):
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    given = str(tmp_path / ("in.npz" if form == "npz" else "in.npy"))
    np.savez(given, x=x) if form == "npz" else np.save(given, x)
    if form == "named":
        given = f"x={given}"
    out = tmp_path / ("out.npy" if form == "npy" else "out.npz")
    assert main(["run", path, "--input", given, "-o", str(out)]) == 0
    result = np.load(out) if form == "npy" else np.load(out)["y"]
    np.testing.assert_allclose(result, mlp_result(mlp(), x), rtol=1e-4, atol=1e-4)


def test_profile(path, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.ones((5, 8), np.float32))
    trace = tmp_path / "trace.json"
    arguments = ["run", path, "-i", str(tmp_path / "x.npy"), "-o", str(tmp_path / "o.npz"), "--profile", str(trace)]
    assert main(arguments) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["op", "calls", "ms", "%"]
    assert out[-1].split()[:2] == ["total", "3"]
    events = json.loads(trace.read_text())["traceEvents"]
    assert [e["name"] for e in events] == ["up", "down", "residual"]
    assert all(e["ph"] == "X" and e["dur"] >= 0 for e in events)


def test_attention_is_chosen_on_the_command_line(tmp_path):
    model = tmp_path / "m.safetensors"
    save_program(model, attention_model())
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((1, 150, 32)).astype(np.float32))
    results = []
    for attention in ("exact", '{"method": "clustered", "n_clusters": 5}'):
        out = tmp_path / "o.npy"
        arguments = ["run", str(model), "-i", str(tmp_path / "x.npy"), "-o", str(out), "--attention", attention]
        assert main(arguments) == 0
        results.append(np.load(out))
    assert np.abs(results[0] - results[1]).max() > 1e-3


def damaged_files(folder):
    """What NumPy's readers answer with errors of zipfile, tokenize and the allocator."""
    np.savez(folder / "good.npz", x=np.ones((5, 8), np.float32))
    zipped, plain = (folder / "good.npz").read_bytes(), (folder / "x.npy").read_bytes()
    (folder / "cut.npz").write_bytes(zipped[: len(zipped) // 2])
    (folder / "altered.npz").write_bytes(zipped.replace(np.ones(2, np.float32).tobytes(), b"\xff" * 8, 1))
    entry = zipped.rindex(b"PK\x01\x02") + 8
    (folder / "locked.npz").write_bytes(zipped[:entry] + b"\x01" + zipped[entry + 1 :])  # the flag of encryption
    (folder / "header.npy").write_bytes(plain[:10] + b'"""""' + plain[15:])
    (folder / "huge.npy").write_bytes(plain.replace(b"(5, 8), }       ", b"(5, 99999999999)}", 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"file": "nothing.safetensors"}, "nothing.safetensors"),
        ({"input": "nothing.npy"}, "nothing.npy"),
        ({"input": "text.npy"}, "not a .npy"),
        ({"input": "pickled.npy"}, "not a .npy"),
        ({"input": "header.npy"}, "not a .npy"),
        ({"input": "huge.npy"}, "not a .npy"),
        ({"input": "cut.npz"}, "not a .npy"),
        ({"input": "altered.npz"}, "not a .npy"),
        ({"input": "locked.npz"}, "not a .npy"),
        ({"input": "x="}, "NAME=FILE"),
        ({"input": "wrong.npz"}, "unknown z"),
        ({"output": "out.txt"}, ".npz"),
        ({"output": "none/out.npz"}, "folder that exists, got 'none/out.npz'"),
        ({"output": "folder.npz"}, "must be a file"),
        ({"attention": "nonsense"}, "nonsense"),
        ({"attention": "{nonsense"}, "JSON"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(path, tmp_path, capsys, monkeypatch, change, words):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.ones((5, 8), np.float32))
    np.savez("wrong.npz", z=np.ones(3))
    np.save("pickled.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "folder.npz").mkdir()
    damaged_files(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    a = {"file": path, "input": "x.npy", "output": "out.npz", "attention": "exact", **change}
    assert main(["run", a["file"], "-i", a["input"], "-o", a["output"], "--attention", a["attention"]]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_shape_is_checked(path, capsys):
    assert main(["info", path, "--shape", "nonsense"]) == 1
    assert "name=1x3x224x224" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["inf", "1e400", "nan", "2GiB", "GB", "two"])
def test_bytes_are_a_number(path, capsys, given):
    with pytest.raises(SystemExit):
        main(["run", path, "-i", "x.npy", "-o", "o.npz", "--max-memory", given])
    assert f"--max-memory: a number, or one with kB, MB or GB behind it, not '{given}'" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--output", "--profile"])
def test_where_to_write_is_asked_before_the_run(path, tmp_path, capsys, monkeypatch, option):
    """A run may take minutes; that its result has no place is said before it."""
    monkeypatch.setattr("pyclattn.model.load", lambda *_, **__: pytest.fail("loaded"))
    places = {"--output": str(tmp_path / "o.npz"), "--profile": str(tmp_path / "t.json")}
    places[option] = str(tmp_path / "none" / "o.npz")
    assert main(["run", path, "-i", "x.npy", *(text for pair in places.items() for text in pair)]) == 1
    assert f"{option} must lie in a folder that exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "profile", "named"),
    [
        ("x.npz", None, "--output"), ("./x.npz", None, "--output"), ("link.npz", None, "--output"),
        ("o.npz", "x.npz", "--profile"), ("o.npz", "model.safetensors", "--profile"), ("o.npz", "o.npz", "--profile"),
    ],
)  # fmt: skip
def test_nothing_that_is_read_is_written_over(path, tmp_path, capsys, monkeypatch, output, profile, named):
    monkeypatch.chdir(tmp_path)
    Path("model.safetensors").write_bytes(Path(path).read_bytes())
    np.savez("x.npz", x=np.ones((5, 8), np.float32))
    Path("link.npz").hardlink_to("x.npz")
    before = {p: p.read_bytes() for p in Path().iterdir()}
    more = [] if profile is None else ["--profile", profile]
    assert main(["run", "model.safetensors", "-i", "x.npz", "-o", output, *more]) == 1
    wrong = profile or str(Path(output))
    assert f"{named} must be a file of its own, got {wrong!r}, the same file as " in capsys.readouterr().err
    assert {p: p.read_bytes() for p in Path().iterdir()} == before


def test_a_failed_write_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(IsADirectoryError) as caught:
        write_atomically(tmp_path, lambda file: file.write(b"x"))
    assert (caught.value.filename, list(tmp_path.parent.glob(".*.part"))) == (str(tmp_path), [])
    with pytest.raises(FileNotFoundError, match=r"none/o\.npz'$"):
        write_atomically(tmp_path / "none" / "o.npz", lambda file: file.write(b"x"))


def test_control_c_is_one_line_and_leaves_nothing(path, tmp_path, capsys, monkeypatch):
    def pressed(*_):
        raise KeyboardInterrupt

    np.save(tmp_path / "x.npy", np.ones((5, 8), np.float32))
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("pyclattn.cli.write_npz", pressed)
    assert main(["run", path, "-i", str(tmp_path / "x.npy"), "-o", str(tmp_path / "o.npz")]) == 130
    assert capsys.readouterr().err == "pyclattn: interrupted\n"
    assert sorted(tmp_path.iterdir()) == before
