"""The body of a request, within limits."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request

from pyclattn.serving.errors import ClientGoneError, RequestError
from pyclattn.serving.limits import Limits

# zlib's window bits: gzip's header, zlib's
_ENCODINGS = {"gzip": 31, "deflate": 15}


class Pending:
    """Bytes of all bodies that are being read or waiting."""

    def __init__(self, most: int):
        self.most, self.total = most, 0

    @contextmanager
    def holding(self) -> Iterator[Share]:
        """What one request holds; given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self.total -= share.size


class Share:
    """One request's part of `Pending`."""

    def __init__(self, pending: Pending):
        self._pending, self.size = pending, 0

    def grow(self, n: int) -> None:
        if self._pending.total + n > self._pending.most:
            raise RequestError(429, f"{self._pending.total} bytes of requests are waiting: ask again later", 1)
        self._pending.total += n
        self.size += n


async def read(request: Request, limits: Limits, share: Share) -> bytes:
    """All of a request's body, decompressed.

    Raises
    ------
    RequestError
        413 if it is too large, 408 if it takes too long, 415 for an unknown encoding, 400 if it is not what its
        headers say, 429 if too many bytes are waiting already.
    ClientGoneError
    """
    length = whole_header(request, "content-length")
    if length is not None and length > limits.max_body_bytes:
        raise _too_large(limits)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity", *_ENCODINGS):
        raise RequestError(415, f"Content-Encoding {encoding[:40]!r} is not supported; gzip and deflate are")
    reading = asyncio.ensure_future(_chunks(request, limits, share))
    done, _ = await asyncio.wait([reading], timeout=limits.body_timeout)
    if not done:
        reading.cancel()
        raise RequestError(408, f"the body was not sent within {limits.body_timeout:g} s")
    body = reading.result()
    return inflate(body, _ENCODINGS[encoding], limits, share) if encoding in _ENCODINGS else body


async def _chunks(request: Request, limits: Limits, share: Share) -> bytes:
    body = bytearray()
    try:
        async for chunk in request.stream():
            if len(body) + len(chunk) > limits.max_body_bytes:
                raise _too_large(limits)
            share.grow(len(chunk))
            body += chunk
    except ClientDisconnect:
        raise ClientGoneError from None
    return bytes(body)


def inflate(body: bytes, window: int, limits: Limits, share: Share) -> bytes:
    """Decompressed, but never beyond the limit.

    Examples
    --------
    >>> import gzip
    >>> with Pending(100).holding() as share:
    ...     inflate(gzip.compress(b"x" * 50), 31, Limits(max_body_bytes=60), share)[:3]
    b'xxx'
    """
    stream = zlib.decompressobj(window)
    try:
        found = stream.decompress(body, limits.max_body_bytes + 1)
    except zlib.error as error:
        raise RequestError(400, f"the body is not what Content-Encoding says: {error}") from None
    if len(found) > limits.max_body_bytes:
        raise _too_large(limits)
    if not stream.eof or stream.unused_data:
        raise RequestError(400, "the compressed body is cut off, or something follows it")
    share.grow(len(found))
    return found


def whole_header(request: Request, name: str) -> int | None:
    """A header that is a number of bytes; None where it is not there."""
    text = request.headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise RequestError(400, f"{name} must be a number of bytes, got {text[:40]!r}")
    return int(text)


def _too_large(limits: Limits) -> RequestError:
    return RequestError(413, f"the body is larger than {limits.max_body_bytes} bytes")
