"""CAST (van Engelenhoven, Strisciuglio, Talavera 2024, arXiv 2402.04239), to be trained.

Symbols: batch B, heads H, tokens N, features of a head D, clusters C, cluster size K.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyclattn.errors import ArgumentError
from pyclattn.functional._check import one_of, whole
from pyclattn.functional.cast import ATTENTIONS, CLUSTERINGS
from pyclattn_export.torch_layers.attention import width_of_head
from pyclattn_export.torch_layers.operators import Result, operator

# Of the Laplace attention function: mean and deviation that match the squared ReLU (Ma et al. 2022, arXiv 2209.10655).
LAPLACE_MEAN, LAPLACE_DEVIATION = math.sqrt(0.5), math.sqrt(0.25 / math.pi)


@operator(
    "query", "key", "value", "surrogate_tokens", "gate", "key_padding_mask",
    result=lambda value, **_: Result(value.shape, value.dtype),
)  # fmt: skip
def cast_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    surrogate_tokens: Tensor,
    gate: Tensor,
    *,
    cluster_size: int,
    clustering: str = "topk",
    attention: str = "softmax",
    gate_temperature: bool = True,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Self-attention within learned clusters, joined by summaries of all clusters: `pyclattn.cast_attention`.

    Parameters
    ----------
    query, key, value : Tensor (B, H, N, D)
    surrogate_tokens : Tensor (C, H, D)
    gate : Tensor (B, N)
    cluster_size, clustering, attention, gate_temperature, key_padding_mask, scale
        As of `pyclattn.cast_attention`.

    Returns
    -------
    Tensor (B, H, N, E)
        0 at padding. Gradients reach all five inputs; which tokens a cluster holds is a choice, through which none
        flow.

    Raises
    ------
    ArgumentError
        For unknown words, and where "sa_topk" has no room for all tokens.
    """
    weigh = {"softmax": _softmax, "laplace": _laplace}[one_of("attention", attention, ATTENTIONS)]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    of_query = torch.einsum("bhnd,chd->bhnc", query, surrogate_tokens) * scale
    of_key = torch.einsum("bhnd,chd->bhnc", key, surrogate_tokens) * scale
    with torch.no_grad():
        mixed = torch.sigmoid(gate)[:, None, :, None]
        affinity = (mixed * weigh(of_query, None) + (1 - mixed) * weigh(of_key, None)).sum(1)
        members, is_member = clusters(affinity, cluster_size, clustering, key_padding_mask)
    if gate_temperature:
        of_query = of_query * (1 + F.softplus(gate))[:, None, :, None]
        of_key = of_key * (1 + F.softplus(-gate))[:, None, :, None]
    heads = query.shape[1]
    n_clusters, size = members.shape[1:]
    flat = members.flatten(1)

    def gathered(x: Tensor) -> Tensor:  # (B, H, N, F) -> (B, H, C, K, F)
        index = flat[:, None, :, None].expand(-1, heads, -1, x.shape[-1])
        return x.gather(2, index).unflatten(2, (n_clusters, size))

    values = gathered(value)
    scores = gathered(query) @ gathered(key).transpose(-1, -2) * scale
    within = weigh(scores, is_member[:, None, :, None, :]) @ values
    own = flat * n_clusters + torch.arange(n_clusters, device=flat.device).repeat_interleave(size)

    def of_own_cluster(x: Tensor) -> Tensor:  # (B, H, N, C) -> (B, H, C, K)
        return x.flatten(2).gather(2, own[:, None].expand(-1, heads, -1)).unflatten(2, (n_clusters, size))

    of_member = of_own_cluster(of_key)
    summaries = (weigh(of_member, is_member[:, None])[..., None] * values).sum(3)
    share = weigh(of_query, is_member.any(-1)[:, None, None])  # an empty cluster has no summary
    # a token gets attention within the clusters it is in, and the summaries of the others
    is_own = share.new_zeros(share[:, 0].shape).flatten(1).scatter_add(1, own, is_member.flatten(1).to(share.dtype)) > 0
    of_others = share.masked_fill(is_own.view_as(share[:, 0])[:, None], 0)
    within = ((of_own_cluster(share) * is_member[:, None])[..., None] * within).flatten(2, 3)
    index = flat[:, None, :, None].expand(-1, heads, -1, within.shape[-1])
    joined = (of_others @ summaries).scatter_add(2, index, within)
    return joined if key_padding_mask is None else joined.masked_fill(key_padding_mask[:, None, :, None], 0)


