"""What is compiled and measured once is found by a process without a home, on a disk that is read-only."""

import ctypes
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyclattn import _config, _dispatch
from pyclattn.cli import main
from pyclattn.functional import costs
from pyclattn.graph.serial import save_program
from tests.graph.test_model import attention_model

numba = pytest.importorskip("numba")

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
KERNELS = [name for name, room in _dispatch.OWNERS.items() if room == "numba"]
HITS = (
    f"KERNELS = {KERNELS}"
    """
import importlib, json
found = {}
for name in KERNELS:
    module, function = name.split(".")
    kernel = getattr(importlib.import_module(f"pyclattn.kernels.{module}"), function)
    found[name] = sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values())
print(json.dumps(found))
"""
)


def obey_permissions():
    """For root, whom a directory's mode does not stop."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE)


def run(program, **environment):
    """Run Python without privileges and without a home."""
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "PYCLATTN_CACHE")}
    environment = {"HOME": "/nowhere", "PYTHONPATH": str(Path(__file__).parents[1]), **kept, **environment}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, preexec_fn=obey_permissions, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A cache directory with every kernel in it: what this process itself has compiled or found."""
    folder = tmp_path_factory.mktemp("cache")
    for name in KERNELS:
        assert _dispatch.room_of(name) == "numba"
    own = importlib.import_module("pyclattn.kernels._cache").folder()
    shutil.copytree(own, folder / own.relative_to(_config.cache_dir()))
    return folder


@pytest.fixture
def read_only(compiled, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(compiled, folder)
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)


def test_kernels_are_found_where_nothing_can_be_written(read_only):
    ran = run(HITS, PYCLATTN_CACHE=str(read_only))
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {name: [1, 0] for name in KERNELS}


@pytest.mark.parametrize("place", ["read-only", "no home", "a file"])
def test_without_a_place_kernels_are_compiled(place, tmp_path):
    """Only a small function is, here: the kernels take ten seconds."""
    (tmp_path / "file").write_text("")
    (tmp_path / "closed").mkdir(mode=0o555)
    given = {"read-only": str(tmp_path / "closed"), "no home": "", "a file": str(tmp_path / "file")}[place]
    program = "from pyclattn.kernels._jit import jit\nprint(jit('int64(int64)')(lambda x: x + 1)(41))"
    ran = run(program, PYCLATTN_CACHE=given)
    assert (ran.stdout, ran.returncode) == ("42\n", 0), ran.stderr


def test_a_torn_file_is_compiled_anew(tmp_path):
    program = "k = jit('int64(int64)')(lambda x: x + 1); print(k(41), sum(k.stats.cache_hits.values()))"
    program = f"from pyclattn.kernels._jit import jit\n{program}"
    assert run(program, PYCLATTN_CACHE=str(tmp_path)).stdout == "42 0\n"
    for torn in tmp_path.glob("kernels/*/*"):
        torn.write_bytes(torn.read_bytes()[:-50])
    assert [run(program, PYCLATTN_CACHE=str(tmp_path)).stdout for _ in range(2)] == ["42 0\n", "42 1\n"]


def test_versions_that_share_a_cache_leave_each_others_kernels(tmp_path):
    program = "k = jit('int64(int64)')(lambda x: x + 1); print(sum(k.stats.cache_hits.values()))"
    program = f"from pyclattn.kernels._jit import jit\n{program}"
    versions = [f"from pyclattn.kernels import _cache\n_cache._stamp = lambda: '{name}'\n{program}" for name in "ab"]
    found = [run(code, PYCLATTN_CACHE=str(tmp_path)).stdout for code in 2 * versions]
    assert found == ["0\n", "0\n", "1\n", "1\n"]


def test_warmup_keeps_kernels_and_rates_and_runs_models(compiled, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "cache"
    shutil.copytree(compiled, folder)
    monkeypatch.setenv("PYCLATTN_CACHE", str(folder))
    monkeypatch.setattr(costs, "_known", {})
    monkeypatch.setattr(costs, "_timed", lambda n: dict.fromkeys(costs.METHODS))
    monkeypatch.setattr(costs, "_fitted", lambda method, *_: (1.0,) * (1 + len(costs.COUNTS[method](1, 1, 1, 1, 1, 1))))
    save_program(tmp_path / "model.safetensors", attention_model())
    arguments = ["warmup", str(tmp_path / "model.safetensors"), "--attention", "coclustered", "--n-threads", "3"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{folder}: {len(KERNELS)} compiled kernels, rates of 1 settings\n"
    assert costs._stored(3) is not None


def test_warmup_says_when_nothing_can_be_kept(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYCLATTN_CACHE", str(tmp_path / "file"))
    assert main(["warmup"]) == 1
    assert "set PYCLATTN_CACHE to a directory that can be written" in capsys.readouterr().err


def test_without_a_home_there_is_no_cache(monkeypatch):
    monkeypatch.delenv("PYCLATTN_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(OSError, match=r".*"):
        _config.cache_dir().mkdir(parents=True)
