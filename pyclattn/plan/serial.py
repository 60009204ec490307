"""Plans as JSON values, and back; trusts nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from pyclattn.errors import ModelFormatError
from pyclattn.plan.choice import Choice, choice_of
from pyclattn.plan.classes import Calibrated, LengthClass

# Raised when an older pyclattn could not run a new plan.
FORMAT_VERSION = 2


def plain(plan) -> dict[str, Any]:
    """A plan as JSON values."""
    return {
        "format": "pyclattn.plan", "format_version": FORMAT_VERSION, "model": plan.model,
        "max_error": plan.max_error, "default": _plain(plan.default),
        "by_name": {name: _plain(choice) for name, choice in plan.by_name.items()},
        "calibrated": {name: _plain_classes(known) for name, known in plan.calibrated.items()},
    }  # fmt: skip


def fields(data: Any) -> dict[str, Any]:
    """The fields of the plan that `plain` made these values of.

    Raises
    ------
    ModelFormatError
        If they are no plan, or of a newer version; KeyError and its like where something is missing.
    """
    if not isinstance(data, dict) or data.get("format") != "pyclattn.plan":
        raise ModelFormatError("not a plan of pyclattn")
    version = data["format_version"]
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise ModelFormatError(f"format_version {version}, this pyclattn reads 1 to {FORMAT_VERSION}")
    return {
        "default": _read_choice(data["default"]),
        "by_name": {str(name): _read_choice(choice) for name, choice in data["by_name"].items()},
        "calibrated": {str(name): _read_calibrated(known) for name, known in data["calibrated"].items()},
        "model": str(data["model"]),
        "max_error": None if data["max_error"] is None else _number(data["max_error"]),
    }


def _plain_classes(known: Calibrated) -> dict[str, Any]:
    classes = [
        {"tokens": [c.shortest, c.longest], "error": c.error, "speedup": c.speedup,
         "choices": [_plain(choice) for choice in c.choices]}
        for c in known.classes
    ]  # fmt: skip
    return {"heads": known.n_heads, "classes": classes}


def _plain(choice: Choice) -> dict:
    heads = {} if choice.heads is None else {"heads": list(choice.heads)}
    return {**heads, "method": choice.method, **choice.parameters}


def _read_choice(data: dict) -> Choice:
    given = dict(data)
    heads = given.pop("heads", None)
    if any(not isinstance(value, (bool, int, float, str)) for value in given.values()):
        raise ModelFormatError(f"a choice holds a method, numbers and words, got {data!r:.200}")
    choice = choice_of(given)
    return choice if heads is None else replace(choice, heads=tuple(_whole(head) for head in heads))


def _read_calibrated(data: dict) -> Calibrated:
    n_heads, classes = _whole(data["heads"]), []
    for c in data["classes"]:
        shortest, longest = map(_whole, c["tokens"])
        choices = tuple(map(_read_choice, c["choices"]))
        heads = [head for choice in choices for head in (range(n_heads) if choice.heads is None else choice.heads)]
        if len(heads) != n_heads or sorted(heads) != list(range(n_heads)):
            raise ModelFormatError(f"each of {n_heads} heads must be in one choice, got {heads!r:.200}")
        if any(choice.heads is not None and list(choice.heads) != sorted(choice.heads) for choice in choices):
            raise ModelFormatError("the heads of a choice must ascend")
        if not 1 <= shortest <= longest:
            raise ModelFormatError(f"tokens must be [shortest, longest], got {c['tokens']}")
        known = [None if c[name] is None else _number(c[name]) for name in ("error", "speedup")]
        classes.append(LengthClass(shortest, longest, choices, *known))
    if not classes:
        raise ModelFormatError("an attention needs a length class")
    return Calibrated(n_heads, tuple(sorted(classes, key=lambda c: c.shortest)))


def _whole(value) -> int:
    if type(value) is not int or not 0 <= value < 1 << 40:
        raise ModelFormatError(f"a whole number was expected, got {value!r:.50}")
    return value


def _number(value) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ModelFormatError(f"a number was expected, got {value!r:.50}")
    return float(value)