def clusters(
    affinity: Tensor, cluster_size: int, clustering: str, key_padding_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Members of each cluster (B, C, K), and which of these slots are taken.

    Parameters
    ----------
    affinity : Tensor (B, N, C)
    cluster_size : int
        K; no more than N are used.
    clustering : {"topk", "sa_topk"}
    key_padding_mask : Tensor (B, N), optional
    """
    padding = torch.zeros_like(affinity[..., 0], dtype=torch.bool) if key_padding_mask is None else key_padding_mask
    size = min(cluster_size, affinity.shape[1])
    choose = {"topk": _topk, "sa_topk": _sa_topk}[one_of("clustering", clustering, CLUSTERINGS)]
    if clustering == "sa_topk":
        _check_room(padding, size, affinity.shape[2])
    return choose(affinity.masked_fill(padding[..., None], -torch.inf), size)


def _check_room(padding: Tensor, size: int, n_clusters: int) -> None:
    longest = int((~padding).sum(1).max()) if padding.numel() else 0
    if size * n_clusters < longest:
        raise ArgumentError(
            f"cluster_size must be at least {-(-longest // n_clusters)} for sa_topk to place {longest} tokens in "
            f"{n_clusters} clusters, got {size}"
        )


def _topk(affinity: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Each cluster takes the tokens nearest to it, ties to the first."""
    best, members = affinity.transpose(1, 2).sort(dim=-1, descending=True, stable=True)
    return members[..., :size], best[..., :size] > -torch.inf


def _sa_topk(affinity: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Tokens choose in order of their best affinity, each the best cluster that still has room.

    All at once instead of one by one: every token chooses among the clusters thought open to it; a cluster chosen too
    often is closed to those after its last place. Repeated until no cluster closes earlier, this is the same answer.
    """
    batch, length, n_clusters = affinity.shape
    best, order = affinity.amax(-1).sort(dim=-1, descending=True, stable=True)
    wishes = affinity.gather(1, order[..., None].expand(-1, -1, n_clusters))
    turn = torch.arange(length, device=affinity.device)[:, None]
    is_valid, closed = (best > -torch.inf)[..., None], order.new_full((batch, 1, n_clusters), length)
    while True:
        wished = wishes.masked_fill(turn >= closed, -torch.inf).argmax(-1)
        chosen = F.one_hot(wished, n_clusters).bool() & is_valid
        taken = chosen.cumsum(1)
        earlier = torch.minimum(closed, (taken <= size).sum(1, keepdim=True))
        if torch.equal(earlier, closed):
            break
        closed = earlier
    place = (taken - 1).gather(2, wished[..., None])[..., 0]
    slots = torch.where(is_valid[..., 0], wished * size + place, n_clusters * size)  # the last one is thrown away
    members = order.new_zeros(batch, n_clusters * size + 1).scatter(1, slots, order)
    is_member = chosen.new_zeros(batch, n_clusters * size + 1).scatter(1, slots, True)
    return tuple(x[:, :-1].unflatten(1, (n_clusters, size)) for x in (members, is_member))


Weigh = Callable[[Tensor, Tensor | None], Tensor]


def _softmax(scores: Tensor, where: Tensor | None) -> Tensor:
    """Softmax over the last axis; all zeros where nothing takes part."""
    if where is None:
        return scores.softmax(-1)
    return scores.masked_fill(~where, torch.finfo(scores.dtype).min).softmax(-1) * where


def _laplace(scores: Tensor, where: Tensor | None) -> Tensor:
    # 0.5 (1 + erf z), to its last digit far below the mean too
    weights = 0.5 * torch.erfc((LAPLACE_MEAN - scores) / (LAPLACE_DEVIATION * math.sqrt(2)))
    return weights if where is None else weights * where


class CASTAttention(nn.Module):
    """The twin of `pyclattn.layers.CASTAttention`.

    Parameters
    ----------
    dim : int
        Width of the tokens.
    n_heads : int
        A divisor of ``dim``.
    n_clusters : int
        C, as many as there are surrogate tokens.
    cluster_size, clustering, attention, gate_temperature, scale
        As of `cast_attention`.
    bias : bool
        Whether the projections have one.

    Examples
    --------
    >>> import torch
    >>> layer = CASTAttention(32, n_heads=4, n_clusters=8, cluster_size=16)
    >>> layer(torch.randn(2, 100, 32)).shape
    torch.Size([2, 100, 32])
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        n_clusters: int,
        *,
        cluster_size: int,
        clustering: str = "topk",
        attention: str = "softmax",
        gate_temperature: bool = True,
        scale: float | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.options = {
            "cluster_size": whole("cluster_size", cluster_size, 1),
            "clustering": one_of("clustering", clustering, CLUSTERINGS),
            "attention": one_of("attention", attention, ATTENTIONS),
            "gate_temperature": gate_temperature,
            "scale": scale,
        }
        self.query_proj, self.key_proj, self.value_proj, self.out_proj = (
            nn.Linear(dim, dim, bias=bias) for _ in range(4)
        )
        self.surrogate_tokens = nn.Parameter(torch.randn(n_clusters, n_heads, width_of_head(dim, n_heads)))
        self.gate = nn.Linear(dim, 1)

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Tokens (B, N, dim), and a mask (B, N) that is True at padding, to (B, N, dim)."""
        query, key, value = (
            project(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for project in (self.query_proj, self.key_proj, self.value_proj)
        )
        gate = self.gate(x)[..., 0]
        joined = cast_attention(
            query, key, value, self.surrogate_tokens, gate, key_padding_mask=key_padding_mask, **self.options
        )
        return self.out_proj(joined.transpose(1, 2).flatten(2))
