"""Sizes as polynomials in named unknowns, so that shapes can be compared before they are known.

A size is an ``int``, or a `Size` where it depends on the input: ``batch * length`` from a Reshape equals
``length * batch`` from another. Division that does not come out even is an unknown of its own.
"""

from __future__ import annotations

from collections import Counter

Dim = "int | Size"


class Size:
    """A polynomial with whole coefficients: ``{("b", "n"): 2}`` is ``2*b*n``.

    Examples
    --------
    >>> b, n = Size.named("b"), Size.named("n")
    >>> (b * n + n) // n, (n - 1) // 2, b * n == n * b
    (b + 1, (n - 1)//2, True)
    """

    __slots__ = ("terms",)

    def __init__(self, terms: dict[tuple[str, ...], int]):
        self.terms = {key: count for key, count in terms.items() if count}

    @classmethod
    def named(cls, name: str) -> Size:
        return cls({(name,): 1})

    def __eq__(self, other) -> bool:
        return self.terms == _terms(other) if isinstance(other, (int, Size)) else NotImplemented

    def __hash__(self) -> int:
        return hash(frozenset(self.terms.items()))

    def __add__(self, other) -> int | Size:
        total = Counter(self.terms)
        for key, count in _terms(other).items():
            total[key] += count
        return _plain(Size(total))

    __radd__ = __add__

    def __mul__(self, other) -> int | Size:
        product: Counter = Counter()
        for key, count in self.terms.items():
            for key2, count2 in _terms(other).items():
                product[tuple(sorted(key + key2))] += count * count2
        return _plain(Size(product))

    __rmul__ = __mul__

    def __neg__(self) -> int | Size:
        return self * -1

    def __sub__(self, other) -> int | Size:
        return self + -1 * other

    def __rsub__(self, other) -> int | Size:
        return -self + other

    def __floordiv__(self, other) -> int | Size:
        exact = divide(self, other)
        return exact if exact is not None else Size.named(f"{_operand(self)}//{_operand(other)}")

    def __rfloordiv__(self, other) -> int | Size:
        return Size.named(f"{_operand(other)}//{_operand(self)}") if other else 0

    def __mod__(self, other) -> int | Size:
        return 0 if divide(self, other) is not None else Size.named(f"{_operand(self)}%{_operand(other)}")

    def positive(self) -> bool:
        """Whether it is above 0 for all unknowns of at least 0, as far as the signs tell."""
        return self.terms.get((), 0) > 0 and all(count > 0 for count in self.terms.values())

    def not_negative(self, least: int) -> bool:
        """Whether it is at least 0 for all unknowns of at least ``least`` (0 or 1), as far as the signs tell."""
        number = self.terms.get((), 0)
        others = [count for key, count in self.terms.items() if key]
        return all(count > 0 for count in others) and number + least * sum(others) >= 0

    def __repr__(self) -> str:
        text = ""
        for key, count in sorted(self.terms.items(), key=lambda item: (-len(item[0]), item[0])):
            factors = [str(abs(count))] if abs(count) != 1 or not key else []
            # An unknown that is itself a quotient needs brackets only as a factor.
            factors += [f"({name})" if "//" in name or "%" in name else name for name in key]
            term = "*".join(factors)
            if len(self.terms) == 1 and len(factors) == 1 and key:
                term = key[0]
            text += f" {'-' if count < 0 else '+'} {term}" if text else ("-" if count < 0 else "") + term
        return text


def _terms(value) -> dict[tuple[str, ...], int]:
    if isinstance(value, Size):
        return value.terms
    return {(): int(value)} if value else {}


def _plain(size: Size) -> int | Size:
    if not size.terms:
        return 0
    return size.terms[()] if set(size.terms) == {()} else size


def _operand(value) -> str:
    text = str(value)
    return f"({text})" if not text.replace("_", "").isalnum() else text


def divide(numerator, denominator) -> int | Size | None:
    """The exact quotient by a number or a product of unknowns; None where it does not come out even."""
    bottom = _terms(denominator)
    if len(bottom) != 1:
        return 1 if bottom and _terms(numerator) == bottom else None
    ((key, count),) = bottom.items()
    quotient = {}
    for top, top_count in _terms(numerator).items():
        rest = Counter(top)
        rest.subtract(Counter(key))
        if top_count % count or min(rest.values(), default=0) < 0:
            return None
        quotient[tuple(sorted(rest.elements()))] = top_count // count
    return _plain(Size(quotient))


def product(dims) -> int | Size:
    """The product of sizes.

    Examples
    --------
    >>> product([2, Size.named("n"), 3])
    6*n
    """
    total: int | Size = 1
    for dim in dims:
        total = total * dim
    return total


def broadcast(first, second):
    """The size two axes have together, None where that is not known."""
    if first is None or second is None:
        known = first if second is None else second
        return known if isinstance(known, int) and known != 1 else None
    if first == second or second == 1:
        return first
    if first == 1:
        return second
    # Broadcasting allows no other pair than equal ones, so the number is what the unknown must be.
    if isinstance(first, int) or isinstance(second, int):
        return first if isinstance(first, int) else second
    return None
