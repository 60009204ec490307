"""One run at a time, on all threads of the service; outputs go to whoever still waits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

import numpy as np

from pyclattn.graph.run_report import RunReport
from pyclattn.serving.errors import from_run
from pyclattn.serving.logs import log
from pyclattn.serving.metrics import Metrics
from pyclattn.serving.queue import Job, Queue

# The estimate of attention's error takes time: one run of so many is asked for it.
REPORT_EVERY = 64
# Weight of the latest run in the rate that Retry-After is told by.
NEWEST = 0.2


@dataclass(frozen=True)
class Outcome:
    """What a job gets."""

    outputs: dict[str, np.ndarray]
    queue_seconds: float
    run_seconds: float
    n_requests: int  # that shared the run
    report: RunReport | None = None


class Runner:
    """Takes jobs from the queue for ever."""

    def __init__(self, queue: Queue, metrics: Metrics, report_every: int = REPORT_EVERY):
        self._queue, self._metrics, self._report_every = queue, metrics, report_every
        self._runs: dict[str, int] = {}
        self.jobs: list[Job] = []  # of the run that is under way
        self._idle = asyncio.Event()
        self._idle.set()

    async def run(self) -> None:
        while True:
            self.jobs = await self._queue.take()
            self._idle.clear()
            await self._answer(self.jobs)
            self.jobs = []
            self._idle.set()

    async def drained(self) -> None:
        """Return when nothing waits or runs."""
        while len(self._queue) or not self._idle.is_set():
            await self._idle.wait()
            await asyncio.sleep(0)

    async def _answer(self, jobs: list[Job]) -> None:
        start, is_reported = monotonic(), self._is_reported(jobs[0])
        try:
            found = await asyncio.to_thread(_run, jobs, is_reported, start)
        except Exception as error:  # a fault of ours must not end the service
            found = [error] * len(jobs)
        seconds = monotonic() - start
        tokens = sum(job.tokens for job in jobs)
        rate, queue = tokens / max(seconds, 1e-6), self._queue
        queue.tokens_per_second += NEWEST * (rate - queue.tokens_per_second) if queue.tokens_per_second else rate
        self._metrics.ran(jobs[0].version.name, len(jobs), tokens, seconds)
        for job, outcome in zip(jobs, found):
            self._metrics.waiting.labels(job.version.name).observe(start - job.arrived)
            if isinstance(outcome, Outcome) and outcome.report is not None:
                self._metrics.reported(job.version.name, outcome.report)
            if job.answer.done():
                continue
            if isinstance(outcome, Outcome):
                job.answer.set_result(outcome)
                continue
            told = from_run(outcome, job.version.model.path)
            if told.status == 500:
                log("run failed", "error", exception=outcome, model=job.version.name)
            job.answer.set_exception(told)

    def _is_reported(self, job: Job) -> bool:
        """Whether this run is asked what its attentions did."""
        name, model = job.version.name, job.version.model
        count = self._runs.get(name, 0)
        self._runs[name] = count + 1
        approximates = any(model.plan.methods(a) != ["exact"] for a in model.attentions)
        return job.wants_report or (approximates and self._report_every > 0 and count % self._report_every == 0)


def _run(jobs: Sequence[Job], is_reported: bool, start: float) -> list[Outcome | Exception]:
    """Each job's outcome. Where a run together fails, each runs by itself, and only who is at fault is told so."""
    try:
        return _together(jobs, is_reported, start)
    except Exception as error:
        if len(jobs) == 1 and jobs[0].rule.kind != "padded":
            return [error]
    found: list[Outcome | Exception] = []
    for job in jobs:
        try:
            outputs, report = _call(job, job.feeds, is_reported)
            found.append(Outcome(outputs, start - job.arrived, monotonic() - start, 1, report))
        except Exception as error:
            found.append(error)
    return found


def _together(jobs: Sequence[Job], is_reported: bool, start: float) -> list[Outcome | Exception]:
    rule, requests = jobs[0].rule, [job.feeds for job in jobs]
    is_plain = jobs[0].key is None  # run as it was sent
    results, report = _call(jobs[0], requests[0] if is_plain else rule.merge(requests), is_reported)
    own = [results] if is_plain else rule.split(results, requests)
    seconds = monotonic() - start
    return [Outcome(o, start - job.arrived, seconds, len(jobs), report) for o, job in zip(own, jobs)]


def _call(job: Job, feeds: dict[str, np.ndarray], is_reported: bool) -> tuple[dict[str, np.ndarray], RunReport | None]:
    model, names = job.version.model, [v.name for v in job.version.model.program.outputs]
    if not is_reported:
        return dict(zip(names, model.run(None, feeds))), None
    results, report = model.run(None, feeds, report=True)
    return dict(zip(names, results)), report
