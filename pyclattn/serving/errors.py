"""What a client is told, as HTTP status and message."""

from __future__ import annotations

from pyclattn.errors import ArgumentError, MemoryLimitError, PyclattnError


class RequestError(Exception):
    """A request that is not answered with outputs.

    Attributes
    ----------
    status : int
        Of HTTP.
    retry_after : int or None
        Seconds after which the client should ask again.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class ClientGoneError(Exception):
    """The client closed the connection: nobody is told anything."""


def from_run(error: BaseException, path: str) -> RequestError:
    """A model's complaint about inputs as the client's error; anything else is ours, and its details stay here.

    Examples
    --------
    >>> from_run(ArgumentError("/models/x.safetensors: input 'y' is missing"), "/models/x.safetensors").args
    ("input 'y' is missing",)
    >>> from_run(RuntimeError("secret"), "").status
    500
    """
    message = str(error).replace(f"{path}: ", "") if path else str(error)
    if isinstance(error, MemoryLimitError):
        return RequestError(413, message)
    if isinstance(error, ArgumentError):
        return RequestError(400, message)
    if isinstance(error, MemoryError):
        return RequestError(413, "not enough memory for a run of this size")
    if isinstance(error, PyclattnError):
        return RequestError(422, message)
    return RequestError(500, "internal error: the service's log has the details")
