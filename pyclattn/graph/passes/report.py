"""What `optimize` found: each attention, and each Softmax that stayed one, with the reason."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyclattn._tables import table


@dataclass(frozen=True)
class AttentionFound:
    """One attention of a model.

    Attributes
    ----------
    name : str
        As in plans.
    n_heads, n_kv_heads : int or str
        Heads of the query, and of key and value.
    head_dim : int or str
    scale : float
    mask : str
        "none", or parts of "causal + key padding + pairs + bias".
    """

    name: str
    n_heads: int | str
    n_kv_heads: int | str
    head_dim: int | str
    scale: float
    mask: str


@dataclass(frozen=True)
class SoftmaxKept:
    """A Softmax that is not part of an attention pyclattn replaces."""

    name: str
    reason: str


@dataclass
class Report:
    """Outcome of `optimize`; ``str(report)`` is a table.

    Examples
    --------
    >>> print(Report([AttentionFound("layer.0", 12, 12, 32, 0.177, "key padding")], [SoftmaxKept("head", "why")]))
    attention  heads  head dim  scale  mask
    layer.0       12        32  0.177  key padding
    <BLANKLINE>
    softmax kept  why
    head          why
    """

    attentions: list[AttentionFound] = field(default_factory=list)
    kept: list[SoftmaxKept] = field(default_factory=list)
    n_ops_before: int = 0
    n_ops_after: int = 0

    def __str__(self) -> str:
        blocks = []
        if self.attentions:
            rows = []
            for found in self.attentions:
                grouped = found.n_heads != found.n_kv_heads
                heads = f"{found.n_heads}/{found.n_kv_heads}" if grouped else str(found.n_heads)
                rows.append((found.name, heads, str(found.head_dim), f"{found.scale:.4g}", found.mask))
            blocks.append(table(rows, ("attention", "heads", "head dim", "scale", "mask")))
        if self.kept:
            blocks.append(table([(kept.name, kept.reason) for kept in self.kept], ("softmax kept", "why")))
        return "\n\n".join(blocks) or "no Softmax in this model"
