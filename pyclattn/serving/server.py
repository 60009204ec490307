"""Listen, answer, and on SIGTERM finish what was accepted."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Sequence
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pyclattn.serving import allocator
from pyclattn.serving.app import create_app
from pyclattn.serving.logs import log
from pyclattn.serving.service import Service

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
BACKLOG = 1024


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens before models are loaded: a port in use is told at once, and early clients wait."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host.strip("[]"), port), family=family, backlog=BACKLOG)


def known_hosts(host: str, allowed: Sequence[str]) -> frozenset[str] | None:
    """Names in the Host header that are answered: on loopback its own and ``allowed``; elsewhere all, or ``allowed``.

    Examples
    --------
    >>> sorted(known_hosts("127.0.0.1", ["models.local"]))
    ['127.0.0.1', '::1', '[::1]', 'localhost', 'models.local']
    >>> known_hosts("0.0.0.0", []) is None
    True
    """
    if host in LOOPBACK:
        return frozenset(name.lower() for name in (*LOOPBACK, *allowed))
    return frozenset(name.lower() for name in allowed) if allowed else None


class Connection(H11Protocol):
    """A connection that is cut when its client takes nothing of an answer for ``send_timeout`` seconds.

    Otherwise the answer would stay in memory, and the connection counted, for as long as the client likes.
    """

    def __init__(self, *, send_timeout: float, **given: Any):
        super().__init__(**given)
        self._send_timeout = send_timeout
        self._cut: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # tell of every byte that the client's side has no room for

    def pause_writing(self) -> None:
        super().pause_writing()
        self._cut = self.loop.call_later(self._send_timeout, self._cut_off)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _forget(self) -> None:
        if self._cut is not None:
            self._cut.cancel()

    def _cut_off(self) -> None:
        log("client takes no answer", client=self.client[0] if self.client else "", seconds=self._send_timeout)
        self.transport.abort()


class Server(uvicorn.Server):
    """Ends as it is promised: by the first signal in order and in time, by the second at once."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: object) -> None:
        if self.should_exit:
            os._exit(128 + sig)  # a run under way would keep the interpreter
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.drain()
        await super().shutdown(sockets)
        if self._service.is_running:  # its time is over, and nobody waits for it
            log("stopped", "error", drained=False)
            os._exit(1)


def run(service: Service, sock: socket.socket, hosts: frozenset[str] | None = None) -> None:
    """Answer until SIGTERM or SIGINT; then take no more, finish what was accepted, and return."""
    allocator.steady()
    limits = service.limits
    connection: Any = partial(Connection, send_timeout=limits.send_timeout)
    config = uvicorn.Config(
        create_app(service, hosts), log_config=None, access_log=False, http=connection, ws="none", lifespan="on",
        server_header=False, proxy_headers=False, limit_concurrency=limits.max_connections,
        timeout_keep_alive=max(1, round(limits.keep_alive)), timeout_graceful_shutdown=round(limits.drain_timeout) + 1,
    )  # fmt: skip
    server = Server(config, service)
    # from here on, not from when the loop runs: whoever reads "listening" may send a signal
    before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
    host, port = sock.getsockname()[:2]
    log("listening", host=host, port=port, models=service.repository.names())
    try:
        server.run(sockets=[sock])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sock.close()
    log("stopped")
