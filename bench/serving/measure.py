"""The rows of ``python -m bench serving``, their bars, and the command."""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.parts import measured
from bench.rows import Row, tokens
from bench.serving import clients
from bench.serving.models import LENGTH, served
from bench.serving.processes import Server, ours, serving, theirs

RESULT = Path(__file__).resolve().parents[1] / "results" / "serving.json"
N_CLIENTS = 64
# Clients wait for each other: 64 in turn may take longer than the default of 60 s on two cores.
PATIENT = ("--timeout", "600", "--drain-timeout", "600")
# Seconds after which a connection that fails had a request the service knew of.
ACCEPTED = 0.05
# Longest text of the comparison: ONNX Runtime allocates 12 x length x length floats, several times over.
COMPARED = 4096


def start(model: Path, n_threads: int, rounds: int) -> Iterator[Row]:
    """Seconds from the command to the first answer; memory of the service once it is loaded and idle."""
    taken, cpu, resident = [], [], []
    for _ in range(rounds + 1):  # the first fills the page cache
        with serving(ours(model, n_threads)) as server:
            server.wait()
            answer = _ask(server, 16)
            taken.append(time.perf_counter() - server.started)
            cpu.append(server.cpu_seconds())
            resident.append(server.resident())
            server.terminate()
        if answer != 200:
            raise RuntimeError(f"the first request was answered by {answer}")
    size = model.stat().st_size
    note = f"{size / 1e6:.0f} MB; {statistics.median(cpu[1:]):.2f} s of CPU; best {min(taken[1:]):.2f} s"
    yield Row("serving", "start to first answer", "", statistics.median(taken[1:]), "s", "<=", 1.0, note)
    most = max(resident)
    yield Row("serving", "idle, resident beyond the weights, no numba", "", most - size, "MB", "<=", 150e6,
              f"{most / 1e6:.0f} MB in all, weights {size / 1e6:.0f} MB")  # fmt: skip


