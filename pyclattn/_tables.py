"""Tables of text for people."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> str:
    """Rows under a head, text to the left, numbers to the right.

    Examples
    --------
    >>> print(table([("MatMul", 12), ("Add", 3)], ("op", "count")))
    op      count
    MatMul     12
    Add         3
    """
    cells = [tuple(map(str, row)) for row in rows]
    widths = [max(len(r[i]) for r in [tuple(head), *cells]) for i in range(len(head))]
    right = [bool(rows) and all(_is_number(str(r[i])) for r in rows)
             for i in range(len(head))]  # fmt: skip
    lines = []
    for row in [tuple(head), *cells]:
        line = "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right))
        lines.append(line.rstrip())
    return "\n".join(lines)


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "").removesuffix("%"))
    except ValueError:
        return False
    return True
