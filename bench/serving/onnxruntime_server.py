"""ONNX Runtime behind pyclattn's server: ``python -m bench.serving.onnxruntime_server MODEL.safetensors ...``.

Everything but the run is the same: protocol, queue, batching, threads. The converted file tells inputs and outputs; the
.onnx it was made of, a folder above, is what runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from bench.peers import onnxruntime_session
from pyclattn.graph.serial import load_program
from pyclattn.model import Model
from pyclattn.serving import logs, server
from pyclattn.serving.limits import Limits
from pyclattn.serving.repository import Repository
from pyclattn.serving.service import Service


class OnnxRuntimeModel(Model):
    """A model that ONNX Runtime runs."""

    def __init__(self, path: Path, n_threads: int):
        super().__init__(load_program(path), n_threads=n_threads, max_memory=1 << 40)  # no weights of ours are packed
        self._session = onnxruntime_session(path.parents[1] / f"{path.stem}.onnx", n_threads)

    def _run(self, inputs: dict, profile: list | None = None) -> dict[str, np.ndarray]:
        names = [value.name for value in self.program.outputs]
        return dict(zip(names, self._session.run(names, {name: np.asarray(a) for name, a in inputs.items()})))


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--n-threads", type=int, required=True)
    parser.add_argument("--timeout", type=float, required=True)
    given = parser.parse_args()
    logs.configure("warning")
    sock = server.listen("127.0.0.1", given.port)
    repository = Repository([given.model], lambda path: OnnxRuntimeModel(path, given.n_threads), copies=False)
    repository.open()
    server.run(Service(repository, Limits(timeout=given.timeout)), sock)


if __name__ == "__main__":
    main()
