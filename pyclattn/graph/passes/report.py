"""What `optimize` found: each attention, and each Softmax that stayed one, with the reason."""

from __future__ import annotations

from dataclasses import dataclass, field


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
            rows = [("attention", "heads", "head dim", "scale", "mask")]
            for found in self.attentions:
                grouped = found.n_heads != found.n_kv_heads
                heads = f"{found.n_heads}/{found.n_kv_heads}" if grouped else str(found.n_heads)
                rows.append((found.name, heads, str(found.head_dim), f"{found.scale:.4g}", found.mask))
            blocks.append(table(rows, right=(1, 2, 3)))
        if self.kept:
            blocks.append(table([("softmax kept", "why"), *((kept.name, kept.reason) for kept in self.kept)]))
        return "\n\n".join(blocks) or "no Softmax in this model"


def table(rows: list[tuple], right: tuple[int, ...] = ()) -> str:
    """Rows as aligned text; columns in ``right`` are set to the right."""
    texts = [tuple(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts)]
    lines = []
    for row in texts:
        cells = [cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
