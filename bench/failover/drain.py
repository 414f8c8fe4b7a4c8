"""A planned drain: a host with four machines is emptied while they run, and nobody misses one of them."""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, Guest

from bench.failover.bed import WAIT_SECONDS, Bed
from bench.failover.figures import Turns
from bench.failover.rounds import TROUBLE, Tell
from bench.migrate import pings
from lab import demo_guests
from lab.images import writers

GUESTS = ("vm1", "vm2", "vm3", "vm4")
"""The first two are under HA, the others are not: a drain moves all."""

BRIDGE = "gg-lan"
PERIOD = 0.1
"""Seconds between two pings of a guest, from each host."""
AROUND_SECONDS = 2.0
"""Pinged before and after."""
MOST_SILENCE_S = 3.0
"""A machine that answers within this was not lost, and not started anew either: its boot takes longer."""


@dataclass(frozen=True, slots=True)
class Drain:
    """One drain. silences_s: the longest time in which each guest answered nobody. lost: what befell a guest that it must not, in words."""

    node: str
    total_s: float
    silences_s: dict[str, float]
    copies: int
    lost: list[str]


def measure(bed: Bed, rounds: int, tell: Tell) -> None:
    """Drain so many hosts, one after the other, telling the figures after each."""
    found: list[Drain] = []
    failed: list[str] = []
    turns = Turns()
    for number in range(rounds):
        try:
            found.append(_one(bed, turns.next(bed.names)))
            print(f"drain {number + 1}/{rounds}: {found[-1]}", file=sys.stderr, flush=True)
        except TROUBLE as error:
            failed.append(f"round {number + 1}: {error}")
            print(f"drain {failed[-1]}", file=sys.stderr, flush=True)
            bed.mend(GUESTS)
        for node in bed.names:
            bed.operator.run(bed.operator.gugus.nodes.cordon(node, False))
        tell(summary(found, failed))


def summary(found: list[Drain], failed: list[str]) -> dict[str, Any]:
    """Return the figures of all drains. Pure."""
    times = [one.total_s for one in found]
    lost = [text for one in found for text in one.lost]
    return {
        "rounds": len(found),
        "failed": failed,
        "guests": len(GUESTS),
        "p50_s": round(statistics.median(times), 2) if times else None,
        "max_s": max(times, default=None),
        "longest_silence_s": max((s for one in found for s in one.silences_s.values()), default=None),
        "lost": lost,
        "max_copies": max((one.copies for one in found), default=0),
        "each_s": times,
        "kept": bool(found) and not failed and not lost,
    }


def _one(bed: Bed, node: str) -> Drain:
    operator = bed.operator
    demo_guests.remove_guests(operator, GUESTS)
    bed.wait_whole()
    began_s = time.time()
    for number, name in enumerate(GUESTS):
        operator.do(operator.gugus.guests.create(name, demo_guests.vm_spec(node, ha=number < 2)))
    before = {
        name: operator.wait(f"{name} to run and write", partial(_up, bed, name, node), WAIT_SECONDS) for name in GUESTS
    }
    boots = {name: writers(bed.writes(name)) for name in GUESTS}
    with ExitStack() as stack:
        heard = {name: stack.enter_context(_pings(bed, before[name])) for name in GUESTS}
        time.sleep(AROUND_SECONDS)
        asked = time.monotonic()
        operator.do(operator.gugus.nodes.drain(node))
        total_s = round(time.monotonic() - asked, 2)
        left = sorted(copy.guest for copy in bed.judge.now.copies if copy.node == node)
        time.sleep(AROUND_SECONDS)
        ended_s = time.time()
    silences = {name: _silence(pinged, ended_s) for name, pinged in heard.items()}
    lost = [f"{name} still runs on {node} when its drain has ended" for name in left]
    lost += [f"{name} answered nobody for {s} s" for name, s in silences.items() if s > MOST_SILENCE_S]
    for name in GUESTS:
        after = operator.guest(name)
        if after.status.phase != GUEST_PHASE_RUNNING or after.status.node == node:
            lost.append(f"{name} does not run elsewhere")
        if after.meta.generation <= before[name].meta.generation:
            lost.append(f"{name} was not given to another host: its generation is {after.meta.generation} as before")
        operator.wait(f"{name} to write again", partial(_wrote, bed, name, ended_s), WAIT_SECONDS)
        if writers(bed.writes(name)) != boots[name]:
            lost.append(f"{name} was started anew")
    return Drain(node, total_s, silences, max(bed.copies(name, began_s) for name in GUESTS), lost)


def _up(bed: Bed, name: str, node: str) -> Guest | None:
    """Return a guest that runs on a host, has an address and writes to its disk."""
    guest = bed.operator.guest(name)
    runs = guest.status.phase == GUEST_PHASE_RUNNING and {copy.node for copy in bed.judge.now.of(name)} == {node}
    return guest if runs and guest.status.addresses and bed.writes(name) else None


def _wrote(bed: Bed, name: str, since_s: float) -> bool:
    return any(beat.unix_time_s > since_s for beat in bed.writes(name))


def _pings(bed: Bed, guest: Guest) -> pings.Pings:
    address = next(one.partition("/")[0] for one in guest.status.addresses if ":" not in one)
    return pings.Pings(bed.lab, bed.names, BRIDGE, pings.Guest(address, guest.spec.nics[0].mac), PERIOD)


def _silence(pinged: pings.Pings, ended_s: float) -> float:
    """Return the longest time in which a guest answered on no host, until the end of the pings."""
    times = sorted([*(at_s for heard in pinged.answers().values() for at_s in heard), ended_s])
    return round(max((later - one for one, later in pairwise(times)), default=float("inf")), 2)
