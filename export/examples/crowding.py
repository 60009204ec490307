"""How crowded the clusters of trained CAST networks are: whether tokens get into the one they are nearest to.

python export/examples/crowding.py out/examples/pixels-sa_topk-softmax.pt ...
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from pyclattn_export.examples import groups, pixels, training
from pyclattn_export.torch_layers import cast as twin

N_IMAGES = 80


def crowding(affinity: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    """Of one layer.

    Parameters
    ----------
    affinity : float array (B, N, C)
    chosen : bool array (B, N, C)

    Returns
    -------
    dict of str to float
        Shares of tokens in no cluster, in several, and in the nearest; clusters nearer to a token than its own, on
        average; tokens that are nearest to the most wanted cluster of a sequence, on average.
    """
    nearest, n_own = affinity.argmax(-1), chosen.sum(-1)
    own = np.where(chosen, affinity, -np.inf).max(-1)
    nearer = (affinity > own[..., None]).sum(-1)[n_own > 0]
    wanted = (nearest[..., None] == np.arange(affinity.shape[-1])).sum(1)
    return {
        "in none": float((n_own == 0).mean()),
        "in several": float((n_own > 1).mean()),
        "in the nearest": float(np.take_along_axis(chosen, nearest[..., None], -1).mean()),
        "nearer ones": float(nearer.mean()),
        "most wanted": float(wanted.max(1).mean()),
    }


def layers(path: Path) -> list[dict[str, float]]:
    """`crowding` of each layer of a network that `pixels` trained."""
    network = training.build(pixels.EXAMPLE, path.stem.split("-", 1)[1])
    network.load_state_dict(torch.load(path, weights_only=True))
    inputs, _ = pixels.test()
    affinities: list[np.ndarray] = []
    with groups.in_torch() as chosen:
        choose = twin.clusters

        def noted(affinity: torch.Tensor, *options):
            affinities.append(affinity.numpy())
            return choose(affinity, *options)

        with patch.object(twin, "clusters", noted):
            training.logits(network, {name: array[:N_IMAGES] for name, array in inputs.items()})
    n = pixels.N_BLOCKS
    return [crowding(np.concatenate(affinities[at::n]), np.concatenate(chosen[at::n])) for at in range(n)]


def main(paths: list[str]) -> None:
    """Print a line for each layer."""
    for path in map(Path, paths):
        for number, found in enumerate(layers(path)):
            print(f"{path.stem:32} layer {number}  " + "  ".join(f"{name} {x:.3g}" for name, x in found.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