def _ask(server: Server, length: int) -> int:
    body, headers = clients.request(length)
    connection = server.connection()
    connection.request("POST", "/v2/models/minilm/infer", body, headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def load(model: Path, n_threads: int, seconds: float) -> Iterator[Row]:
    """64 clients, 16 to 8,192 tokens: errors, memory, tails; then SIGTERM while they ask."""
    with serving(ours(model, n_threads, *PATIENT)) as server:
        server.wait()
        samples, is_over = [], threading.Event()

        def watch() -> None:
            begin = time.monotonic()
            while not is_over.wait(1.0):
                samples.append((time.monotonic() - begin, server.resident()))

        watcher = threading.Thread(target=watch)
        watcher.start()
        found = clients.run(server.port, "minilm", N_CLIENTS, seconds, LENGTH)
        is_over.set()
        watcher.join()
        yield from _load_rows(found, samples, seconds)
        yield from _drain(server)


def _load_rows(found: list[tuple], samples: list[tuple[float, int]], seconds: float) -> Iterator[Row]:
    statuses = Counter(status for *_, status in found)
    errors = sum(n for status, n in statuses.items() if status not in (200, 429))
    at, is_long = f"{seconds / 60:g} min", seconds >= 300
    answered = [(n, taken) for _, n, taken, status in found if status == 200]
    rate, total = len(answered) / seconds, sum(n for n, _ in answered) / seconds
    note = f"{dict(statuses)}; {rate:.1f} requests/s, {total:.0f} tokens/s"
    yield Row("serving", "64 clients, 16 to 8,192 tokens: errors but 429", at, errors, "", "<=", 0, note)
    early = sorted(size for at_, size in samples if at_ <= min(60.0, seconds / 2))
    late = sorted(size for at_, size in samples if at_ > seconds - min(60.0, seconds / 2))
    growth = max(late) / max(early) - 1
    yield Row("serving", "growth of memory after the first minute", at, growth, "%", "<=", 0.05,
              f"highest {max(early) / 1e6:.0f} MB in the first minute, {max(late) / 1e6:.0f} MB in the last",
              {"resident": samples}, holds_here=is_long)  # fmt: skip
    worst, lines = 0.0, []
    for least in (16 << i for i in range(10)):
        own = [taken for n, taken in answered if least <= n < 2 * least]
        if len(own) >= 2:
            middle, tail = np.percentile(own, 50), np.percentile(own, 99)
            lines.append((least, len(own), float(middle), float(tail)))
            worst = max(worst, tail / middle)
    shown = ", ".join(f"{least}+: {middle:.1f}/{tail:.1f} s of {n}" for least, n, middle, tail in lines)
    yield Row("serving", "p99 over p50 of a length class, the worst", at, worst, "x", "<=", 3.0, shown,
              {"classes": lines})  # fmt: skip


def _drain(server: Server) -> Iterator[Row]:
    """SIGTERM while 16 clients ask."""
    found: list = []
    end = time.monotonic() + 60
    threads = [
        threading.Thread(target=clients.client, args=(server.port, "minilm", clients.lengths(i, 512), end, found))
        for i in range(16)
    ]
    for thread in threads:
        thread.start()
    time.sleep(2)
    code = server.terminate()
    for thread in threads:
        thread.join()
    # a request sent on an idle connection in the moment it is closed was not accepted, and fails at once
    lost = sum(1 for _, _, taken, status in found if status not in (200, 429) and taken > ACCEPTED)
    answered = sum(1 for *_, status in found if status == 200)
    yield Row("serving", "SIGTERM under load: exit code 0, nothing lost", "", code == 0 and lost == 0, sense="is",
              bar=True, note=f"exit code {code}, {answered} answered, {lost} lost")  # fmt: skip


def versus(model: Path, n_threads: int, seconds: float, rounds: int) -> Iterator[Row]:
    """Requests a second of both engines behind the same server, in turn."""
    commands = {"ours": ours(model, n_threads, *PATIENT), "theirs": theirs(model, n_threads, 600)}
    rates: dict[str, list[float]] = {name: [] for name in commands}
    total: dict[str, int] = dict.fromkeys(commands, 0)
    for i in range(rounds):
        for name, command in commands.items():
            with serving(command) as server:
                server.wait()
                _ask(server, 16)
                found = clients.run(server.port, "minilm", N_CLIENTS, seconds, COMPARED, seed=i)
                if any(status != 200 for *_, status in found):
                    raise RuntimeError(f"{name}: {Counter(status for *_, status in found)}")
                last = max(at for at, *_ in found)  # those under way at the end are answered too
                rates[name].append(len(found) / last)
                total[name] += len(found)
                server.terminate()
    ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["theirs"]))
    mine, other = (statistics.median(own) for own in rates.values())
    yield Row("serving", "requests a second over ONNX Runtime's", f"16-{tokens(COMPARED)}", ratio, "x", ">=", 1.5,
              f"{mine:.1f} against {other:.1f}; {total['ours']} and {total['theirs']} requests, median 200 tokens",
              {"rates": rates})  # fmt: skip


def main(given: list[str] | None = None) -> int:
    """Print the table and write bench/results/serving.json; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench serving", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="of load (%(default)s)")
    parser.add_argument("--seconds", type=float, default=25.0, help="of each engine's turn (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="of turns (%(default)s)")
    parser.add_argument("--n-threads", type=int, default=2)
    parser.add_argument("--only", choices=["start", "load", "versus"], action="append")
    options = parser.parse_args(given)
    _, model = served()
    groups = {
        "start": lambda: start(model, options.n_threads, 5),
        "versus": lambda: versus(model, options.n_threads, options.seconds, options.rounds),
        "load": lambda: load(model, options.n_threads, 60 * options.minutes),
    }
    return measured(groups, RESULT, options.n_threads, options.only or list(groups))


if __name__ == "__main__":
    sys.exit(main())
