"""Scores, tables, pictures and processes of the tasks."""

import sys

import numpy as np
import pytest

from bench.tasks import genomics, matching, workers
from bench.tasks.fetch import FetchError, File, fetch
from bench.tasks.photographs import Pair
from bench.tasks.workers import Answer

SHIFT = np.array([[1, 0, 10], [0, 1, 0], [0, 0, 1]], float)


@pytest.fixture
def images():
    return Pair("made", np.zeros((32, 64, 3), np.uint8), np.zeros((32, 64, 3), np.uint8), SHIFT)


@pytest.fixture
def outputs():
    first = np.array([[0, 0], [5, 5], [9, 9], [20, 3]], np.float32)
    second = first + np.array([[10, 0], [10, 2.9], [10, 3.1], [0, 0]], np.float32)
    pairs = np.array([[0, 0], [1, 1], [2, 2], [3, 3]])
    return {"first": first, "second": second, "pairs": pairs}


def test_a_match_is_right_under_three_pixels(images, outputs):
    found = matching.score(images, outputs, outputs["pairs"], outputs["pairs"][:2])
    assert (found.n_matches, found.share) == (4, 0.5)
    assert found.f1 == pytest.approx(2 * 2 / 6)
    none = matching.score(images, outputs, outputs["pairs"][:0], outputs["pairs"])
    assert (none.n_matches, none.share, none.f1) == (0, 0, 0)


@pytest.mark.parametrize("module", [matching, genomics])
def test_lines_line_up(module, outputs):
    if module is matching:
        lines = [module.line(module.HEADINGS), module.row("wall", 8192, "exact", Answer({}, 123.4, 9_999_000_000),
                                                          module.Score(8192, 1.0, 1.0))]  # fmt: skip
    else:
        answer = Answer({"scores": np.array([0.1, 0.9])}, 123.4, 9_999_000_000)
        lines = [module.line(module.HEADINGS), module.line(module.BELOW),
                 module.row("35 transcripts", "exact", answer, [("AC", 1)], np.array([0.1, 0.9]))]  # fmt: skip
    assert len({len(line) for line in lines}) == 1
    assert max(map(len, lines)) <= 120


def test_every_attention_offered_is_one():
    from bench.tasks.lighterglue import LighterGlue
    from bench.tasks.tis_transformer import TisTransformer
    from pyclattn.plan import Plan

    for module, model in ((matching, LighterGlue), (genomics, TisTransformer)):
        assert next(iter(module.ATTENTIONS)) == "exact"
        for attention in module.ATTENTIONS.values():
            Plan.of(attention, model.attentions)


def test_transcripts_are_scored_one_by_one():
    sequences = [("ACGT", 2), ("TTATG", 0), ("ATG", 0)]
    scores = np.array([0.1, 0.2, 0.9, 0, 0, 0, 0.3, 0, 0, 0.5, 0.1, 0.2])
    exact = np.array([0.1, 0.95, 0.9, 0, 0, 0, 0.3, 0, 0, 0.5, 0.1, 0.2])
    assert [len(s) for s in genomics.split(scores, sequences)] == [4, 5, 3]
    row = genomics.row("three", "a", Answer({"scores": scores}, 1.0, 1_000_000), sequences, exact)
    assert row.split()[-10:] == ["2", "of", "3", "1", "of", "1", "2", "of", "3", "0.750"]
    assert genomics.n_first_atg(sequences) == 1


@pytest.mark.parametrize("module", [matching, genomics])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--attention", "nothing"], "must be one of"), (["--attention", '{"9.self": "exact"}'], "9.self"),
     (["--attention", "{"], "JSON")],
)  # fmt: skip
def test_a_wrong_attention_is_refused_before_any_work(module, arguments, says, capsys, monkeypatch):
    monkeypatch.setattr(module, "table", lambda *_: pytest.fail("work was begun"))
    assert module.main(arguments) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(("module", "arguments"), [(genomics, ["--length", "30001"]), (matching, ["--keypoints", "0"])])
def test_a_wrong_size_is_refused_before_any_work(module, arguments, capsys, monkeypatch):
    monkeypatch.setattr(module, "table", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(SystemExit):
        module.main(arguments)
    assert arguments[1] in capsys.readouterr().err


def test_pictures(images, outputs, tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    nothing = {**outputs, "pairs": outputs["pairs"][:0]}
    answers = {"exact": Answer(outputs, 1.0, 1), "none": Answer(nothing, 1.0, 1), "again": Answer(outputs, 2.0, 1)}
    matching.draw(tmp_path / "new" / "m.png", images, answers)
    genomics.draw(tmp_path / "g.png", [("a", 1, {"exact": np.array([0.1, 0.9, 0])})])
    for path in (tmp_path / "new" / "m.png", tmp_path / "g.png"):
        with image.open(path) as opened:
            assert np.asarray(opened.convert("RGB")).std() > 5


# -- processes --------------------------------------------------------------------------------------------------------

ECHO = """
import numpy as np

def prepare(request, inputs):
    held = np.ones(request["numbers"])
    return lambda: {"twice": 2 * inputs["x"], "held": held[:1]}
"""


@pytest.fixture
def echo(tmp_path, monkeypatch):
    (tmp_path / "echo_task.py").write_text(ECHO)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "echo_task"


def test_a_run_in_its_own_process(echo):
    small, large = (workers.ask(echo, {"numbers": n}, {"x": np.arange(3)}) for n in (1, 10_000_000))
    assert small.outputs["twice"].tolist() == [0, 2, 4]
    assert 0 < small.seconds < 10
    assert large.peak_bytes - small.peak_bytes == pytest.approx(80e6, rel=0.2)


def test_a_process_that_fails_says_why(echo):
    with pytest.raises(FetchError, match=r"echo_task failed: KeyError: 'numbers'"):
        workers.ask(echo, {}, {"x": np.arange(3)})


def test_a_debian_package_where_there_is_no_debian(monkeypatch, tmp_path):
    monkeypatch.setenv("PYCLATTN_CACHE", str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(FetchError, match="some-doc is a Debian package"):
        fetch(File("some-doc", "usr/share/x", "0" * 64, 1))


def test_a_debian_package_is_opened_and_its_files_checked(monkeypatch, tmp_path):
    import hashlib
    import io
    import tarfile

    monkeypatch.setenv("PYCLATTN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "bin"
    folder.mkdir()
    content, archive = b"ATG", io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        info = tarfile.TarInfo("./usr/share/x")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    (tmp_path / "contents.tar").write_bytes(archive.getvalue())
    packed = str(tmp_path / "contents.tar")
    scripts = {
        "apt-get": "open('some-doc_1_all.deb', 'w').close()",
        "dpkg-deb": f"import sys, shutil; shutil.copyfileobj(open({packed!r}, 'rb'), sys.stdout.buffer)",
    }
    for name, script in scripts.items():
        (folder / name).write_text(f"#!{sys.executable}\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    good = File("some-doc", "usr/share/x", hashlib.sha256(content).hexdigest(), 1)
    assert fetch(good)[0].read_bytes() == content
    with pytest.raises(FetchError, match="has sha256"):
        fetch(File("some-doc", "usr/share/x", "1" * 64, 1))
    with pytest.raises(FetchError, match="no file usr/share/y"):
        fetch(File("some-doc", "usr/share/y", "1" * 64, 1))
