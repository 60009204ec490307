"""What goes wrong around a service: clients that leave, files that change, too many requests, SIGTERM."""

import asyncio
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import numpy as np
import pytest

from pyclattn.model import Model
from pyclattn.model import load as load_model
from pyclattn.serving.errors import ClientGoneError, RequestError
from pyclattn.serving.limits import Limits
from pyclattn.serving.queue import Queue
from pyclattn.serving.repository import Repository
from pyclattn.serving.service import Service
from tests.serving.models import encoder, save, text
from tests.serving.running import ROOT, binary, plain, running

INFER = "/v2/models/model/infer"


@pytest.fixture
def file(tmp_path):
    return save(tmp_path / "model.safetensors", encoder(0))


@pytest.fixture(scope="module")
def answers():
    """What the models of two seeds give for a request."""
    models = [Model(encoder(seed), n_threads=2) for seed in (0, 1)]
    return lambda feeds: [model(**feeds)["pooler_output"] for model in models]


class Slow:
    """A model whose runs wait for a gate, and which tells how many requests came together."""

    def __init__(self, program):
        self.model, self.gate, self.rows = Model(program, n_threads=1), threading.Event(), []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def run(self, names, feeds, **more):
        self.gate.wait()
        self.rows.append(len(feeds["input_ids"]))
        return self.model.run(names, feeds, **more)


def scenario(play, **limits):
    """Run ``play(service, slow model's version, slow model)`` in an event loop with a service around it."""

    async def main(path):
        repository = Repository([path], lambda _: Model(encoder()), copies=False)
        repository.open()
        version = repository.get("model")
        slow = Slow(encoder())
        object.__setattr__(version, "model", slow)
        service = Service(repository, Limits(**limits))
        await service.start()
        try:
            return await play(service, version, slow)
        finally:
            slow.gate.set()
            await service.stop()

    return main


@pytest.fixture
def played(file):
    return lambda play, **limits: asyncio.run(scenario(play, **limits)(file))


async def never():
    await asyncio.Event().wait()


def test_requests_that_wait_share_a_run(played, answers):
    async def play(service, version, slow):
        requests = text([20, 21, 22, 24, 100, 23])
        jobs = [service.accept(version, feeds) for feeds in requests[:1]]
        await asyncio.sleep(0.05)  # the first is running, alone
        jobs += [service.accept(version, feeds) for feeds in requests[1:]]
        slow.gate.set()
        outcomes = [await service.outcome(job, never) for job in jobs]
        for outcome, feeds in zip(outcomes, requests):
            np.testing.assert_allclose(outcome.outputs["pooler_output"], answers(feeds)[0], rtol=1e-5, atol=1e-6)
        assert slow.rows == [1, 4, 1]
        assert [o.n_requests for o in outcomes] == [1, 4, 4, 4, 1, 4]

    played(play)


def test_the_budget_of_a_run(played):
    async def play(service, version, slow):
        jobs = [service.accept(version, feeds) for feeds in text([32] * 9)]
        slow.gate.set()
        for job in jobs:
            await service.outcome(job, never)
        assert slow.rows == [3, 3, 3]

    played(play, max_batch_tokens=100)


def test_one_bad_request_in_a_run_is_alone_to_blame(played):
    async def play(service, version, slow):
        requests = text([20, 21, 22])
        requests[1]["input_ids"][0, 5] = 10_000
        jobs = [service.accept(version, feeds) for feeds in requests]
        slow.gate.set()
        assert (await service.outcome(jobs[0], never)).n_requests == 1
        with pytest.raises(RequestError, match="beyond") as told:
            await service.outcome(jobs[1], never)
        assert told.value.status == 400
        assert (await service.outcome(jobs[2], never)).outputs["hidden"].shape == (1, 22, 16)

    played(play)


def test_padding_beyond_the_positions_is_taken_back(tmp_path):
    """A table of 20 positions has none for the 24 that 20 tokens are padded to."""

    async def play():
        repository = Repository([save(tmp_path / "model.safetensors", encoder(n_positions=20))])
        repository.open()
        service = Service(repository)
        await service.start()
        (feeds,) = text([20])
        outcome = await service.outcome(service.accept(repository.get("model"), feeds), never)
        wanted = Model(encoder(n_positions=20))(**feeds)
        await service.stop()
        np.testing.assert_allclose(outcome.outputs["hidden"], wanted["hidden"], rtol=1e-5, atol=1e-6)

    asyncio.run(play())


