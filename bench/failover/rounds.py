"""Rounds: a guest under HA runs on a host, the host loses its power, and somebody else than the cluster times what follows."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING

from bench.failover.bed import WAIT_SECONDS, Bed
from bench.failover.figures import Limits, Round, Turns, summary
from common.errors import GugusError
from lab import demo_guests
from lab.api import LabError
from lab.demo_timeline import at_s, timeline
from lab.fencing import give_devices, take_devices
from lab.images import writers

GUEST = demo_guests.VM
Tell = Callable[[dict[str, Any]], None]
"""Takes the figures so far: what is measured is not lost by what comes after it."""

MANAGER = "gugus-manager.service"
TROUBLE = (LabError, GugusError, TimeoutError)
DEVICE_CUTS = 4
"""The devices of one host are used five times within ten minutes; a manager that acts anew has seen none of them (docs/fencing.md)."""


@dataclass(frozen=True, slots=True)
class Section:
    """Hosts with fence devices or without, the acting manager's host or another, and what is allowed."""

    device: bool
    acting: bool
    limits: Limits


#: The limits of the first two are those of the issue that asked for it.
SECTIONS = {
    "lease": Section(device=False, acting=False, limits=Limits(14.0, 18.0)),
    "device": Section(device=True, acting=False, limits=Limits(5.0)),
    "acting-lease": Section(device=False, acting=True, limits=Limits()),
    "acting-device": Section(device=True, acting=True, limits=Limits()),
}


def measure(name: str, bed: Bed, rounds: int, tell: Tell) -> None:
    """Play the rounds of a section, telling its figures after each; one that comes to no end is told, and the next one is played."""
    section = SECTIONS[name]
    (give_devices if section.device else take_devices)(bed.operator, bed.lab.plan)
    found: list[Round] = []
    failed: list[str] = []
    turns = Turns()
    with ThreadPoolExecutor(1) as background:
        for number in range(rounds):
            try:
                if section.device and not section.acting and number and number % _rounds_of_one(bed) == 0:
                    another_acts(bed)
                one = None
                while one is None:
                    one = play(bed, section.acting, turns, background)
                found.append(one)
                print(f"{name} {number + 1}/{rounds}: {found[-1]}", file=sys.stderr, flush=True)
            except TROUBLE as error:
                failed.append(f"round {number + 1}: {error}")
                print(f"{name} {failed[-1]}", file=sys.stderr, flush=True)
                bed.mend((GUEST,))
            tell(summary(found, failed, section.limits))
    demo_guests.remove_guests(bed.operator, (GUEST,))
    bed.wait_whole()


def _rounds_of_one(bed: Bed) -> int:
    """How many rounds one manager may act, so that no host counts as one that flaps."""
    return DEVICE_CUTS * (len(bed.names) - 1)


def another_acts(bed: Bed) -> None:
    """Have a manager act that has not seen any host fenced."""
    bed.wait_whole()
    epoch = bed.operator.status().epoch
    bed.lab.exec(bed.acting(), ["systemctl", "restart", MANAGER], check=True)

    def acts() -> bool:
        status = bed.operator.status()
        return bool(status.acting) and status.epoch > epoch

    bed.operator.wait("a manager to act anew", acts, WAIT_SECONDS)


def play(bed: Bed, acting: bool, turns: Turns, background: ThreadPoolExecutor) -> Round | None:
    """Play one round on the acting manager's host, or on one that is not; None when another manager began to act before the cut.

    The host gets its power back in the background, while what happened is looked at.
    """
    operator, acts = bed.operator, bed.acting()
    victim = acts if acting else turns.next([node for node in bed.names if node != acts])
    began_s = time.time()
    demo_guests.remove_guests(operator, (GUEST,))
    operator.do(operator.gugus.guests.create(GUEST, demo_guests.vm_spec(victim)))
    operator.wait(f"{GUEST} to run on {victim}", lambda: _runs_on(bed, victim), WAIT_SECONDS)
    operator.wait(f"{GUEST} to write to its disk", lambda: bed.writes(GUEST), WAIT_SECONDS)
    bed.wait_whole()
    if bed.acting() != acts:
        return None
    cut_s = time.time()
    bed.lab.power_off(victim)
    others = [name for name in bed.names if name != victim]
    back: Future[object] | None = None
    try:
        came_s = operator.wait(f"{GUEST} to run elsewhere", lambda: _appeared(bed, others, cut_s), WAIT_SECONDS)
        back = background.submit(bed.lab.power_on, victim)
        proof = operator.wait("the proof to be told", lambda: _proof(bed, victim, cut_s), WAIT_SECONDS)
        told = timeline(victim, cut_s, operator.events(), {GUEST: came_s}, {})
        operator.wait(f"{GUEST} to write again", lambda: len(writers(bed.writes(GUEST))) > 1, WAIT_SECONDS)
    finally:
        (back or background.submit(bed.lab.power_on, victim)).result()
    bed.wait_whole()
    copies = bed.copies(GUEST, began_s)
    return Round(victim, told.detected_s, told.fenced_s, round(came_s - cut_s, 2), copies, proof)


def domain(bed: Bed) -> str:
    """Return the XML that libvirt has of the guest while it runs."""
    demo_guests.remove_guests(bed.operator, (GUEST,))
    node = bed.names[0]
    bed.operator.do(bed.operator.gugus.guests.create(GUEST, demo_guests.vm_spec(node)))
    try:
        bed.operator.wait(f"{GUEST} to run on {node}", lambda: _runs_on(bed, node), WAIT_SECONDS)
        return bed.lab.exec(node, ["virsh", "dumpxml", "--migratable", GUEST], check=True).stdout
    finally:
        demo_guests.remove_guests(bed.operator, (GUEST,))


def _runs_on(bed: Bed, node: str) -> bool:
    return bed.operator.guest(GUEST).status.phase == GUEST_PHASE_RUNNING and {
        copy.node for copy in bed.judge.now.of(GUEST)
    } == {node}


def _appeared(bed: Bed, nodes: Sequence[str], after_s: float) -> float | None:
    return min((s for node in nodes if (s := bed.judge.appeared(GUEST, node, after_s)) is not None), default=None)


def _proof(bed: Bed, node: str, since_s: float) -> str:
    for event in bed.operator.events():
        if event.about == f"node/{node}" and event.reason == "NODE_FENCED" and at_s(event) >= since_s:
            return event.message
    return ""
