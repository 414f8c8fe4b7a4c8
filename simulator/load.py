"""What guests use in the simulation, and the acting manager's memory of it: the real `manager.scheduler.load`.

The product's shell is manager.controllers.load_watch. A guest uses all of its memory, and as many CPUs as the scenario says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gugus.agent.v1.guest_pb2 import GUEST_STATE_RUNNING, GUEST_STATE_STOPPED
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.heartbeat_pb2 import GuestReport

from manager.scheduler.balancing import policy_of
from manager.scheduler.load import Load, Loads, pause_s
from manager.scheduler.views import cpus_of, memory_of
from simulator.clockwork import S

if TYPE_CHECKING:
    from simulator.agent import Copy
    from simulator.manager import Manager


@dataclass(frozen=True, slots=True)
class Work:
    """How many CPUs a guest keeps busy from a moment on, and the CPU time that it had used by then."""

    cpus: float
    at_ns: int = 0
    used_ns: int = 0

    def used(self, now_ns: int) -> int:
        """Return the CPU time that it has used."""
        return self.used_ns + round(self.cpus * max(0, now_ns - self.at_ns))

    def changed(self, cpus: float, now_ns: int) -> Work:
        """Return what it does once it keeps another number of CPUs busy."""
        return Work(cpus, now_ns, self.used(now_ns))


IDLE = Work(0.0)


class LoadWatch:
    """One reign's looks at what guests use."""

    def __init__(self, manager: Manager) -> None:
        self.manager, self.world = manager, manager.world
        self._loads = Loads()
        self._due = 0

    def of(self, guest: Guest) -> Load:
        """Return what a guest uses of what it has; all of it as long as that is not known."""
        return self._loads.of(guest, cpus_of(guest.spec), memory_of(guest.spec))

    def tick(self) -> None:
        """Look at the newest beats, if that is due."""
        manager, now = self.manager, self.manager.now()
        if now < self._due:
            return
        constant_ns = policy_of(manager.replica.cluster.settings.balance).smoothing_ns
        self._due = now + round(pause_s(constant_ns) * S)
        for node, (_, beat) in manager.beats.items():
            report = manager.reports.get(node)
            if report is not None:
                self._loads.heard(node, self._told(report.copies, beat.heard_ns), beat.heard_ns, constant_ns)
        self._loads.forget(now, constant_ns)

    def _told(self, copies: Mapping[str, Copy], heard_ns: int) -> list[GuestReport]:
        """Return what a beat that was heard then told of a host's guests."""
        guests, at_ns = self.manager.replica.guests, self.manager.host.clock.real(heard_ns)
        return [
            GuestReport(
                name=name,
                uid=guests[name].meta.uid,
                state=GUEST_STATE_RUNNING if copy.running else GUEST_STATE_STOPPED,
                generation=copy.generation,
                cpu_time_ns=self.world.work.get(name, IDLE).used(at_ns),
                memory_used_bytes=memory_of(guests[name].spec),
            )
            for name, copy in copies.items()
            if name in guests
        ]
