"""What all sections of ours share: the lab, the cluster in it, its judge, and the way back to a whole cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab import cluster, demo_guests
from lab.api import Lab
from lab.images import two_copies
from lab.judge import Judge
from lab.operator import Operator

WAIT_SECONDS = 90.0


@dataclass(frozen=True)
class Bed:
    """A lab with a cluster, and who watches it."""

    lab: Lab
    operator: Operator
    judge: Judge

    @property
    def names(self) -> list[str]:
        """All hosts."""
        return [node.name for node in self.lab.plan.nodes()]

    def acting(self) -> str:
        """The host whose manager acts."""
        return self.operator.wait("a manager to act", lambda: self.operator.status().acting, WAIT_SECONDS)

    def wait_whole(self) -> None:
        """Wait until every host holds its lease."""
        self.operator.wait("every host to be online", lambda: {*self.names} <= self.operator.online(), WAIT_SECONDS)

    def mend(self, guests: tuple[str, ...]) -> None:
        """After a round that went wrong: every host on and in the cluster, and none of these guests."""
        self.lab.up()
        cluster.form(self.lab)
        demo_guests.remove_guests(self.operator, guests)

    def writes(self, guest: str) -> list[Any]:
        """What a guest wrote to its disk."""
        return list(demo_guests.beats(self.lab.plan, self.operator.guest(guest)))

    def copies(self, guest: str, since_s: float) -> int:
        """The most copies of a guest that ran at once since a moment (wall clock), by its host's processes and by its disk."""
        ran = max((len(look.of(guest)) for look in self.judge.looks if look.at_s >= since_s), default=0)
        return max(ran, 2 if two_copies(self.writes(guest)) else 0)
