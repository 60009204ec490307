"""Every limit of a service, with its default."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pyclattn.errors import ArgumentError


@dataclass(frozen=True)
class Limits:
    """On by default. Each is an option of ``pyclattn serve``: ``max_body_bytes`` is ``--max-body-bytes``.

    Attributes
    ----------
    max_body_bytes : int
        Of one request, after decompression: 64 MiB are a batch of 8,192 tokens of 2,048 floats.
    max_json_bytes : int
        Of its JSON, which costs up to ten times its size once parsed; larger tensors go as binary.
    max_pending_bytes : int
        Of all requests being read or waiting.
    max_tensors : int
        Inputs, and outputs, of a request.
    max_tokens : int
        Of a request: the largest product of an input's open dimensions.
    max_batch_tokens : int
        What requests that share a run have together at most, padding included; a larger request runs alone. 0: none
        share one.
    max_queue : int
        Requests that wait; the next one gets 429 and Retry-After.
    max_queue_tokens : int
        Tokens that wait, likewise.
    max_connections : int
        Beyond it a connection gets 503.
    timeout : float
        Seconds from a request's arrival to its answer; then 504.
    body_timeout : float
        Seconds to send the body; then 408.
    send_timeout : float
        Seconds in which a client takes nothing of its answer; then its connection is cut.
    keep_alive : float
        Seconds an idle connection is kept.
    drain_timeout : float
        Seconds that accepted requests have after SIGTERM; then 503.

    Examples
    --------
    >>> Limits(max_queue=0)
    Traceback (most recent call last):
    ...
    pyclattn.errors.ArgumentError: max_queue must be at least 1, got 0
    """

    max_body_bytes: int = 64 << 20
    max_json_bytes: int = 32 << 20
    max_pending_bytes: int = 512 << 20
    max_tensors: int = 64
    max_tokens: int = 32_768
    max_batch_tokens: int = 4096
    max_queue: int = 256
    max_queue_tokens: int = 1 << 20
    max_connections: int = 1024
    timeout: float = 60.0
    body_timeout: float = 30.0
    send_timeout: float = 30.0
    keep_alive: float = 30.0
    drain_timeout: float = 60.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "max_batch_tokens" else 1
            if field.type == "float":
                if not 0 < value < float("inf"):
                    raise ArgumentError(f"{field.name} must be a number of seconds above 0, got {value}")
            elif value < least:
                raise ArgumentError(f"{field.name} must be at least {least}, got {value}")
