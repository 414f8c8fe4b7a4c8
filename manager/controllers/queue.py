"""A work queue of keys, the heart of every controller.

Invariant: a key is worked on by one worker at a time, and a wake that arrives while it is worked on leads to another turn, so that no
change is ever missed and no two turns for a key overlap.
"""

import asyncio
from collections.abc import Awaitable, Callable

from common.errors import GugusError
from common.logs import context, get_logger

Reconcile = Callable[[str], Awaitable[float | None]]
"""One turn for a key. Returns seconds after which to look again by itself, or None to wait for the next wake."""

FIRST_BACKOFF_S = 0.25
MAX_BACKOFF_S = 15.0

_log = get_logger("controllers")


class WorkQueue:
    """Runs `reconcile` for woken keys with at most `workers` at once; a turn that fails is tried again, later each time."""

    def __init__(self, kind: str, reconcile: Reconcile, *, workers: int) -> None:
        self._kind = kind
        self._reconcile = reconcile
        self._workers = workers
        self._ready: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        self._working: set[str] = set()
        self._again: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._failures: dict[str, int] = {}

    def wake(self, key: str) -> None:
        """Ask for a turn for `key` as soon as a worker is free."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._working:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._ready.put_nowait(key)

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._workers):
                    group.create_task(self._work())
        finally:
            for timer in self._timers.values():
                timer.cancel()

    async def _work(self) -> None:
        while True:
            key = await self._ready.get()
            self._queued.discard(key)
            self._working.add(key)
            try:
                delay_s = await self._turn(key)
            finally:
                self._working.discard(key)
            if key in self._again:
                self._again.discard(key)
                self.wake(key)
            elif delay_s is not None:
                self._wake_later(key, delay_s)

    async def _turn(self, key: str) -> float | None:
        with context(**{self._kind: key}):
            delay_s: float | None
            try:
                delay_s = await self._reconcile(key)
            except GugusError as error:
                _log.warning("turn failed", reason=error.reason, error=str(error))
            except Exception:
                _log.exception("turn failed")
            else:
                self._failures.pop(key, None)
                return delay_s
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        return min(FIRST_BACKOFF_S * 2.0 ** (failures - 1), MAX_BACKOFF_S)

    def _wake_later(self, key: str, delay_s: float) -> None:
        if timer := self._timers.get(key):
            timer.cancel()
        self._timers[key] = asyncio.get_running_loop().call_later(delay_s, self.wake, key)
