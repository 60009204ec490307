"""The type of the terms that are multiplied: float32, or bfloat16 where the processor has instructions for it."""

from __future__ import annotations

from importlib import import_module

from pyclattn._dispatch import room_of
from pyclattn.errors import BackendError
from pyclattn.functional import _check

PRECISIONS = ("float32", "bfloat16")
CHOICES = (*PRECISIONS, "auto")  # of a model: "auto" is bfloat16 where that is fast


def missing_bfloat16() -> str:
    """What keeps the room in use from products of bfloat16; empty if nothing does.

    The reference room has them on any processor, for their meaning, not for speed.
    """
    if room_of("attention.attend_bfloat16") == "reference":
        return ""
    return import_module("pyclattn._ext.isa").missing_bfloat16()


def require(precision: str) -> str:
    """``precision`` if it can be had here; else an error that says what is missing."""
    _check.one_of("precision", precision, PRECISIONS)
    missing = missing_bfloat16() if precision == "bfloat16" else ""
    if missing:
        raise BackendError(f'precision="bfloat16" was asked for: {missing}')
    return precision


def resolved(precision: str) -> str:
    """The same where "auto" is allowed too: bfloat16 if that is fast here, else float32."""
    if precision != "auto":
        return require(_check.one_of("precision", precision, CHOICES))
    is_fast = room_of("attention.attend_bfloat16") != "reference" and not missing_bfloat16()
    return "bfloat16" if is_fast else "float32"
