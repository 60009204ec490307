"""Networks trained in PyTorch by export/examples, as they were exported: right as often as PyTorch was."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import pyclattn
from pyclattn_export.examples.data import listops, pixels, point_clouds, tokens

CLUSTERED = ("topk", "topk-softmax", "topk-laplace", "sa_topk-softmax", "sa_topk-laplace")
TRAINED = Path(__file__).parents[1] / "data" / "trained"
FOUND = {
    (path.stem, network["name"]): network
    for path in sorted(TRAINED.glob("*.json"))
    for network in json.loads(path.read_text())
}
IDS = [f"{example}-{name}" for example, name in FOUND]
# The first sequences of the test set, few where a network is slow; the scripts compare the whole set.
MOST = {"exact": 20}
DEFAULT_MOST = 80
# Each script's N_TEST and TEST_SEED: the sequences it was scored on.
N_TEST, TEST_SEED, N_POINTS = 500, 2, 1024


@cache
def test_set(example):
    """Inputs by name, and labels."""
    if example == "listops":
        ids, padding, labels = listops.generate(2 * N_TEST, TEST_SEED)
        return {"inputs": ids, "key_padding_mask": padding}, labels
    if example.startswith("pixels"):
        with np.load(TRAINED / "pixels.npz") as file:
            return {"inputs": pixels.sequences(file["images"])}, file["labels"]
    if example == "point_clouds":
        points, labels = point_clouds.generate(N_TEST, N_POINTS, TEST_SEED)
        return {"points": points}, labels
    letters, labels = tokens.generate(N_TEST, TEST_SEED)
    return {"inputs": letters}, labels


test_set.__test__ = False


def test_all_examples_are_there():
    assert {example for example, _ in FOUND} == {"listops", "pixels", "pixels_longer", "point_clouds", "tokens"}
    assert len(FOUND) >= 12


@pytest.mark.parametrize(("example", "name"), FOUND, ids=IDS)
def test_a_trained_network_is_right_as_often_as_in_torch(example, name):
    found = FOUND[example, name]
    inputs, labels = test_set(example)
    n = min(len(labels), MOST.get(name, DEFAULT_MOST))
    model = pyclattn.load(TRAINED / f"{example}-{name}.safetensors")
    logits = model(**{key: array[:n] for key, array in inputs.items()})["output"]
    is_right = logits.argmax(1) == labels[:n]
    # what PyTorch said of the same sequences, one bit each
    expected = np.unpackbits(np.frombuffer(bytes.fromhex(found["right"]), np.uint8))[:n].astype(bool)
    # a sequence between two classes may fall to the other side on another machine
    assert (is_right != expected).mean() <= 0.02


@pytest.mark.parametrize(("example", "name"), FOUND, ids=IDS)
def test_export_changed_nothing_but_how_ties_fall(example, name):
    """Where two tokens are as near to a cluster to the last digit, rounding decides; so it does in PyTorch."""
    found = FOUND[example, name]
    assert found["same_predictions"] == 1
    assert found["pyclattn"]["largest_alike"] <= 1e-4  # where all tokens are in the clusters PyTorch puts them in
    if name in CLUSTERED:
        assert found["pyclattn"]["alike"] >= 0.99
    else:
        assert found["pyclattn"]["within"] == found["pyclattn"]["alike"] == 1
    assert (TRAINED / f"{example}-{name}.safetensors").stat().st_size <= 2_000_000


def test_ties_fall_otherwise_as_often_in_pytorch():
    """Sequences whose tokens are in other clusters: beside PyTorch's float32 pyclattn, and PyTorch in float64."""
    networks = [found for (_, name), found in FOUND.items() if name in CLUSTERED]
    ours, theirs = (sum((1 - f[run]["alike"]) * f["n_test"] for f in networks) for run in ("pyclattn", "float64"))
    assert ours <= theirs + 3 * max(1, theirs) ** 0.5  # both are counts of rare events
