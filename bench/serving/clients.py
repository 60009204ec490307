"""Clients that ask again as soon as they are answered: ``python -m bench.serving.clients PORT ...`` prints JSON.

A process of their own, since clients and service would share an interpreter otherwise. A refused client (429) waits as
long as it is told and asks again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
# Lengths of texts are spread like a bell on a logarithmic axis: median 200 tokens, two in three between 66 and 600.
MEDIAN, SPREAD = 200.0, 1.1
LEAST = 16


def lengths(seed: int, most: int, first: int | None = None) -> np.ndarray:
    """How many tokens the requests of a client have, one after the other; the first one may be given."""
    drawn = MEDIAN * np.exp(SPREAD * np.random.default_rng(seed).standard_normal(20_000))
    if first is not None:
        drawn[0] = first
    return np.clip(drawn.astype(np.int64), LEAST, most)


def request(length: int) -> tuple[bytes, dict[str, str]]:
    """A request of one text, its tensors as bytes."""
    ids = np.random.default_rng(length).integers(1000, 30_000, (1, length))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    inputs = [
        {"name": name, "datatype": "INT64", "shape": [1, length], "parameters": {"binary_data_size": 8 * length}}
        for name in feeds
    ]
    text = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return text + b"".join(a.tobytes() for a in feeds.values()), {"Inference-Header-Content-Length": str(len(text))}


def client(port: int, model: str, tokens: np.ndarray, end: float, found: list) -> None:
    """Ask until the time is over or the connection is: (second of the answer, tokens, seconds, status)."""
    connection = HTTPConnection("127.0.0.1", port, timeout=600)
    for n in tokens:
        body, headers = request(int(n))
        start = time.monotonic()
        if start >= end:
            return
        try:
            connection.request("POST", f"/v2/models/{model}/infer", body, headers)
            answer = connection.getresponse()
            answer.read()
            status, wait = answer.status, answer.headers.get("Retry-After")
        except (OSError, HTTPException) as error:
            now = time.monotonic()
            found.append((now, int(n), now - start, type(error).__name__))
            return
        now = time.monotonic()
        found.append((now, int(n), now - start, status))
        if wait is not None:
            time.sleep(min(float(wait), max(0.0, end - now)))


def run(port: int, model: str, n_clients: int, seconds: float, most: int, seed: int = 0) -> list[tuple]:
    """Start the clients in another process; what they found."""
    command = [sys.executable, "-m", "bench.serving.clients", port, model, n_clients, seconds, most, seed]
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=True)
    return [tuple(entry) for entry in json.loads(done.stdout)]


def main() -> None:
    """Run all clients as threads and print what they found, seconds counted from their start."""
    parser = argparse.ArgumentParser()
    for name, kind in (("port", int), ("model", str), ("clients", int), ("seconds", float), ("most", int),
                       ("seed", int)):  # fmt: skip
        parser.add_argument(name, type=kind)
    given = parser.parse_args()
    found: list = []
    start = time.monotonic()
    threads = [
        threading.Thread(
            target=client,
            args=(given.port, given.model, drawn, start + given.seconds, found),
        )
        # the longest are rare: two clients begin with one, so that the service has seen all in the first minute
        for drawn in (
            lengths(1000 * given.seed + i, given.most, given.most >> i if i < 2 else None) for i in range(given.clients)
        )
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps([(at - start, *rest) for at, *rest in found]))


if __name__ == "__main__":
    main()