def test_a_full_queue_says_when_to_come_back(played):
    async def play(service, version, slow):
        jobs = [service.accept(version, feeds) for feeds in text([20])]
        await asyncio.sleep(0.05)
        jobs += [service.accept(version, feeds) for feeds in text([20, 20])]
        with pytest.raises(RequestError) as told:
            service.accept(version, text([20])[0])
        assert (told.value.status, told.value.retry_after) == (429, 1)
        slow.gate.set()
        for job in jobs:
            await service.outcome(job, never)
        service.accept(version, text([20])[0])

    played(play, max_queue=2)
    played(play, max_queue_tokens=40)


def test_a_queue_tells_a_longer_time_where_more_waits(played):
    async def play(service, version, slow):
        queue = service.queue
        queue.tokens, queue.tokens_per_second = 10_000, 100.0
        assert queue.retry_after() == 50
        queue.tokens = 10**9
        assert queue.retry_after() == 60

    played(play)


def test_whoever_leaves_or_waits_no_more_is_not_run(played):
    async def play(service, version, slow):
        jobs = [service.accept(version, feeds, seconds) for feeds, seconds in zip(text([20, 200, 300]), (9, 9, 0.05))]
        await asyncio.sleep(0.02)
        left = asyncio.ensure_future(asyncio.sleep(0.01))
        with pytest.raises(ClientGoneError):
            await service.outcome(jobs[1], lambda: asyncio.wait([left]))
        with pytest.raises(RequestError, match=r"no answer within 0\.05 s") as told:
            await service.outcome(jobs[2], never)
        assert told.value.status == 504
        slow.gate.set()
        await service.outcome(jobs[0], never)
        await service.outcome(service.accept(version, text([50])[0]), never)
        assert slow.rows == [1, 1]  # the first and the last
        assert service.queue.tokens == 0

    played(play)


def test_a_fault_of_ours_is_no_end_and_tells_no_details(played):
    async def play(service, version, slow):
        slow.gate.set()
        run, slow.model.run = slow.model.run, lambda *_, **__: 1 / 0
        with pytest.raises(RequestError, match="internal error") as told:
            await service.outcome(service.accept(version, text([20])[0]), never)
        assert told.value.status == 500
        slow.model.run = run
        await service.outcome(service.accept(version, text([20])[0]), never)

    played(play)


def test_stop_finishes_what_was_accepted(played):
    async def play(service, version, slow):
        jobs = [service.accept(version, feeds) for feeds in text([20, 100, 200, 300])]
        stopping = asyncio.ensure_future(service.stop())
        await asyncio.sleep(0.05)
        assert not stopping.done()
        assert not service.is_ready
        slow.gate.set()
        await stopping
        assert all(job.answer.done() and job.answer.exception() is None for job in jobs)

    played(play)


def test_clients_that_disconnect(file, answers):
    """In the head, in the body, and while they wait; the service forgets them and goes on."""
    (feeds,) = text([500])
    body, headers = binary({name: np.repeat(a, 8, 0) for name, a in feeds.items()})
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n".encode()
    head += b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items()) + b"\r\n"
    with running(file) as service:
        for i in range(60):
            with socket.create_connection(("127.0.0.1", service.port)) as connection:
                connection.sendall([head[:50], head + body[:1000], head + body][i % 3])
        (feeds,) = text([30])
        np.testing.assert_allclose(service.infer(feeds)["pooler_output"], answers(feeds)[0], rtol=1e-5, atol=1e-6)
        assert service.metric("pyclattn_queue_requests") == 0
        assert service.metric("process_open_fds") < 40
        assert service.stop() == 0


REQUESTS = text([1, 5, 17, 20, 20, 21, 33, 64, 100, 190])


def load(service, is_over, found):
    """Ask until told to stop: (status or error, number of the request, answer) of each."""
    connection = service.connection()
    while not is_over.is_set():
        number = len(found) % len(REQUESTS)
        feeds = REQUESTS[number]
        try:
            connection.request("POST", INFER, plain(feeds, outputs=[{"name": "pooler_output"}]))
        except OSError:
            return  # not accepted
        try:
            answer = connection.getresponse()
            status, body = answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            found.append((type(error).__name__, number, None))
            return
        found.append((status, number, json.loads(body)))


