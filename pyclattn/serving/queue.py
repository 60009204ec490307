"""Requests that wait: bounded, first come first served; who comes first takes along who may share the run."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from time import monotonic

import numpy as np

from pyclattn.serving.batching import Rule, n_tokens
from pyclattn.serving.errors import RequestError
from pyclattn.serving.limits import Limits
from pyclattn.serving.repository import Version

# Seconds that Retry-After is between.
LEAST_WAIT, MOST_WAIT = 1, 60


@dataclass(eq=False)
class Job:
    """An accepted request. It runs on the version of the model that accepted it."""

    version: Version
    feeds: dict[str, np.ndarray]
    deadline: float
    wants_report: bool = False
    arrived: float = field(default_factory=monotonic)
    answer: asyncio.Future = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def __post_init__(self) -> None:
        self.tokens = n_tokens(self.version.model.program.inputs, self.feeds)
        self.cost = self.rule.cost(self.version.model.program.inputs, self.feeds)
        own = None if self.wants_report else self.rule.key(self.feeds)
        self.key: Hashable | None = None if own is None else (id(self.version), own)

    @property
    def rule(self) -> Rule:
        return self.version.rule

    @property
    def is_wanted(self) -> bool:
        """Whether its client still waits."""
        return not self.answer.done() and monotonic() < self.deadline


class Queue:
    """Jobs in the order they came.

    Parameters
    ----------
    limits : Limits
    """

    def __init__(self, limits: Limits):
        self._limits = limits
        self._jobs: deque[Job] = deque()
        self._filled = asyncio.Event()
        self.tokens = 0
        self.tokens_per_second = 0.0  # lately; 0 where not known

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    def put(self, job: Job) -> None:
        """Accept a job.

        Raises
        ------
        RequestError
            429, with the time after which there should be room; 413 for a job that is too large ever.
        """
        limits = self._limits
        if job.tokens > limits.max_tokens:
            raise RequestError(413, f"the request has {job.tokens} tokens, at most {limits.max_tokens} are allowed")
        self._forget_unwanted()
        if len(self) >= limits.max_queue or (self._jobs and self.tokens + job.tokens > limits.max_queue_tokens):
            raise RequestError(
                429, f"{len(self)} requests of {self.tokens} tokens are waiting: ask again later", self.retry_after()
            )
        self._jobs.append(job)
        self.tokens += job.tokens
        self._filled.set()

    def retry_after(self) -> int:
        """Seconds in which half the queue should be done."""
        seconds = self.tokens / self.tokens_per_second / 2 if self.tokens_per_second else LEAST_WAIT
        return max(LEAST_WAIT, min(MOST_WAIT, math.ceil(seconds)))

    async def take(self) -> list[Job]:
        """Wait for jobs; the first, and those that may share its run within the budget."""
        while True:
            self._forget_unwanted()
            if self._jobs:
                return self._group()
            self._filled.clear()
            await self._filled.wait()

    def _group(self) -> list[Job]:
        first = self._jobs[0]
        taken, size = [first], first.cost
        for job in list(self._jobs)[1:]:
            if first.key is None or job.key != first.key or size + job.cost > self._limits.max_batch_tokens:
                continue
            taken.append(job)
            size += job.cost
        gone = set(map(id, taken))
        self._jobs = deque(job for job in self._jobs if id(job) not in gone)
        self.tokens = sum(job.tokens for job in self._jobs)
        return taken

    def _forget_unwanted(self) -> None:
        """Drop jobs whose clients left or wait no more."""
        if any(not job.is_wanted for job in self._jobs):
            self._jobs = deque(job for job in self._jobs if job.is_wanted)
            self.tokens = sum(job.tokens for job in self._jobs)
