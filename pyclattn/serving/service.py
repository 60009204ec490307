"""A service without HTTP: models, queue, runner, watcher."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic

import numpy as np

from pyclattn.errors import PyclattnError
from pyclattn.graph.planner import check_inputs
from pyclattn.serving.body import Pending
from pyclattn.serving.errors import ClientGoneError, RequestError, from_run
from pyclattn.serving.limits import Limits
from pyclattn.serving.logs import log
from pyclattn.serving.metrics import Metrics
from pyclattn.serving.queue import Job, Queue
from pyclattn.serving.repository import POLL, Repository, Version
from pyclattn.serving.runner import REPORT_EVERY, Outcome, Runner


class Service:
    """What answers requests.

    Parameters
    ----------
    repository : Repository
        Opened already.
    limits : Limits, optional
    report_every : int
        One run of so many is asked for the error of its attentions; 0: none.
    poll : float
        Seconds between looks at the models' files; 0: none.
    """

    def __init__(
        self, repository: Repository, limits: Limits | None = None, *, report_every: int = REPORT_EVERY,
        poll: float = POLL,
    ):  # fmt: skip
        self.repository, self.limits = repository, limits or Limits()
        self.metrics, self.pending = Metrics(), Pending(self.limits.max_pending_bytes)
        self.is_ready = False
        self._report_every, self._poll = report_every, poll
        self._tasks: list[asyncio.Task] = []
        self._end: float | None = None  # when those who still wait are told so

    async def start(self) -> None:
        """Begin to take jobs, in the running event loop."""
        self.queue = Queue(self.limits)
        self.metrics.queue.set_function(lambda: len(self.queue))
        self.metrics.queue_tokens.set_function(lambda: self.queue.tokens)
        self._runner = Runner(self.queue, self.metrics, self._report_every)
        self._tasks = [asyncio.create_task(self._runner.run())]
        if self._poll:
            self._tasks.append(asyncio.create_task(self.repository.watch(self._poll)))
        self.is_ready = True

    @property
    def is_running(self) -> bool:
        """Whether a run is under way; it cannot be cut short."""
        return bool(self._runner.jobs)

    def drain(self) -> None:
        """Have what was accepted, and what is accepted yet, answered within ``drain_timeout`` from now."""
        if self._end is None:
            self._end = monotonic() + self.limits.drain_timeout
            asyncio.get_running_loop().call_later(self.limits.drain_timeout, self._give_up)

    def _give_up(self) -> None:
        """Tell all who still wait that they wait in vain."""
        waiting = [job for job in (*self.queue, *self._runner.jobs) if not job.answer.done()]
        for job in waiting:
            job.answer.set_exception(RequestError(503, "the service ends"))
        if waiting:
            log("not drained", "error", requests=len(waiting))

    async def stop(self) -> None:
        """Finish what was accepted, then end."""
        self.is_ready = False
        self.drain()
        waiting = asyncio.ensure_future(self._runner.drained())
        await asyncio.wait([waiting], timeout=max(0.0, (self._end or 0.0) - monotonic()))
        for task in (waiting, *self._tasks):
            task.cancel()
        await asyncio.gather(waiting, *self._tasks, return_exceptions=True)

    def accept(
        self, version: Version, inputs: dict[str, np.ndarray], seconds: float | None = None, wants_report: bool = False
    ) -> Job:
        """Put a request into the queue, its inputs checked.

        Raises
        ------
        RequestError
        """
        model = version.model
        try:
            feeds = model.filled(dict(inputs))
            check_inputs(model.program.inputs, feeds)
        except PyclattnError as error:
            raise from_run(error, model.path) from error
        seconds = self.limits.timeout if seconds is None else min(seconds, self.limits.timeout)
        job = Job(version, feeds, monotonic() + seconds, wants_report)
        self.queue.put(job)
        return job

    async def outcome(self, job: Job, has_left: Callable[[], Coroutine]) -> Outcome:
        """Wait for a job's outputs, for its time, or for its client to leave, whichever comes first.

        Raises
        ------
        RequestError, ClientGoneError
        """
        left = asyncio.ensure_future(has_left())
        try:
            await asyncio.wait(
                [job.answer, left], timeout=job.deadline - monotonic(), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            left.cancel()
        if job.answer.done():
            return job.answer.result()
        job.answer.cancel()  # the queue forgets it
        if left.done() and not left.cancelled():
            self.metrics.gone.inc()
            raise ClientGoneError
        raise RequestError(504, f"no answer within {job.deadline - job.arrived:.3g} s")
