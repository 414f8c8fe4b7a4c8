"""A work queue of keys, the heart of every controller.

Invariant: a key has one turn at a time, and a wake that arrives during it leads to another turn, so that no change is ever missed and no
two turns for a key overlap. Keys are in lanes (usually nodes), each with slots of its own: a node that is slow holds up nobody else.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from common.errors import GugusError
from common.logs import get_logger
from common.trace import bound
from manager.consensus import ConsensusError
from manager.store import Conflict

Reconcile = Callable[[str], Awaitable[float | None]]
"""One turn for a key. Returns seconds after which to look again by itself, or None to wait for the next wake."""

FIRST_BACKOFF_S = 0.25
MAX_BACKOFF_S = 15.0

CONFLICT_PAUSE_S = 0.02
"""After a turn that acted on a view which had changed meanwhile: the next one sees the change, so there is nothing to wait for."""

_log = get_logger("controllers")


class WorkQueue:
    """Runs `reconcile` for woken keys, at most `slots` at once in each lane; a turn that fails is tried again, later each time.

    `lane` names the lane of a key at the moment at which it is woken.
    """

    def __init__(
        self, kind: str, reconcile: Reconcile, *, slots: int, lane: Callable[[str], str] = lambda key: ""
    ) -> None:
        self._kind = kind
        self._reconcile = reconcile
        self._slots = slots
        self._lane = lane
        self._waiting: dict[str, deque[str]] = {}
        self._busy: dict[str, int] = {}
        self._queued: set[str] = set()
        self._working: set[str] = set()
        self._again: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._failures: dict[str, int] = {}
        self._group: asyncio.TaskGroup | None = None

    def wake(self, key: str) -> None:
        """Ask for a turn for `key` as soon as its lane has room."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._working:
            self._again.add(key)
        elif key not in self._queued:
            lane = self._lane(key)
            self._queued.add(key)
            self._waiting.setdefault(lane, deque()).append(key)
            self._fill(lane)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            try:
                for lane in list(self._waiting):
                    self._fill(lane)
                await asyncio.Event().wait()
            finally:  # before the turns under way end, so that none of them begins another
                self._group = None
                for timer in self._timers.values():
                    timer.cancel()

    def _fill(self, lane: str) -> None:
        waiting = self._waiting.get(lane)
        while self._group and waiting and self._busy.get(lane, 0) < self._slots:
            key = waiting.popleft()
            self._queued.discard(key)
            self._working.add(key)
            self._busy[lane] = self._busy.get(lane, 0) + 1
            self._group.create_task(self._work(key, lane))
        if waiting is not None and not waiting:
            del self._waiting[lane]

    async def _work(self, key: str, lane: str) -> None:
        delay_s: float | None = None
        try:
            delay_s = await self._turn(key)
        finally:
            self._working.discard(key)
            self._busy[lane] -= 1
            if not self._busy[lane]:
                del self._busy[lane]
        if key in self._again:
            self._again.discard(key)
            self.wake(key)
        elif delay_s is not None:
            self._wake_later(key, delay_s)
        self._fill(lane)

    async def _turn(self, key: str) -> float | None:
        with bound(**{self._kind: key}):
            delay_s: float | None
            try:
                delay_s = await self._reconcile(key)
            except Conflict:
                _log.debug("changed meanwhile, looking again")
                return CONFLICT_PAUSE_S
            except (ConsensusError, GugusError) as error:
                reason = getattr(error, "reason", type(error).__name__)
                _log.warning("turn failed", reason=reason, error=str(error))
            except Exception:
                _log.exception("turn failed")
            else:
                self._failures.pop(key, None)
                return delay_s
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        return float(min(FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 10), MAX_BACKOFF_S))

    def _wake_later(self, key: str, delay_s: float) -> None:
        if timer := self._timers.get(key):
            timer.cancel()
        self._timers[key] = asyncio.get_running_loop().call_later(delay_s, self.wake, key)
