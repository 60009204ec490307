"""Listen, answer, and on SIGTERM finish what was accepted."""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence

import uvicorn

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


def run(service: Service, sock: socket.socket, hosts: frozenset[str] | None = None) -> None:
    """Answer until SIGTERM or SIGINT; then take no more, finish what was accepted, and return."""
    allocator.steady()
    limits = service.limits
    config = uvicorn.Config(
        create_app(service, hosts), log_config=None, access_log=False, http="h11", ws="none", lifespan="on",
        server_header=False, proxy_headers=False, limit_concurrency=limits.max_connections,
        timeout_keep_alive=max(1, round(limits.keep_alive)), timeout_graceful_shutdown=round(limits.drain_timeout) + 1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    # uvicorn raises the signal again once it has finished: that must not end the process with an error
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    host, port = sock.getsockname()[:2]
    log("listening", host=host, port=port, models=service.repository.names())
    try:
        server.run(sockets=[sock])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sock.close()
    log("stopped")
