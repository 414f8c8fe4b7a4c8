"""The cluster that the long run is on, what is seen of it, and what must hold of it after each round."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING

from lab import demo_guests
from lab.api import Lab
from lab.demo_timeline import FENCED, at_s
from lab.images import two_copies
from lab.judge import Copy, Judge, Look
from lab.operator import Operator
from tests.lab.faults import is_whole

MACHINES, CONTAINERS = ("vm1", "vm2"), ("ct1", "ct2", "ct3")
GUESTS = (*MACHINES, *CONTAINERS)

BEFORE_SECONDS = 180.0
WATCHDOG_RESET = "watchdog-reset"


class Violated(Exception):
    """Something that must always hold does not; the text says what."""


@dataclass(frozen=True)
class Before:
    """What was before a round: when it began (wall clock), which process each guest was, and how much each had written to its disk."""

    at_s: float
    copies: Mapping[str, Copy]
    beats: Mapping[str, int]


@dataclass
class Ground:
    """A lab with its cluster and a judge. guests: those under HA that it is about."""

    lab: Lab
    operator: Operator
    judge: Judge
    guests: tuple[str, ...] = GUESTS

    @property
    def names(self) -> list[str]:
        """All hosts."""
        return [node.name for node in self.lab.plan.nodes()]

    def prepare(self) -> None:
        """Make what guests need, and the guests; those of an earlier run are used again."""
        demo_guests.prepare(self.operator, self.lab.plan)
        there = {guest.meta.name for guest in self.operator.guests()}
        for name in self.guests:
            if name not in there:
                spec = demo_guests.vm_spec() if name in MACHINES else demo_guests.container_spec()
                self.operator.do(self.operator.gugus.guests.create(name, spec))

    def wait_well(self, seconds: float) -> None:
        """Wait until all hosts and managers are well and every guest runs. Raises Violated."""
        for what, holds in (
            ("every host to be online", lambda: {*self.names} <= self.operator.online()),
            ("every manager to take part", lambda: is_whole(self.operator.status())),
            ("every guest to run", lambda: not self.not_running()),
        ):
            self.wait(what, holds, seconds)

    def before(self) -> Before:
        """Look at everything before a round."""
        self.wait("every guest to write to its disk", lambda: all(map(self._beats, self.guests)), BEFORE_SECONDS)
        copies = {copy.guest: copy for copy in self.judge.now.copies}
        return Before(time.time(), copies, {name: self._beats(name) for name in self.guests})

    def not_running(self, now: Look | None = None) -> list[str]:
        """The guests of which the cluster or the judge (`now`, if it has looked) does not say that they run, in the same place."""
        now = now or self.judge.now
        found = []
        for guest in self.operator.guests():
            nodes = [copy.node for copy in now.of(guest.meta.name)]
            if guest.status.phase != GUEST_PHASE_RUNNING or nodes != [guest.status.node]:
                found.append(guest.meta.name)
        return sorted(found)

    def wait_anew(self, before: Before, names: Sequence[str], seconds: float) -> None:
        """Wait until these guests run again, each as another process than before. Raises Violated."""

        def anew() -> bool:
            now = self.judge.now
            missing = self.not_running(now)
            same = {copy.guest for copy in now.copies & {*before.copies.values()}}
            return not {*names} & {*missing, *same}

        self.wait(f"{', '.join(names)} to run again", anew, seconds)

    def wait(self, what: str, holds: object, seconds: float) -> None:
        """Wait until something holds. Raises Violated."""
        try:
            self.operator.wait(what, holds, seconds)  # type: ignore[arg-type]
        except TimeoutError as error:
            raise Violated(str(error)) from None

    def _beats(self, name: str) -> int:
        beats = demo_guests.beats(self.lab.plan, self.operator.guest(name))
        return max((beat.seq for beat in beats), default=0)

    # What must hold.

    def check_one_copy(self, since_s: float) -> None:
        """No guest ever ran twice, by the hosts' processes and by its disk. Raises Violated."""
        for look in self.judge.looks:
            if look.at_s >= since_s and look.twice:
                raise Violated(f"two copies of one guest ran at {look.at_s}: {sorted(look.copies)}")
        for name in self.guests:
            if two_copies(demo_guests.beats(self.lab.plan, self.operator.guest(name))):
                raise Violated(f"two copies of {name} wrote to its disk at the same time")

    def check_nobody_else(self, before: Before, fenced: Iterable[str], reset: Iterable[str]) -> None:
        """Only these hosts were fenced, only these reset by their watchdogs, and no guest of others ran anew. Raises Violated."""
        since = [event for event in self.operator.events(1000) if at_s(event) >= before.at_s]
        gone = {event.about.removeprefix("node/") for event in since if event.reason == FENCED}
        if wrong := gone - {*fenced}:
            raise Violated(f"fenced without a reason: {', '.join(sorted(wrong))}")
        shot = {
            one["node"] for one in self.lab.events() if one["event"] == WATCHDOG_RESET and one["time"] >= before.at_s
        }
        if wrong := shot - {*reset}:
            raise Violated(f"reset by their watchdogs without a reason: {', '.join(sorted(wrong))}")
        now = {copy.guest: copy for copy in self.judge.now.copies}
        for guest, copy in before.copies.items():
            if copy.node not in {*fenced} and now.get(guest) != copy:
                raise Violated(
                    f"{guest} ran on {copy.node}, which nothing befell, and is another process now: {copy}, {now.get(guest)}"
                )

    def check_writes(self, before: Before, seconds: float) -> None:
        """Every guest wrote to its disk since. Raises Violated."""
        self.wait(
            "every guest to write again", lambda: all(self._beats(n) > before.beats[n] for n in self.guests), seconds
        )
