"""Hostile files: each gets its answer; none crashes, hangs, takes over twice its size and 64 MB, or runs code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import worker

WORKER = Path(worker.__file__)
MARGIN = 64 << 20
CASES = [(table, case) for table, (_, _, cases) in worker.TABLES.items() for case in cases]


@pytest.fixture(scope="module")
def answers():
    """What one process a table says of its cases."""
    found = {}
    for table in worker.TABLES:
        ran = subprocess.run([sys.executable, str(WORKER), table], capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in ran.stdout.splitlines()]
        found[table] = {line["case"]: line for line in lines}, ran
    return found


def test_there_are_enough_attacks():
    assert len(CASES) >= 60


@pytest.mark.parametrize(("table", "case"), CASES, ids=lambda part: part)
def test_attack(answers, table, case):
    found, ran = answers[table]
    assert case in found, f"the process ended ({ran.returncode}) here or before: {ran.stderr[-2000:]}"
    answer, words = found[case], worker.TABLES[table][2][case][1]
    assert not answer["executed"]
    assert answer["grown"] <= 2 * answer["size"] + MARGIN
    if words:
        assert answer["error"] in ("ModelFormatError", "UnsupportedOpError"), answer["text"]
        assert words in answer["text"]
        assert "/model/" in answer["text"], "the file is not named"
        assert answer["length"] < 2000, "longer than anyone reads"
    else:
        assert answer["error"] == "", answer["text"]
