"""Services in processes of their own, and what the kernel knows of them."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# As on a machine where numba is not installed.
WITHOUT_NUMBA = "import sys; sys.modules['numba'] = None; from pyclattn.cli import main; sys.exit(main())"


class Server:
    """A service that was started.

    Parameters
    ----------
    command : sequence of str
        Without the interpreter and ``--port``.
    """

    def __init__(self, command: Sequence[str]):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.started = time.perf_counter()
        self.process = subprocess.Popen([sys.executable, *command, "--port", str(self.port)], cwd=ROOT)

    def wait(self) -> None:
        """Return when it listens."""
        while self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except ConnectionRefusedError:
                time.sleep(0.002)
        raise RuntimeError("the service ended at its start")

    def connection(self, timeout: float = 600) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def resident(self) -> int:
        """Bytes in memory now."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise OSError("no VmRSS")

    def cpu_seconds(self) -> float:
        """Of all its threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def terminate(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait()


@contextmanager
def serving(command: Sequence[str]) -> Iterator[Server]:
    server = Server(command)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def ours(model: Path, n_threads: int, *more: str) -> list[str]:
    """The command of ``pyclattn serve``, as it comes."""
    return ["-c", WITHOUT_NUMBA, "serve", str(model), "--n-threads", str(n_threads), "--log-level", "warning", *more]


def theirs(model: Path, n_threads: int, timeout: float) -> list[str]:
    """ONNX Runtime behind the same server."""
    module = ["-m", "bench.serving.onnxruntime_server", str(model)]
    return [*module, "--n-threads", str(n_threads), "--timeout", str(timeout)]
