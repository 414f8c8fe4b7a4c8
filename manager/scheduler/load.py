"""The load of guests, smoothed: what each has used of late, as the planner counts it. Pure.

Each guest has an exponentially weighted mean of what it used, with the time constant that the cluster is set to: what was
t ago counts e^(-t / constant) of what is now, however often it was looked at. What a mean lacks at its beginning is taken
out of it (it is divided by the weight that was seen), so that the first look does not outweigh the rest.

Invariant: it is learnt from beats alone and kept in memory only: a manager that takes over learns it anew, and counts each
guest with all that it is promised until it has seen it for long enough (`enough_ns`).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gugus.agent.v1.guest_pb2 import GUEST_STATE_PAUSED, GUEST_STATE_RUNNING
from gugus.cluster.v1.guest_pb2 import POWER_ON, POWER_PAUSED, Guest
from gugus.cluster.v1.heartbeat_pb2 import GuestReport

NS_PER_S = 1_000_000_000

ENOUGH_NS = 240 * NS_PER_S
"""A mean over so long is believed even where the time constant is longer: it is a plain mean of that time then. Shorter than
the default hold of balancing (300 s): a plan that stands only on what new guests are promised does not last so long."""

ALIVE = (GUEST_STATE_RUNNING, GUEST_STATE_PAUSED)
"""States in which a guest's use counts."""

TO_RUN = (POWER_ON, POWER_PAUSED)
"""Asked of guests that use something: one that is held uses no CPU, but its memory."""

KEPT_CONSTANTS = 3
"""A guest that no beat tells of is forgotten after so many time constants: no more than a twentieth would count of it."""


LOOKS = 20
"""In one time constant: more would change the mean by less than a hundredth."""

FASTEST_S = 1.0
"""Beats come no faster."""

SLOWEST_S = 15.0


@dataclass(frozen=True, slots=True)
class Load:
    """Parts of a guest's own CPUs and memory that it uses, 0 to 1."""

    cpu: float = 0.0
    memory: float = 0.0


RESERVED = Load(1.0, 1.0)
"""Of a guest of which it is not known yet what it uses: all that it is promised."""

LoadOf = Callable[[Guest], Load]


def no_load(guest: Guest) -> Load:
    """Where load is not looked at."""
    return Load()


def enough_ns(constant_ns: int) -> int:
    """Return for how long a guest must have been seen until its mean is believed."""
    return min(constant_ns, ENOUGH_NS)


def pause_s(constant_ns: int) -> float:
    """Return after how many seconds to look again at what guests use."""
    return min(SLOWEST_S, max(FASTEST_S, constant_ns / NS_PER_S / LOOKS))


@dataclass(slots=True)
class _Mean:
    """What is remembered of a guest: weighted sums of CPUs and bytes, and the weight of what was seen."""

    node: str
    generation: int
    at_ns: int
    cpu_time_ns: int
    cpus: float = 0.0
    memory_bytes: float = 0.0
    weight: float = 0.0
    seen_ns: int = 0

    def take(self, node: str, report: GuestReport, at_ns: int, constant_ns: int) -> None:
        """Count what was used since the last look. Another run's counter begins anew: there is nothing to compare with."""
        passed_ns, used_ns = at_ns - self.at_ns, report.cpu_time_ns - self.cpu_time_ns
        same_run = (node, report.generation) == (self.node, self.generation) and used_ns >= 0 and report.state in ALIVE
        if passed_ns <= 0:
            return
        if same_run:
            share = -math.expm1(-passed_ns / constant_ns)
            self.cpus += share * (used_ns / passed_ns - self.cpus)
            self.memory_bytes += share * (report.memory_used_bytes - self.memory_bytes)
            self.weight += share * (1.0 - self.weight)
            self.seen_ns += passed_ns
        self.node, self.generation, self.at_ns, self.cpu_time_ns = node, report.generation, at_ns, report.cpu_time_ns


class Loads:
    """The load of every guest that a beat told of, by the guest's UUID: it goes on when a guest moves or is renamed."""

    def __init__(self) -> None:
        self._means: dict[str, _Mean] = {}
        self._enough_ns = ENOUGH_NS

    def clear(self) -> None:
        """Forget everything."""
        self._means.clear()

    def heard(self, node: str, reports: Iterable[GuestReport], at_ns: int, constant_ns: int) -> None:
        """Take in what a node tells of its guests.

        at_ns: when it was heard, by the clock of all looks. constant_ns: the time constant. A node may be looked at as
        often or as seldom as one likes; a copy without a definition (no UUID) is nobody's.
        """
        self._enough_ns = enough_ns(constant_ns)
        for report in reports:
            if not report.uid:
                continue
            mean = self._means.get(report.uid)
            if mean is None:
                self._means[report.uid] = _Mean(node, report.generation, at_ns, report.cpu_time_ns)
            elif report.generation >= mean.generation:  # what is left of an earlier run elsewhere is not the guest
                mean.take(node, report, at_ns, constant_ns)

    def forget(self, now_ns: int, constant_ns: int) -> None:
        """Forget the guests of which no beat has told for long."""
        before_ns = now_ns - max(KEPT_CONSTANTS * constant_ns, ENOUGH_NS)
        for uid in [uid for uid, mean in self._means.items() if mean.at_ns < before_ns]:
            del self._means[uid]

    def known(self, uid: str) -> bool:
        """Return whether a guest was seen for long enough."""
        mean = self._means.get(uid)
        return mean is not None and mean.seen_ns >= self._enough_ns

    def of(self, guest: Guest, cpus: int, memory_bytes: int) -> Load:
        """Return the load of a guest with so many CPUs and so much memory: nothing of one that is not to run."""
        if guest.spec.power not in TO_RUN or guest.spec.template:
            return Load()
        mean = self._means.get(guest.meta.uid)
        if mean is None or mean.seen_ns < self._enough_ns:
            return RESERVED
        part = _part(mean.cpus, mean.weight * cpus), _part(mean.memory_bytes, mean.weight * memory_bytes)
        return Load(*part)


def _part(used: float, of: float) -> float:
    return min(1.0, max(0.0, used / of)) if of > 0 else 0.0
