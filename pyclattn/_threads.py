"""The only owner of threads.

A kernel draws its tasks from a shared counter, so a call needs one hand-over per thread, however many tasks there
are. Threads sleep between calls (no spinning), are made when first needed, and are forgotten in a forked child, which
makes its own. The caller works too: a call finishes even if every other thread is busy elsewhere.
"""

import ctypes
import operator
import os
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from pyclattn import _config
from pyclattn.errors import ArgumentError, DTypeError


def _cgroup_quota() -> float:
    """CPUs the container may use by its cgroup quota (version 2 or 1), or infinity."""
    try:
        paths = [line.rstrip("\n").split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return float("inf")
    quota = float("inf")
    for _, controllers, path in (p for p in paths if len(p) == 3):
        root = Path("/sys/fs/cgroup") / ("cpu" if controllers else "")
        if controllers and "cpu" not in controllers.split(","):
            continue
        here = root / path.lstrip("/")
        for folder in (here, *here.parents):  # a parent's limit binds its children
            try:
                if controllers:
                    limit = int((folder / "cpu.cfs_quota_us").read_text())
                    period = int((folder / "cpu.cfs_period_us").read_text())
                else:
                    first, second = (folder / "cpu.max").read_text().split()
                    limit, period = (-1 if first == "max" else int(first)), int(second)
            except (OSError, ValueError):
                limit, period = -1, 1
            if limit > 0 and period > 0:
                quota = min(quota, limit / period)
            if folder == root:
                break
    return quota


def available_cpus() -> int:
    """CPUs this process may use: affinity and cgroup quota (rounded up), at least 1."""
    try:
        affinity = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        affinity = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, affinity if quota >= affinity else int(-(-quota // 1)))


_default: int | None = None


def resolve(n_threads: int | None) -> int:
    """``n_threads`` as given, else PYCLATTN_NUM_THREADS, else the CPUs this process may use (looked up once)."""
    global _default
    if n_threads is None:
        configured = _config.num_threads()
        if configured is not None:
            return configured
        if _default is None:
            _default = available_cpus()
        return _default
    try:
        if type(n_threads).__name__ in ("bool", "bool_"):
            raise TypeError
        n_threads = operator.index(n_threads)
    except TypeError:
        raise DTypeError(f"n_threads must be a whole number, got {n_threads!r}") from None
    if n_threads < 1:
        raise ArgumentError(f"n_threads must be at least 1, got {n_threads}")
    if n_threads > _config.MOST_THREADS:
        raise ArgumentError(f"n_threads must be at most {_config.MOST_THREADS}, got {n_threads}")
    return n_threads


def of_worker() -> int:
    """Threads of a process that an engine started: what the engine gave it, never more than this process may use.

    PYCLATTN_NUM_THREADS; else OMP_NUM_THREADS, which Ray, Dask, Spark and loky set for each worker; else 1 in a child
    of multiprocessing, since a pool has a process for each CPU; else the CPUs this process may use.
    """
    import multiprocessing  # here: it costs more than the rest of this module, and a child has it already

    configured = _config.num_threads()
    if configured is not None:
        return configured
    given = _config.omp_num_threads()
    if given is None and multiprocessing.parent_process() is not None:
        given = 1
    return available_cpus() if given is None else min(given, available_cpus())


class _Job:
    """One function called by several threads at once; a thread that comes too late skips it."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function
        self.lock = threading.Lock()
        self.open, self.running = True, 0
        self.finished = threading.Event()
        self.error: BaseException | None = None

    def help(self) -> None:
        with self.lock:
            if not self.open:
                return
            self.running += 1
        try:
            self.function()
        except BaseException as error:
            self.error = error
        with self.lock:
            self.running -= 1
            if not self.open and self.running == 0:
                self.finished.set()

    def close(self) -> None:
        """No thread may join any more; wait for those inside."""
        with self.lock:
            self.open = False
            busy = self.running > 0
        if busy:
            self.finished.wait()


# On so few CPUs Linux may wake a thread on the caller's own, where it waits for the next balance, some ms: longer than
# many a call. Of calls of 1 ms on two CPUs 59 % had such a helper, with this 4 %: 1.5 ms became .9 ms.
FEW_CPUS = 4


def _cpu_teller() -> Callable[[], int] | None:
    """What tells the calling thread's CPU, on systems where threads can be placed."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    return getattr(ctypes.PyDLL(None), "sched_getcpu", None)  # PyDLL: the lock is kept for so short a call


_current_cpu = _cpu_teller()


class _Pool:
    """Sleeping threads, as many as one call has asked for at most."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        self.lock = threading.Lock()
        self.threads: list[threading.Thread] = []
        self.n_calls = 0
        self.cpus: set[int] = set()  # that threads may be placed on; none where that is left to the system
        self.left_free = -1  # the CPU that threads are kept off

    def _loop(self) -> None:
        while True:
            self.jobs.get().help()

    def _grow(self, n_helpers: int) -> None:
        with self.lock:
            if not self.threads and _current_cpu is not None:
                cpus = os.sched_getaffinity(0)
                self.cpus = cpus if 2 <= len(cpus) <= FEW_CPUS else set()
            while len(self.threads) < n_helpers:
                thread = threading.Thread(target=self._loop, name="pyclattn", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the container allows no more: those that are there do the work
                    break
                self.threads.append(thread)
                self.left_free = -1

    def _step_aside(self) -> None:
        """Keep the threads off the caller's CPU; a system call only where it has moved."""
        cpu = _current_cpu() if _current_cpu is not None else -1
        if cpu == self.left_free or cpu not in self.cpus:
            return
        self.left_free = cpu
        try:
            for thread in self.threads:
                os.sched_setaffinity(thread.native_id or 0, self.cpus - {cpu})
        except OSError:  # the system knows better
            self.cpus = set()

    def run(self, function: Callable[[], None], n_helpers: int) -> None:
        if len(self.threads) < n_helpers:
            self._grow(n_helpers)
        with self.lock:
            self.n_calls += 1
            if self.cpus and self.n_calls == 1:  # several callers leave no CPU free in any case
                self._step_aside()
        job = _Job(function)
        for _ in range(min(n_helpers, len(self.threads))):
            self.jobs.put(job)
        try:
            function()
        finally:
            job.close()
            with self.lock:
                self.n_calls -= 1
        if job.error is not None:
            raise job.error


_pool = _Pool()


def _forget_pool() -> None:
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def run(function: Callable[[], None], n_threads: int) -> None:
    """Call ``function()`` on up to ``n_threads`` threads at once, this one included; return when all are done.

    The function must share out its own work (kernels draw tasks from a counter) and be right for any number of callers.
    """
    if n_threads <= 1:
        function()
    else:
        _pool.run(function, n_threads - 1)
