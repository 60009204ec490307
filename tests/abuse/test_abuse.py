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
    """What one process a table says of its cases; all run at once."""
    running = {
        table: subprocess.Popen(
            [sys.executable, str(WORKER), table], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for table in worker.TABLES
    }
    found = {}
    for table, process in running.items():
        output, errors = process.communicate()
        lines = [json.loads(line) for line in output.splitlines()]
        found[table] = {line["case"]: line for line in lines}, f"{process.returncode}: {errors[-2000:]}"
    return found


def test_there_are_enough_attacks():
    assert len(CASES) >= 60


@pytest.mark.parametrize(("table", "case"), CASES, ids=lambda part: part)
def test_attack(answers, table, case):
    found, end = answers[table]
    assert case in found, f"the process ended here or before, with {end}"
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
