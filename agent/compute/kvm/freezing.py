"""Frozen file systems of guests, and the promise that they are thawed again, whatever happens to whoever froze them.

A frozen guest hangs at its next write. So a file tells of it before it is frozen, until it is thawed: an agent process that finds such a
file at its start thaws first. And every freeze ends by itself.
"""

import asyncio
import contextlib
from pathlib import Path

from agent.compute.kvm.guest_agent import GuestAgent
from common.errors import GugusError
from common.files import remove_durably, write_atomic
from common.logs import get_logger

RETRY_S, RETRY_MAX_S = 2.0, 60.0
"""Pause between two tries to thaw a guest whose agent does not answer: the first, and the longest of the ever longer next ones."""

CLOSE_TIMEOUT_S = 2.0
"""How long the end of this process may wait for thawing; the next process goes on with it."""

_NOTHING_TO_THAW = frozenset({"GUEST_NOT_RUNNING", "FREEZE_FAILED"})
"""A guest that does not run is not frozen any more; one whose agent refuses to thaw has never frozen."""

_log = get_logger("kvm.freezing")


class Freezing:
    """What is frozen. folder: of this boot."""

    def __init__(self, agent: GuestAgent, folder: Path) -> None:
        self._agent = agent
        self._folder = folder
        self._ends: dict[str, asyncio.Task[None]] = {}
        """Guests that may be frozen, and what thaws each."""

    async def open(self) -> None:
        """Begin to thaw what was left frozen."""
        for mark in await asyncio.to_thread(lambda: list(self._folder.glob("[!.]*"))):
            _log.warning("guest may have been left frozen; thawing it", guest=mark.name)
            self._end(mark.name, 0.0)

    async def close(self) -> None:
        """Thaw what is frozen, for as long as may be waited."""
        for name in list(self._ends):
            self._end(name, 0.0)
        if self._ends:
            await asyncio.wait(self._ends.values(), timeout=CLOSE_TIMEOUT_S)
        for task in self._ends.values():
            task.cancel()

    async def freeze(self, name: str, timeout_s: float) -> int:
        """Freeze a guest for at most `timeout_s`; return how many file systems. Raises GUEST_AGENT_MISSING, FREEZE_FAILED."""
        await self._agent.ping(name)  # the most frequent refusal leaves no trace
        await asyncio.to_thread(self._mark, name)
        try:
            frozen = await self._agent.freeze(name)
        except BaseException:
            self._end(name, 0.0)  # it may have frozen some, or may still do so
            raise
        self._end(name, timeout_s)
        return frozen

    async def thaw(self, name: str) -> None:
        """Thaw a guest. Returns once it is done, or goes on in the background while the guest's agent does not answer."""
        if name not in self._ends:
            return
        self._end(name, 0.0)
        await asyncio.wait([self._ends[name]], timeout=RETRY_S)

    def _end(self, name: str, after_s: float) -> None:
        """Thaw a guest in `after_s` seconds, instead of when it was to be thawed."""
        if former := self._ends.pop(name, None):
            former.cancel()
        task = asyncio.create_task(self._thaw_until_done(name, after_s), name=f"thaw-{name}")
        self._ends[name] = task
        task.add_done_callback(lambda _: self._ends.pop(name) if self._ends.get(name) is task else None)

    async def _thaw_until_done(self, name: str, after_s: float) -> None:
        if after_s:
            await asyncio.sleep(after_s)
            _log.warning("guest was frozen for too long; thawing it", guest=name, seconds=after_s)
        pause_s = RETRY_S
        while not await self._thawed(name):
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_MAX_S)
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(remove_durably, self._folder / name)

    async def _thawed(self, name: str) -> bool:
        try:
            await self._agent.thaw(name)
        except GugusError as error:
            _log.warning("guest was not thawed", guest=name, error=str(error))
            return error.reason in _NOTHING_TO_THAW
        return True

    def _mark(self, name: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._folder / name, b"", 0o600)
