"""What `make wheel` says of vulnerabilities: found, none, or not known; and what Windows is compiled with."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "packaging"


def script(name):
    """A file of packaging/ as a module."""
    spec = importlib.util.spec_from_file_location(f"pyclattn_packaging_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


audit = script("audit")
CLEAN = {"name": "numpy", "version": "2.4", "vulns": []}
BAD = {"name": "flask", "version": "0.1", "vulns": [{"id": "CVE-1"}, {"id": "CVE-2"}]}
UNKNOWN = {"name": "numba", "skip_reason": "Dependency not found"}
OURS = {"name": "pyclattn", "skip_reason": "Dependency not found"}


@pytest.mark.parametrize(
    ("packages", "code", "words"),
    [
        ([CLEAN, OURS], 0, "no known vulnerabilities: 1 of 1 packages audited"),
        ([CLEAN, BAD], 1, "known vulnerabilities: flask 0.1: CVE-1, CVE-2. 2 of 2"),
        ([BAD, UNKNOWN], 1, "1 of 2 packages audited; could not be audited: numba (the first: Dependency not found)"),
        ([CLEAN, UNKNOWN], 2, "not shown clean: 1 of 2 packages audited; could not be audited: numba"),
        ([UNKNOWN], 2, "not shown clean: 0 of 1"),
        ([OURS], 2, "not shown clean: 0 of 0"),
    ],
)
def test_an_audit_is_clean_only_if_every_package_was_looked_up(packages, code, words):
    found, told = audit.verdict({"dependencies": packages, "fixes": []})
    assert found == code
    assert words in told


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        ('print(\'{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}\')', 0, "1 of 1"),
        ('import sys; sys.exit("the service is out of reach")', 2, "ended with 1: the service is out of reach"),
    ],
)
def test_what_pip_audit_says_is_read(program, code, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "pip_audit.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert audit.main("somewhere") == code
    assert words in capsys.readouterr().out
