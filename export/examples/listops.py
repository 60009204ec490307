"""ListOps: CAST against exact attention, trained alike.

python export/examples/listops.py                  # expressions of 32 to 128 tokens: minutes on two cores
python export/examples/listops.py --long           # 500 to 2,000, as in Long Range Arena: many hours
"""

from __future__ import annotations

import sys
from functools import cache, partial

import numpy as np

from pyclattn_export.examples.data import listops
from pyclattn_export.examples.network import Block, Classifier, MakeAttention, Nothing, SelfAttention, WithPosition
from pyclattn_export.examples.training import Batch, Example, main
from pyclattn_export.torch_layers import CASTAttention

DIM, N_HEADS, N_BLOCKS, HIDDEN = 64, 4, 2, 128
BATCH, N_TRAIN, N_TEST = 32, 20_000, 1_000
TRAIN_SEED, TEST_SEED = 1, 2


def networks(length: int, n_clusters: int, cluster_size: int) -> dict:
    """Exact attention, CAST with both clusterings and with half as many clusters twice as large, and none."""

    def network(attention: MakeAttention) -> Classifier:
        blocks = [Block(attention(), DIM, HIDDEN) for _ in range(N_BLOCKS)]
        return Classifier(WithPosition(len(listops.VOCABULARY), length, DIM), blocks, DIM, listops.N_CLASSES)

    cast = partial(CASTAttention, DIM, N_HEADS, n_clusters, cluster_size=cluster_size)
    larger = partial(CASTAttention, DIM, N_HEADS, n_clusters // 2, cluster_size=2 * cluster_size)
    kinds: dict[str, MakeAttention] = {
        "exact": partial(SelfAttention, DIM, N_HEADS),
        "topk": partial(cast, clustering="topk"),
        "sa_topk": partial(cast, clustering="sa_topk"),
        "topk-larger": partial(larger, clustering="topk"),
        "none": Nothing,
    }
    return {name: partial(network, attention) for name, attention in kinds.items()}


def example(kind: listops.Class, n_clusters: int, cluster_size: int, name: str, n_steps: int) -> Example:
    """The task on expressions of one class."""

    def load(n: int, seed: int) -> Batch:
        tokens, padding, labels = listops.generate(n, seed, kind)
        return {"inputs": tokens, "key_padding_mask": padding}, labels

    train = cache(partial(load, N_TRAIN, TRAIN_SEED))

    def batch(rng: np.random.Generator) -> Batch:
        inputs, labels = train()
        chosen = rng.integers(0, N_TRAIN, BATCH)
        return {name: array[chosen] for name, array in inputs.items()}, labels[chosen]

    made = networks(kind.longest, n_clusters, cluster_size)
    return Example(name, made, batch, cache(partial(load, N_TEST, TEST_SEED)), n_steps)


SHORT = example(listops.SHORT, 8, 16, "listops", 4000)
LONG = example(listops.LONG_RANGE_ARENA, 40, 50, "listops-long", 5000)

if __name__ == "__main__":
    is_long = "--long" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--long"]
    main(LONG if is_long else SHORT, __doc__)
