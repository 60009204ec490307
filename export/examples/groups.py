"""Which tokens the CAST layers of a network put into which cluster, in PyTorch and in pyclattn.

A choice among tokens that are equally near to the last digit depends on the order of roundings. Where two runs of a
network choose alike, they differ by roundings only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from pyclattn.functional import cast as functional
from pyclattn_export.torch_layers import cast as twin

Groups = list[np.ndarray]  # bool (B, N, C) of each layer in turn, batch after batch


@contextmanager
def in_torch() -> Iterator[Groups]:
    """Within the block, what every call of the twin chooses."""
    found: Groups = []
    choose = twin.clusters

    def noted(affinity: torch.Tensor, *options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        members, is_member = choose(affinity, *options)
        chosen = torch.zeros(affinity.shape, dtype=torch.int8)  # a slot that is not taken names a token, too
        chosen.scatter_add_(1, members.transpose(1, 2), is_member.transpose(1, 2).to(torch.int8))
        found.append(chosen.numpy() > 0)
        return members, is_member

    with patch.object(twin, "clusters", noted):
        yield found


@contextmanager
def in_pyclattn() -> Iterator[Groups]:
    """Within the block, what every call of `pyclattn.cast_attention` by a model chooses."""
    found: Groups = []
    attend = functional.cast_attention

    def noted(query, key, value, surrogate_tokens, gate, *, gate_temperature=True, out=None, **options):
        found.append(functional.memberships(query, key, surrogate_tokens, gate, **options))
        return attend(
            query, key, value, surrogate_tokens, gate, gate_temperature=gate_temperature, out=out, **options
        )  # fmt: skip

    with patch.object(functional, "cast_attention", noted):
        yield found


def joined(found: Groups, n_sequences: int) -> np.ndarray:
    """All choices of each sequence in a row, bool (n_sequences, choices); none where a network has no clusters."""
    if not found:
        return np.zeros((n_sequences, 0), bool)
    n_layers = sum(map(len, found)) // n_sequences
    rows = [choices.reshape(len(choices), -1) for choices in found]
    return np.concatenate(
        [np.concatenate(rows[at : at + n_layers], axis=1) for at in range(0, len(rows), n_layers)]
    )  # fmt: skip
