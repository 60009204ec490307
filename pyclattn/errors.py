"""What can go wrong, by kind. Each message says what was given, what was expected, and the argument's name."""


class PyclattnError(Exception):
    """Base of every error pyclattn raises on purpose."""


class ArgumentError(PyclattnError, ValueError):
    """An argument has a value that cannot be used."""


class ShapeError(ArgumentError):
    """Arrays whose ranks or lengths do not fit each other."""


class DTypeError(ArgumentError, TypeError):
    """An argument of a type that cannot be used."""


class BackendError(PyclattnError, RuntimeError):
    """A backend or instruction set was asked for that this machine or installation does not have."""


class ModelFormatError(PyclattnError, ValueError):
    """A file that is not what it should be: truncated, altered, of another kind, or hostile."""


class UnsupportedOpError(ModelFormatError):
    """A model uses operators that pyclattn does not run; all of them are listed."""


class MemoryLimitError(PyclattnError, MemoryError):
    """A run needs more memory than ``max_memory`` allows; raised before it starts."""


class AccuracyError(PyclattnError, ArithmeticError):
    """An approximation whose estimated error is above the limit that was given."""


class AccuracyWarning(UserWarning):
    """The same where only a warning was asked for."""


class ModelWarning(UserWarning):
    """A model is not quite what its file says it is, and runs all the same."""
