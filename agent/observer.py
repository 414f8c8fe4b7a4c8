"""What the hypervisors of this host say of its guests, kept fresh: the one place that asks them.

Invariant: readers never wait for a hypervisor. One that is down leaves the last known state of its guests, with the
reason, and hides no other hypervisor's guests.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from gugus.agent.v1 import guest_pb2, node_pb2

from agent.changes import Changes
from agent.compute.hypervisor import Hypervisor, KillReport, Observation
from common.errors import as_gugus_error, precondition
from common.logs import get_logger
from common.waiting import happened

REFRESH_PERIOD_S = 2.0
"""So often everything is looked at, for CPU time, memory and addresses, beside each change that a driver tells."""

OBSERVE_TIMEOUT_S = 10.0
"""A hypervisor that has not answered for so long counts as down."""

_log = get_logger("observer")


@dataclass(frozen=True, slots=True)
class Seen:
    """A guest as last seen, by which hypervisor, and why that is old; `doubt` is empty when it is not."""

    hypervisor: Hypervisor
    observation: Observation
    doubt: str = ""


class Observer:
    """Watches all hypervisors. Used in the event loop, `emergency_kill` apart."""

    def __init__(self, hypervisors: Iterable[Hypervisor], changes: Changes) -> None:
        self._hypervisors = tuple(hypervisors)
        self._changes = changes
        self._seen: dict[str, Seen] = {}
        self._down: dict[str, str] = {}
        self._dirty = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looks = 0
        self._looked: dict[str, int] = {}
        self._listeners: list[Callable[[str, Seen | None], None]] = []

    async def open(self) -> None:
        """Open every hypervisor and look at all guests once."""
        self._loop = asyncio.get_running_loop()
        for hypervisor in self._hypervisors:
            hypervisor.watch(self._told)
            await hypervisor.open()
        await self.refresh()

    async def close(self) -> None:
        """Let go of the hypervisors; guests go on running."""
        for hypervisor in self._hypervisors:
            await hypervisor.close()

    def listen(self, listener: Callable[[str, Seen | None], None]) -> None:
        """Have `listener` called with each guest's name and what is seen of it, after every look at it."""
        self._listeners.append(listener)

    @property
    def seen(self) -> dict[str, Seen]:
        """Every guest that a hypervisor tells of, by name. Not to be changed."""
        return self._seen

    @property
    def down(self) -> Mapping[str, str]:
        """Hypervisors that do not answer, and why."""
        return self._down

    def hypervisor_for(self, kind: guest_pb2.GuestKind.ValueType) -> Hypervisor:
        """Return the hypervisor that runs a kind of guests. Raises HYPERVISOR_MISSING."""
        for hypervisor in self._hypervisors:
            if kind in hypervisor.kinds:
                return hypervisor
        raise precondition(
            "HYPERVISOR_MISSING",
            f"this node has no hypervisor for guests of the kind {guest_pb2.GuestKind.Name(kind)}.",
            remedy='The key "hypervisors" of its agent.yaml says which it serves.',
        )

    async def probe(self) -> list[node_pb2.HypervisorFacts]:
        """Tell what each hypervisor can do."""
        return [await self._probe(hypervisor) for hypervisor in self._hypervisors]

    async def run(self) -> None:
        """Keep fresh, until cancelled."""
        while True:
            await happened(self._dirty, REFRESH_PERIOD_S)
            self._dirty.clear()
            await self.refresh()

    async def refresh(self) -> None:
        """Look at all guests of all hypervisors now."""
        await asyncio.gather(*(self._refresh(hypervisor) for hypervisor in self._hypervisors))

    async def look(self, name: str, hypervisor: Hypervisor) -> Observation | None:
        """Look at one guest now. Raises HYPERVISOR_DOWN, and INTERNAL for what a hypervisor should not raise."""
        try:
            observation = await hypervisor.observe(name)
        except Exception as error:
            raise as_gugus_error(error, _log) from error
        finally:  # whatever was seen of it by looks that began before is old now
            self._looks += 1
            self._looked[name] = self._looks
        self._take(name, None if observation is None else Seen(hypervisor, observation))
        return observation

    async def emergency_kill(self, names: Collection[str]) -> KillReport:
        """Kill guests of any hypervisor by their processes alone; runs in any thread's loop.

        When one hypervisor fails the others' guests are killed all the same, and none counts as gone.
        """
        kills = (hypervisor.emergency_kill(names) for hypervisor in self._hypervisors)
        reports = await asyncio.gather(*kills, return_exceptions=True)
        self._told("")
        alive: dict[str, str] = {}
        for hypervisor, report in zip(self._hypervisors, reports, strict=True):
            if isinstance(report, BaseException):
                alive |= dict.fromkeys(names, f"hypervisor {hypervisor.name} failed to kill: {report!r}")
            else:
                alive |= report.alive
        return KillReport(frozenset(names) - alive.keys(), alive)

    def _told(self, _name: str) -> None:
        """Look again soon. An emergency kill calls this from the loop of its own thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._dirty.set)

    async def _refresh(self, hypervisor: Hypervisor) -> None:
        """Look at all guests of one hypervisor; a guest that was looked at alone meanwhile is known better already."""
        began = self._looks
        try:
            found = await _bounded(hypervisor.observe_all(), hypervisor.name)
        except Exception as error:  # its guests may well run on: keep what was seen, with the reason
            self._doubt(hypervisor, str(as_gugus_error(error, _log)))
            return
        if self._down.pop(hypervisor.name, None):
            _log.info("hypervisor answers again", hypervisor=hypervisor.name)
        mine = {name for name, seen in self._seen.items() if seen.hypervisor is hypervisor}
        for name in mine | found.keys():
            if self._looked.get(name, 0) <= began:
                observation = found.get(name)
                self._take(name, None if observation is None else Seen(hypervisor, observation))

    def _doubt(self, hypervisor: Hypervisor, why: str) -> None:
        if hypervisor.name not in self._down:
            _log.error("hypervisor does not answer", hypervisor=hypervisor.name, error=why)
        self._down[hypervisor.name] = why
        for name, seen in list(self._seen.items()):
            if seen.hypervisor is hypervisor:
                self._take(name, replace(seen, doubt=f"last known state: {why}"))

    def _take(self, name: str, seen: Seen | None) -> None:
        before = self._seen.get(name)
        if seen is not None:
            self._seen[name] = seen
        else:
            self._seen.pop(name, None)
        for listener in self._listeners:
            listener(name, seen)
        if _essence(before) != _essence(seen):
            self._changes.tell(name)

    async def _probe(self, hypervisor: Hypervisor) -> node_pb2.HypervisorFacts:
        try:
            return await hypervisor.probe()
        except Exception as error:  # one hypervisor's fault must not hide the others
            reason = str(as_gugus_error(error, _log))
            return node_pb2.HypervisorFacts(driver=hypervisor.name, kinds=hypervisor.kinds, ready=False, reason=reason)


async def _bounded(work: Awaitable[dict[str, Observation]], hypervisor: str) -> dict[str, Observation]:
    try:
        async with asyncio.timeout(OBSERVE_TIMEOUT_S):
            return await work
    except TimeoutError:
        raise precondition(
            "HYPERVISOR_DOWN", f"hypervisor {hypervisor} has not answered for {OBSERVE_TIMEOUT_S:.0f} s."
        ) from None


def _essence(seen: Seen | None) -> object:
    """What makes a change worth telling: everything but the counters."""
    return seen and (replace(seen.observation, cpu_time_ns=0, memory_used_bytes=0, usage=None), seen.doubt)
