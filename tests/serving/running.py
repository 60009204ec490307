"""A service in a process of its own, and plain requests to it."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]


class Running:
    """A started service."""

    def __init__(self, *arguments):
        command = [
            sys.executable,
            "-m",
            "pyclattn.cli",
            "serve",
            *map(str, arguments),
            "--port",
            "0",
            "--n-threads",
            "2",
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ})
        self.lines, self._read, self._more = [], 0, threading.Condition()
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()
        self.port = self.wait_for("listening")["port"]

    def _collect(self):
        """Read the log as it comes: a full pipe would stop the service."""
        for line in self.process.stderr:
            with self._more:
                self.lines.append(json.loads(line) if line.startswith("{") else {"event": line})
                self._more.notify_all()
        with self._more:
            self.lines.append({"event": "end"})
            self._more.notify_all()

    def wait_for(self, event, **fields):
        """The next line of the log with this event and these fields."""
        while True:
            with self._more:
                self._more.wait_for(lambda: len(self.lines) > self._read)
                found = self.lines[self._read]
            if found["event"] == "end":
                raise AssertionError(f"the service ended without {event!r}: {self.lines}")
            self._read += 1
            if found["event"] == event and all(found.get(name) == value for name, value in fields.items()):
                return found

    def connection(self):
        return http.client.HTTPConnection("127.0.0.1", self.port)

    def ask(self, method, path, body=None, headers=None):
        """(status, headers, body) of one request on a connection of its own."""
        connection = self.connection()
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def infer(self, feeds, model="model"):
        """Outputs, through the binary extension."""
        status, headers, body = self.ask("POST", f"/v2/models/{model}/infer", *binary(feeds))
        if status != 200:
            raise AssertionError(f"{status}: {body[:500]}")
        return outputs(headers, body)

    def metric(self, pattern):
        """The sum of the lines of /metrics that begin so."""
        text = self.ask("GET", "/metrics")[2].decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(pattern, line))

    def stop(self):
        """SIGTERM; returns the exit code once the log has ended."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self):
        self.process.wait()
        self._reader.join()
        self.process.stderr.close()
        self.lines.pop()
        return self.process.returncode


@contextmanager
def running(*arguments):
    service = Running(*arguments)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
            service.wait()


NAMES = {"int64": "INT64", "float32": "FP32", "bool": "BOOL"}


def tensor(name, array, **more):
    return {"name": name, "datatype": NAMES[array.dtype.name], "shape": list(array.shape), **more}


def binary(feeds):
    """(body, headers) of a request whose tensors are bytes, both ways."""
    inputs = [tensor(name, a, parameters={"binary_data_size": a.nbytes}) for name, a in feeds.items()]
    text = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    body = b"".join([text, *(a.tobytes() for a in feeds.values())])
    return body, {"Inference-Header-Content-Length": str(len(text))}


def plain(feeds, **more):
    """The body of a request in JSON."""
    inputs = [tensor(name, array, data=array.tolist()) for name, array in feeds.items()]
    return json.dumps({"inputs": inputs, **more})


def outputs(headers, body):
    """Arrays of an answer in bytes."""
    at = int(headers["Inference-Header-Content-Length"])
    found = {}
    for output in json.loads(body[:at])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        found[output["name"]] = np.frombuffer(body[at : at + size], np.float32).reshape(output["shape"])
        at += size
    assert at == len(body)
    return found
