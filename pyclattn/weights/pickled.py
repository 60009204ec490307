"""What the objects of a pickle become here, where they are neither containers nor numbers nor text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyclattn.weights.strict_json import short

if TYPE_CHECKING:
    from pyclattn.weights.unpickler import Machine


class Builder:
    """An allowed global: ``function(machine, *args)`` makes what a call of it means."""

    __slots__ = ("function", "name")

    def __init__(self, name: str, function: Callable[..., Any]):
        self.name, self.function = name, function

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Unknown:
    """A class or function outside the allow-list: its name."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return f"<class {self.name}>"


class Placeholder:
    """An object of a class that is not built: what the file says of it, inert.

    Attributes
    ----------
    name : str
        Module and class.
    args : tuple
        What it was to be called with.
    state : object
        What was to be its ``__dict__``, or what its ``__setstate__`` was to be given; None where there is none.
    items : list
        What was to be appended, or pairs that were to be set.
    """

    __slots__ = ("args", "items", "name", "state")

    def __init__(self, name: str, args: tuple = ()):
        self.name, self.args, self.state = name, args, None
        self.items: list = []

    def __repr__(self) -> str:
        return f"<placeholder of {self.name}>"


class Stateful:
    """An object of this package that takes the state a BUILD has for it."""

    __slots__ = ()

    def set_state(self, machine: Machine, state: Any) -> None:
        """Take the state, or raise ValueError or TypeError."""
        raise NotImplementedError


def shown(value: Any) -> str:
    """A value for a message: the repr of a container could be longer than any memory."""
    if type(value) is str:
        return short(value)
    return repr(value) if type(value) in (int, float, bool, type(None)) else kind_of(value)


def kind_of(value: Any) -> str:
    """What a value is, for a message."""
    if isinstance(value, (Builder, Unknown, Placeholder)):
        return short(value.name)
    return f"a {type(value).__name__}"
