"""ListOps as Long Range Arena defines it: a nested expression of lists in prefix form, its value one of ten digits.

``[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]`` is 5. An argument is a digit with probability 3/4, else a list of 2 to
10 arguments; lists nest at most 10 deep; expressions outside the wanted lengths are thrown away.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
VOCABULARY = ("<pad>", *OPERATORS, "]", *map(str, range(10)))
N_CLASSES = 10
LIST_PROBABILITY = 0.25
_ID = {token: number for number, token in enumerate(VOCABULARY)}


@dataclass(frozen=True)
class Class:
    """Which expressions are wanted; lengths count tokens."""

    shortest: int
    longest: int
    max_depth: int = 10
    max_args: int = 10


LONG_RANGE_ARENA = Class(500, 2000)
SHORT = Class(32, 128)


def generate(n: int, seed: int, kind: Class = SHORT) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Expressions as tokens.

    Parameters
    ----------
    n : int
        How many.
    seed : int
    kind : Class

    Returns
    -------
    tokens : int64 array (n, kind.longest)
        Padded with 0.
    padding : bool array (n, kind.longest)
        True where there is padding.
    labels : int64 array (n,)
        The values.

    Examples
    --------
    >>> tokens, padding, labels = generate(2, seed=0, kind=Class(5, 12))
    >>> [" ".join(VOCABULARY[t] for t in row if t) for row in tokens], labels.tolist()
    (['[MED 0 8 8 9 3 2 8 ]', '[MAX 3 3 6 7 ]'], [8, 7])
    """
    rng = random.Random(seed)
    tokens, labels = np.zeros((n, kind.longest), np.int64), np.empty(n, np.int64)
    for row in range(n):
        expression: list[str] = []
        while not kind.shortest <= len(expression) <= kind.longest:
            expression = []
            _grow(expression, 1, kind, rng)
        tokens[row, : len(expression)] = [_ID[token] for token in expression]
        labels[row] = evaluate(expression)
    return tokens, tokens == 0, labels


def _grow(expression: list[str], depth: int, kind: Class, rng: random.Random) -> None:
    """Append an argument; one that is too long already is cut off, and thrown away by the caller."""
    # rng.random() is the one method whose numbers Python promises to keep
    if depth >= kind.max_depth or rng.random() >= LIST_PROBABILITY:
        expression.append(str(int(rng.random() * 10)))
        return
    expression.append(OPERATORS[int(rng.random() * len(OPERATORS))])
    for _ in range(2 + int(rng.random() * (kind.max_args - 1))):
        if len(expression) > kind.longest:
            return
        _grow(expression, depth + 1, kind, rng)
    expression.append("]")


def evaluate(expression: list[str]) -> int:
    """The value of an expression.

    Examples
    --------
    >>> evaluate("[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]".split())
    5
    >>> evaluate("[MED 1 4 [SM 9 9 ] 6 ]".split())  # the median of an even number of arguments is rounded down
    5
    """
    open_lists: list[tuple[str, list[int]]] = []
    for token in expression:
        if token in OPERATORS:
            open_lists.append((token, []))
            continue
        value = _apply(*open_lists.pop()) if token == "]" else int(token)
        if not open_lists:
            return value
        open_lists[-1][1].append(value)
    raise ValueError(f"a list is not closed: {' '.join(expression)}")


def _apply(operator: str, values: list[int]) -> int:
    if operator == "[MIN":
        return min(values)
    if operator == "[MAX":
        return max(values)
    return int(np.median(values)) if operator == "[MED" else sum(values) % 10
