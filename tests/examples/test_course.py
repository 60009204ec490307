"""The course of every example: trained, exported, compared with PyTorch in float32 and in float64."""

import json

import numpy as np
import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

from pyclattn_export.examples import crowding, groups, training  # noqa: E402
from pyclattn_export.examples.network import Block, Classifier  # noqa: E402
from pyclattn_export.torch_layers import CASTAttention  # noqa: E402

N, LENGTH, CLUSTERS, LAYERS = 50, 24, 3, 2  # more sequences than one batch of the comparison


def network(clustering="topk"):
    def block():
        return Block(CASTAttention(8, 2, CLUSTERS, cluster_size=8, clustering=clustering), 8, 16)

    return Classifier(torch.nn.Linear(3, 8), [block() for _ in range(LAYERS)], 8, 4)


def batch(rng):
    return {"inputs": rng.standard_normal((N, LENGTH, 3), np.float32)}, rng.integers(0, 4, N)


EXAMPLE = training.Example(
    "small",
    {"topk": network, "sa": lambda: network("sa_topk"), "none": lambda: Classifier(torch.nn.Linear(3, 8), [], 8, 4)},
    batch,
    lambda: batch(np.random.default_rng(9)),
    n_steps=2,
)


@pytest.fixture(params=EXAMPLE.networks)
def trained(request, tmp_path):
    module, path = training.build(EXAMPLE, request.param), tmp_path / f"small-{request.param}.pt"
    path.with_suffix(".json").write_text(json.dumps(training.train(module, EXAMPLE, 2, request.param)))
    torch.save(module.state_dict(), path)
    return request.param, tmp_path


def test_a_network_is_compared_with_pytorch_in_both_precisions(trained, monkeypatch):
    name, folder = trained
    found = training.prove(EXAMPLE, name, folder)
    for run in ("pyclattn", "float64"):
        assert found[run]["largest_alike"] <= training.LARGEST_DIFFERENCE
        assert found[run]["alike"] >= 0.9
        assert found[run]["largest"] > 0  # float64 is not float32, nor are we PyTorch
    assert found["same_predictions"] == 1
    assert f"{found['accuracy_torch']:.1%}" in training.table("small", [found])
    if name == "none":
        return
    choose = groups.functional.memberships  # a clustering that is not PyTorch's is seen, whatever the logits
    monkeypatch.setattr(groups.functional, "memberships", lambda *args, **kwargs: choose(*args, **kwargs)[:, ::-1])
    assert training.prove(EXAMPLE, name, folder)["pyclattn"]["alike"] < 0.1


def test_only_sequences_in_the_same_clusters_count_as_alike():
    logits, choices = np.zeros((3, 2)), np.zeros((3, 5), bool)
    other, moved = logits.copy(), choices.copy()
    other[:, 1] = [1e-5, 1e-3, 0.5]
    moved[2, 4] = True
    found = training.distance(other, moved, logits, choices)
    assert (found.largest, found.within, found.alike) == (0.5, 1 / 3, 2 / 3)
    assert found.largest_alike == 1e-3


@pytest.mark.parametrize("clustering", ["topk", "sa_topk"])
def test_what_the_twin_chooses_is_noted_without_slots_that_nobody_takes(clustering):
    layer = CASTAttention(8, 2, CLUSTERS, cluster_size=10, clustering=clustering)
    padding = torch.arange(LENGTH)[None] >= torch.tensor([LENGTH, 5])[:, None]
    with groups.in_torch() as found:
        layer(torch.randn(2, LENGTH, 8), key_padding_mask=padding)
    assert [choices.shape for choices in found] == [(2, LENGTH, CLUSTERS)]
    assert not found[0][padding.numpy()].any()
    assert found[0].sum(1).max() <= 10
    assert (found[0].sum(2)[~padding.numpy()] == 1).all() or clustering == "topk"


def test_choices_of_batches_and_layers_lie_in_a_row_a_sequence():
    found = [np.full((n, 2, 3), n == 4) for n in (4, 4, 1, 1)]
    rows = groups.joined(found, 5)
    assert rows.shape == (5, 12)
    assert rows.all(1).tolist() == [True] * 4 + [False]
    assert groups.joined([], 5).shape == (5, 0)


def test_crowding_tells_who_is_where():
    affinity = np.array([[[3.0, 1], [2, 1], [0, 1]]])
    chosen = np.array([[[True, False], [False, True], [True, True]]])
    assert crowding.crowding(affinity, chosen) == {
        "in none": 0, "in several": pytest.approx(1 / 3), "in the nearest": pytest.approx(2 / 3),
        "nearer ones": pytest.approx(1 / 3), "most wanted": 2,
    }  # fmt: skip
