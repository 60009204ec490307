"""What PyTorch gave for a network of every twin, kept; run without PyTorch."""

from pathlib import Path

import numpy as np

import pyclattn

KEPT = Path(__file__).parents[1] / "data" / "twins.safetensors"


def test_as_pytorch_had_it():
    with np.load(KEPT.with_suffix(".npz")) as file:
        arrays = {name: file[name] for name in file.files}
    inputs = {name.removeprefix("input."): x for name, x in arrays.items() if name.startswith("input.")}
    found = pyclattn.load(KEPT)(**inputs)
    assert set(found) == {"logits", "tokens"}
    for name, x in found.items():
        wanted = arrays[f"output.{name}"]
        assert np.abs(x - wanted).max() <= 1e-4 * np.ptp(wanted), name


def test_every_operator_is_in_it():
    kinds = {op.kind for op in pyclattn.load(KEPT).program.ops}
    own = ("cast_attention", "clustered_attention", "improved_clustered_attention", "centroid_attention",
           "farthest_point_sampling", "nearest_neighbors", "mean_pool_tokens", "random_positions")  # fmt: skip
    assert {f"pyclattn:{name}" for name in own} <= kinds
