"""Sizes as polynomials in named unknowns, so that shapes can be compared before they are known.

A size is an ``int``, or a `Size` where it depends on the input: ``batch * length`` from a Reshape equals
``length * batch`` from another. Division that does not come out even is an unknown of its own.
"""

from __future__ import annotations

from collections import Counter

# Longer lists of numbers are data, not sizes.
MOST_VALUES = 64


class Size:
    """A polynomial with whole coefficients: ``{("b", "n"): 2}`` is ``2*b*n``.

    Examples
    --------
    >>> b, n = Size.named("b"), Size.named("n")
    >>> (b * n + n) // n, (n + 5) // 2, b * n == n * b
    (b + 1, ((n + 1)//2) + 2, True)
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
        if exact is not None:
            return exact
        if not isinstance(other, int) or other < 1:
            return Size({(Quotient(self, other),): 1})
        # (5*a + n - 2) // 5 is a + (n + 3) // 5 - 1: what divides comes out, so that equal lengths look equal.
        whole = Size({key: count // other for key, count in self.terms.items()})
        rest = Size({key: count % other for key, count in self.terms.items()})
        inner = rest.only_quotient()
        if inner is not None and isinstance(inner.bottom, int):  # (n // 5) // 2 is n // 10
            return whole + inner.top // (inner.bottom * other)
        return whole + Size({(Quotient(rest, other),): 1})

    def __rfloordiv__(self, other) -> int | Size:
        return Size({(Quotient(other, self),): 1}) if other else 0

    def __mod__(self, other) -> int | Size:
        return 0 if divide(self, other) is not None else Size.named(f"{_operand(self)}%{_operand(other)}")

    def only_quotient(self) -> Quotient | None:
        """The uneven division that this size is, if it is nothing else."""
        if list(self.terms.values()) != [1]:
            return None
        (symbols,) = self.terms
        return symbols[0] if len(symbols) == 1 and isinstance(symbols[0], Quotient) else None

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


class Quotient(str):
    """The name of a division that does not come out even, which remembers its two sides."""

    top: int | Size
    bottom: int | Size

    def __new__(cls, top, bottom):
        name = super().__new__(cls, f"{_operand(top)}//{_operand(bottom)}")
        name.top, name.bottom = top, bottom
        return name


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
    """The exact quotient, if it is one number times a product of unknowns for every term; else None."""
    top, bottom = _terms(numerator), _terms(denominator)
    if not bottom:
        return None
    if len(bottom) > 1:
        # (6*n + 6) / (n + 1): the terms come in one order, so the first of each gives the only candidate.
        if not top:
            return 0
        first = divide(Size(dict([max(top.items())])), Size(dict([max(bottom.items())])))
        return first if first is not None and first * Size(bottom) == Size(top) else None
    ((key, count),) = bottom.items()
    quotient = {}
    for symbols, top_count in top.items():
        rest = Counter(symbols)
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


def larger(a, b, least: int = 0):
    """The larger of two sizes where all unknowns are at least ``least``; None where that is not known."""
    difference = a - b
    if isinstance(difference, int):
        return a if difference > 0 else b
    if difference.not_negative(least):
        return a
    return b if (-difference).not_negative(least) else None


def smaller(a, b, least: int = 0):
    """The other one."""
    found = larger(a, b, least)
    return found if found is None else (b if found is a else a)
