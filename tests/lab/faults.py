"""What befalls managers: their process is killed, or their host loses its power; leaders and followers by turns."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from gugus.cluster.v1.cluster_pb2 import ClusterStatus

from lab.api import Lab
from lab.cluster import operator_config
from lab.operator import Operator

UNIT = "gugus-manager"
WHOLE_SECONDS = 90.0
DARK_SECONDS = 1.0
"""How long a host stays without power: shorter than it takes others to do without it, now and then."""
CALM_SECONDS = 0.5
LAG = 50
"""Entries that a member may lack when it counts as healthy again; under load it always lacks some."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: what befell whom, when (time.monotonic), and how long it took until all was well again."""

    at_s: float
    node: str
    led: bool
    power: bool
    healed_s: float


def is_whole(status: ClusterStatus) -> bool:
    """Whether every voter takes part and answers, and one of them leads and acts by its own word: the lease's may be out of date."""
    acting = [voter.name for voter in status.voters if voter.status.acting]
    return (
        len(status.voters) > 2
        and bool(status.leader)
        and acting == [status.leader]
        and all(v.connected and v.HasField("status") and v.lag_entries <= LAG for v in status.voters)
    )


class Faults:
    """Faults of the voters of a lab, one after the other; for a thread of its own."""

    def __init__(self, lab: Lab, begun: Callable[[int], None]) -> None:
        self._lab, self._begun = lab, begun
        self._last: dict[str, int] = {}
        self._over = threading.Event()

    def end(self) -> None:
        """Do no harm any more after the round under way."""
        self._over.set()

    def run(self, rounds: int) -> list[Fault]:
        """Do harm so many times, each time when all is well. `begun` is told the number of each round."""
        found = []
        with Operator(operator_config(self._lab.plan)) as operator:
            operator.wait("all managers to be well", lambda: is_whole(operator.status()), WHOLE_SECONDS)
            for number in range(rounds):
                if self._over.is_set():
                    break
                self._begun(number)
                time.sleep(CALM_SECONDS)
                found.append(self._one(operator, number))
        return found

    def _one(self, operator: Operator, number: int) -> Fault:
        led, power = number % 2 == 0, number % 4 > 1
        leader = operator.wait("a leader", lambda: operator.status().leader, WHOLE_SECONDS)
        others = [node.name for node in self._lab.plan.nodes() if node.name != leader]
        node = leader if led else min(others, key=lambda name: self._last.get(name, -1))
        self._last[node] = number
        before = self._pid(node)
        at_s = time.monotonic()
        if power:
            self._lab.power_off(node)
            time.sleep(DARK_SECONDS)
            self._lab.power_on(node)
        else:
            self._lab.exec(node, ["systemctl", "kill", "--kill-who=main", "--signal=SIGKILL", UNIT], check=True)
            operator.wait(f"{UNIT} on {node} to run again", lambda: self._pid(node) not in ("0", before), WHOLE_SECONDS)
        operator.wait("all managers to be well again", lambda: is_whole(operator.status()), WHOLE_SECONDS)
        return Fault(at_s, node, led, power, time.monotonic() - at_s)

    def _pid(self, node: str) -> str:
        return self._lab.exec(
            node, ["systemctl", "show", "--property=MainPID", "--value", UNIT], check=True
        ).stdout.strip()
