"""Turns: one change at a time on each guest, pool and network, each by a manager whose epoch is not over.

Invariant: the epoch is checked, and a higher one made durable, after the wait for the turn and before the change. So a
command of a manager that was replaced while the command waited is refused, too.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar
from weakref import WeakValueDictionary

from agent.state import AgentState
from common.errors import invalid, precondition, unavailable

T = TypeVar("T")


class Turns:
    """Runs changes. A change that was begun is finished even when its caller goes away."""

    def __init__(self, state: AgentState) -> None:
        self._state = state
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._epoch_lock = asyncio.Lock()
        self._running: set[asyncio.Task[object]] = set()
        self._closed = False

    def close(self) -> None:
        """Begin no change any more, for the host is being shut down: each is refused as something to be tried again."""
        self._closed = True

    def under_way(self, kind: str) -> set[str]:
        """Return the names of those guests, pools or networks (kind "guest" and so on) that are being changed."""
        begins = f"{kind}/"
        return {s.removeprefix(begins) for s, lock in self._locks.items() if s.startswith(begins) and lock.locked()}

    async def run(self, subject: str, epoch: int, change: Callable[[], Awaitable[T]]) -> T:
        """Run `change` when it is its turn on `subject` (for example "guest/web").

        Raises GugusError INVALID_ARGUMENT (no epoch), STALE_EPOCH, NODE_NOT_ONLINE, and what `change` raises.
        """
        task = asyncio.ensure_future(self._run(subject, epoch, change))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def admit(self, epoch: int) -> None:
        """Check an epoch and keep it. Raises GugusError INVALID_ARGUMENT or STALE_EPOCH."""
        if epoch < 1:
            raise invalid("epoch", "is missing; it is the acting manager's, at least 1")
        async with self._epoch_lock:
            if epoch < self._state.epoch:
                raise _stale(epoch, self._state.epoch)
            if epoch > self._state.epoch:
                await self._state.run(self._state.raise_epoch, epoch)

    async def _run(self, subject: str, epoch: int, change: Callable[[], Awaitable[T]]) -> T:
        lock = self._locks.setdefault(subject, asyncio.Lock())
        async with lock:
            await self.admit(epoch)
            if self._closed:
                raise unavailable("NODE_NOT_ONLINE", "this node is being shut down.", remedy="Use another node.")
            return await change()


def _stale(epoch: int, highest: int) -> Exception:
    return precondition(
        "STALE_EPOCH",
        f"the epoch {epoch} is over: this node has seen {highest}.",
        remedy="Another manager acts now; the caller must step down.",
        metadata={"epoch": str(highest)},
    )