def checked(found, answers):
    """Which of the two models each answer is of."""
    which, expected = [], [answers(feeds) for feeds in REQUESTS]
    for status, number, content in found:
        assert status == 200, (status, content)
        output = np.array(content["outputs"][0]["data"], np.float32).reshape(1, -1)
        near = [i for i, wanted in enumerate(expected[number]) if np.allclose(output, wanted, rtol=1e-4, atol=1e-5)]
        assert len(near) == 1
        which += near
    return which


def under_load(service, during, n_clients=6):
    """What clients found while something happened."""
    found, is_over = [], threading.Event()
    clients = [threading.Thread(target=load, args=(service, is_over, found)) for _ in range(n_clients)]
    for client in clients:
        client.start()
    try:
        result = during()
    finally:
        is_over.set()
    for client in clients:
        client.join()
    return found, result


def test_sigterm_under_load(file, answers):
    """Each request that was accepted is answered, and right; the process ends by itself with 0."""
    with running(file) as service:

        def during():
            service.wait_for("request", status=200)
            return service.stop()

        found, code = under_load(service, during)
        assert code == 0
        assert service.lines[-1]["event"] == "stopped"
        kept = [entry for entry in found if entry[0] not in ("RemoteDisconnected", "ConnectionResetError")]
        assert set(checked(kept, answers)) == {0}
        # a request sent on an idle connection as it was closed was not accepted: the log knows no more than we do
        assert sum(line["event"] == "request" for line in service.lines) == len(kept)


def test_a_file_replaced_under_load(file, answers):
    """By renaming, in place, and by nonsense: every answer is the old model's or the new one's."""
    with running(file, "--reload-every", "0.1") as service:

        def during():
            service.wait_for("request", status=200)
            save(file.with_name("new"), encoder(1)).replace(file)
            service.wait_for("model loaded", version=2)
            file.write_bytes(b"nonsense")
            service.wait_for("model not loaded")
            content = save(file.with_name("new"), encoder(0)).read_bytes()
            with file.open("r+b") as stream:  # in place, in two halves
                stream.truncate(0)
                stream.write(content[:1000])
                stream.flush()
                stream.write(content[1000:])
            service.wait_for("model loaded", version=3)

        found, _ = under_load(service, during)
        which = checked(found, answers)
        assert set(which) == {0, 1}
        (feeds,) = text([30])
        np.testing.assert_allclose(service.infer(feeds)["pooler_output"], answers(feeds)[0], rtol=1e-5, atol=1e-6)
        assert service.stop() == 0


def test_metrics_tell_the_error_of_attention(file):
    """Of one run in so many; the first is one of them."""

    async def play():
        attention = {"method": "coclustered", "n_exact": 8, "max_error": 1e-6}
        repository = Repository([save(file, encoder(n_positions=1200))], partial(load_model, attention=attention))
        repository.open()
        service = Service(repository, report_every=2)
        await service.start()
        counts = []
        for feeds in text([1100, 1100, 1100]):
            await service.outcome(service.accept(repository.get("model"), feeds), never)
            lines = dict(line.rsplit(" ", 1) for line in service.metrics.text().decode().splitlines() if line[0] != "#")
            counts.append(float(lines['pyclattn_attention_made_exact_total{model="model"}']))
        await service.stop()
        assert 0 < float(lines['pyclattn_attention_error{attention="layers.0.attention",model="model"}']) < 2
        assert counts == [4, 4, 8]  # two heads in two layers, in the first and the third run

    asyncio.run(play())


def test_memory_is_limited(file):
    """A run that would not fit is refused before it starts; smaller ones are answered."""

    async def play():
        weights = Model(encoder()).weight_bytes
        repository = Repository([file], partial(load_model, max_memory=weights + 2_500_000))
        repository.open()
        service = Service(repository)
        await service.start()
        (feeds,) = text([600])
        large = {name: np.repeat(array, 40, 0) for name, array in feeds.items()}
        with pytest.raises(RequestError, match="max_memory leaves") as told:
            await service.outcome(service.accept(repository.get("model"), large), never)
        assert told.value.status == 413
        await service.outcome(service.accept(repository.get("model"), feeds), never)
        await service.stop()

    asyncio.run(play())


