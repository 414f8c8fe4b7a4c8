"""One round: a guest under HA runs on a host, the host loses its power, and somebody else than the cluster times what follows."""

from __future__ import annotations

import time
from dataclasses import dataclass

from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE

from lab import demo_guests
from lab.api import Lab
from lab.demo_timeline import timeline
from lab.judge import Judge
from lab.operator import Operator

GUEST = demo_guests.VM
WAIT_SECONDS = 90.0
SETTLE_SECONDS = 2.0
"""Between the guest's start and the cut: its host has told of it by then."""


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds from the cut until the host was suspected, proven dead, and the guest's process was there elsewhere."""

    node: str
    suspect_s: float | None
    fenced_s: float | None
    running_s: float
    proof: str


def play(lab: Lab, operator: Operator, judge: Judge, victim: str) -> Round:
    """Play one round, and bring the host back."""
    demo_guests.remove_guests(operator, (GUEST,))
    operator.do(operator.gugus.guests.create(GUEST, demo_guests.vm_spec(victim)))
    operator.wait(f"{GUEST} to run on {victim}", lambda: _runs_on(operator, judge, victim), WAIT_SECONDS)
    time.sleep(SETTLE_SECONDS)
    cut_s = time.time()
    lab.power_off(victim)
    others = [node.name for node in lab.plan.nodes() if node.name != victim]

    def appeared() -> float | None:
        return min((s for node in others if (s := judge.appeared(GUEST, node, cut_s)) is not None), default=None)

    came_s = operator.wait(f"{GUEST} to run elsewhere", appeared, WAIT_SECONDS)
    proof = operator.wait("the proof to be told", lambda: _proof(operator, victim, cut_s), WAIT_SECONDS)
    told = timeline(victim, cut_s, operator.events(), {GUEST: came_s}, {})
    lab.power_on(victim)
    operator.wait(f"{victim} to be back", lambda: operator.node(victim).status.state == NODE_STATE_ONLINE, WAIT_SECONDS)
    return Round(victim, told.detected_s, told.fenced_s, round(came_s - cut_s, 2), proof)


def _runs_on(operator: Operator, judge: Judge, node: str) -> bool:
    guest = operator.guest(GUEST)
    copies = judge.now.of(GUEST)
    return guest.status.phase == GUEST_PHASE_RUNNING and {copy.node for copy in copies} == {node}


def _proof(operator: Operator, node: str, since_s: float) -> str:
    for event in operator.events():
        at_s = event.at.seconds + event.at.nanos / 1e9
        if event.about == f"node/{node}" and event.reason == "NODE_FENCED" and at_s >= since_s:
            return event.message
    return ""
