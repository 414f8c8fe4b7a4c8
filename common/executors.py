"""Bounded pools for blocking calls (libvirt, files) whose threads are replaced when a call gets stuck.

Invariant: `size` threads are always ready for work, however many calls hang, up to a bound of hanging threads at which
the pool refuses work at once instead of queueing it for ever.
"""

import asyncio
import contextvars
import functools
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from common.errors import GugusError, deadline_exceeded, unavailable
from common.logs import get_logger

STUCK_FACTOR = 4
"""Hanging threads allowed, as a multiple of the pool's size; each costs a stack and maybe a lock of the library."""

T = TypeVar("T")

_log = get_logger("executors")


@dataclass(eq=False)
class _Job(Generic[T]):
    """One call. The last three are written under the pool's lock only."""

    work: Callable[[], T]
    name: str
    future: asyncio.Future[T]
    worker: threading.Thread | None = None
    dropped: bool = False
    ended: bool = False


class BoundedPool:
    """Runs blocking calls in `size` named threads. Made and used from one event loop.

    stuck_after_s: time from the call, waiting for a thread included, until it is given up, unless `run` says.
    """

    def __init__(self, name: str, size: int, stuck_after_s: float) -> None:
        self.name = name
        self._size = size
        self._stuck_after_s = stuck_after_s
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stuck: set[threading.Thread] = set()
        self._made = 0
        self._closed = False
        for _ in range(size):
            self._add_worker()

    @property
    def stuck(self) -> int:
        """How many threads hang in a call that was given up. For metrics and health."""
        return len(self._stuck)

    async def run(self, fn: Callable[..., T], /, *args: Any, timeout_s: float | None = None, **kwargs: Any) -> T:
        """Call `fn(*args, **kwargs)` in a thread and return what it returns or raise what it raises.

        Raises GugusError CALL_STUCK (DEADLINE_EXCEEDED) when it takes longer than `timeout_s`; the call may still end
        and take effect. Raises POOL_BUSY (UNAVAILABLE) when no thread took it up in that time, or too many hang.
        A caller that is cancelled stops waiting; a call that no thread has begun is then dropped.
        """
        if self._closed:
            raise unavailable("POOL_CLOSED", f"{self.name} is shutting down.")
        if self.stuck >= self._size * STUCK_FACTOR:
            raise self._busy(f"{self.stuck} calls hang in it")
        loop = asyncio.get_running_loop()
        limit_s = self._stuck_after_s if timeout_s is None else timeout_s
        work = functools.partial(contextvars.copy_context().run, functools.partial(fn, *args, **kwargs))
        job: _Job[T] = _Job(work, getattr(fn, "__qualname__", repr(fn)), loop.create_future())
        self._jobs.put(job)
        timer = loop.call_later(limit_s, self._give_up, job, limit_s)
        try:
            return await job.future
        finally:
            with self._lock:
                job.dropped = job.worker is None
                if job.ended or job.dropped:
                    timer.cancel()  # it would keep what the call was given, and what it returned, until the limit

    def close(self) -> None:
        """Take no more calls and let the threads end after those under way. Does not wait; the threads are daemons."""
        self._closed = True
        for _ in range(self._size):
            self._jobs.put(None)

    def _give_up(self, job: _Job[Any], limit_s: float) -> None:
        """Runs when a job's time is over, even if nobody waits for it any more: a hanging thread must be replaced."""
        with self._lock:
            if job.ended or job.dropped:
                return
            if job.worker is None:
                job.dropped = True
                error = self._busy(f"all its {self._size} threads were taken for {limit_s:g} s")
            else:
                self._stuck.add(job.worker)
                self._add_worker()
                error = deadline_exceeded(
                    "CALL_STUCK",
                    f"{job.name} did not return within {limit_s:g} s and was given up.",
                    remedy="What it calls hangs (libvirtd, a storage server, a disk); see its log.",
                )
                _log.warning("call stuck", pool=self.name, call=job.name, limit_s=limit_s, stuck=len(self._stuck))
        if not job.future.done():
            job.future.set_exception(error)

    def _add_worker(self) -> None:
        self._made += 1
        threading.Thread(target=self._work, name=f"{self.name}-{self._made}", daemon=True).start()

    def _work(self) -> None:
        """Life of a thread: call after call, until the pool closes or it was replaced while it hung."""
        me = threading.current_thread()
        while (job := self._jobs.get()) is not None:
            with self._lock:
                if job.dropped:
                    continue
                job.worker = me
            result, error = _outcome(job.work)
            with self._lock:
                job.ended = True
                replaced = me in self._stuck
                self._stuck.discard(me)
            with suppress(RuntimeError):  # the loop has closed: nobody waits
                job.future.get_loop().call_soon_threadsafe(_deliver, job.future, result, error)
            if replaced:
                return
            del job, result, error  # an idle thread keeps nothing alive

    def _busy(self, why: str) -> GugusError:
        return unavailable(
            "POOL_BUSY",
            f"the pool {self.name} takes no call: {why}.",
            remedy="What it calls hangs (libvirtd, a storage server, a disk); try again when it answers.",
        )


def _outcome(work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return work(), None
    except StopIteration as error:  # a future cannot carry one
        return None, RuntimeError(f"unexpected {error!r}")
    except BaseException as error:
        return None, error


def _deliver(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