def test_a_busy_port_and_a_missing_file_end_at_once(file, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        from pyclattn.cli import main

        assert main(["serve", str(file), "--port", str(taken.getsockname()[1])]) == 1
    assert main(["serve", str(file) + "x", "--port", "0"]) == 1
    for option in (["--max-queue", "0"], ["--port", "65536"], ["--port", "-1"], ["--reload-every", "nan"]):
        assert main(["serve", str(file), "--port", "0", *option]) == 1
        assert option[0].strip("-").replace("-", "_") in capsys.readouterr().err.replace("-", "_")


def test_a_queue_is_first_come_first_served_whatever_comes_after(file):
    """No stream of small requests keeps a long one from its turn."""

    async def play():
        repository = Repository([file])
        repository.open()
        version, queue = repository.get("model"), Queue(Limits())
        service = Service(repository)
        service.queue = queue
        for feeds in text([20, 500, 20, 20, 100, 500]):
            service.accept(version, feeds)
        taken = [[job.tokens for job in await queue.take()] for _ in range(3)]
        assert taken == [[20, 20, 20], [500, 500], [100]]

    asyncio.run(play())


def test_buffers_go_back_to_the_system():
    """Thirty times 8 MB made in eight threads and freed: little of it stays (1 to 18 MB; 45 to 56 without `steady`)."""
    program = """
import platform, threading
import numpy as np
from pyclattn.serving import allocator

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def work():
    for size in range(1, 30):
        kept = [np.ones(size << 15) for _ in range(3)]

assert allocator.steady() or platform.libc_ver()[0] != "glibc"
before = resident()
threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout) < 32 << 20


def test_sigterm_as_soon_as_the_service_listens(file):
    """The signal is not lost between the log's line and the loop's start."""
    with running(file) as service:
        assert service.stop() == 0
        assert service.lines[-1]["event"] == "stopped"


@contextmanager
def with_a_long_run(tmp_path, *options):
    """A service, and the answers of three requests of some seconds each that it accepted."""
    path = save(tmp_path / "model.safetensors", encoder(width=64, n_layers=4, n_positions=33_000))
    asked, found = binary(text([32_000])[0]), []

    def ask():
        try:
            found.append(service.ask("POST", INFER, *asked)[0])
        except (OSError, http.client.HTTPException):
            found.append(None)

    with running(path, *options) as service:
        clients = [threading.Thread(target=ask) for _ in range(3)]
        for client in clients:
            client.start()
        while service.metric("pyclattn_queue_requests") < 2:
            pass
        yield service, found
        for client in clients:
            client.join()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_run(tmp_path, second):
    with with_a_long_run(tmp_path) as (service, found):
        service.process.send_signal(signal.SIGTERM)
        with suppress(ConnectionError):  # until the first has been taken
            while service.ask("GET", "/v2/health/live"):
                pass
        service.process.send_signal(second)
        assert service.wait() == 128 + second
    assert found == [None] * 3


def test_the_time_to_drain_ends_a_run(tmp_path):
    """Who still waits is told, and the process does not stay for a run that nobody waits for."""
    with with_a_long_run(tmp_path, "--drain-timeout", "0.5") as (service, found):
        assert service.stop() == 1
        assert any(line["event"] == "not drained" and line["requests"] == 3 for line in service.lines)
        assert service.lines[-1] | {"time": ""} == {"time": "", "level": "error", "event": "stopped", "drained": False}
    assert found == [503] * 3


def test_a_client_that_takes_no_answer_is_cut(tmp_path):
    """Else its answer stayed in memory, and its connection counted, as long as it liked; who reads gets all."""
    path = save(tmp_path / "model.safetensors", encoder(width=64))
    rows = {name: np.repeat(array, 600, 0) for name, array in text([50])[0].items()}
    body, headers = binary(rows)  # 7.7 MB come back, more than the system buffers
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n".encode()
    head += b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items()) + b"\r\n"
    with running(path, "--send-timeout", "1") as service, ExitStack() as stack:

        def ask():
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            connection.connect(("127.0.0.1", service.port))
            connection.sendall(head + body)
            return connection

        ask()
        reader, n_read = ask(), 0
        while n_read < 7_680_000:
            piece = reader.recv(1 << 16)
            assert piece
            n_read += len(piece)
        service.wait_for("client takes no answer")
        assert service.stop() == 0
