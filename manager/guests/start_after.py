"""Which guests start after which others (BootSpec.after): what is wrong with it when it is saved, and who waits for whom now. Pure."""

from collections.abc import Iterator, Mapping

from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_ERROR,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_UNKNOWN,
    HA_STATE_ERROR,
    HA_STATE_RELOCATE,
    HA_STATE_STARTED,
    Guest,
)
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node

from common import validate
from common.errors import GugusError, invalid
from common.waves import circle
from manager.guests.boot_order import WANTED, booted
from manager.guests.known import Known

MOST_AFTER = 32
"""Guests that one can name; as cluster.v1.BootSpec says."""

WAIT_LIMIT_S = 300.0
"""Longest wait for all of them together: a late start is better than none, and whoever is not up by then needs a person."""

TRIED_AGAIN = (HA_STATE_STARTED, HA_STATE_RELOCATE)
"""HA states in which a guest that failed is tried again."""


def faults(guest: Guest, known: Known) -> Iterator[GugusError]:
    """Everything in `boot.after`. A name that no guest has is none: guests are made in any order."""
    names = guest.spec.boot.after
    if len(names) > MOST_AFTER:
        yield invalid("spec.boot.after", f"has {len(names)} names; at most {MOST_AFTER}.")
    for index, name in enumerate(names):
        if message := validate.name(name):
            yield invalid(f"spec.boot.after[{index}]", f"{message}.")
        elif name in names[:index]:
            yield invalid(f"spec.boot.after[{index}]", f'"{name}" is there twice.')
    after = {other.meta.name: other.spec.boot.after for other in known.guests} | {guest.meta.name: names}
    if way := circle(guest.meta.name, after):
        yield invalid("spec.boot.after", f"leads in a circle: {' after '.join(way)}.", remedy="Take one of these out.")


def awaited(
    guest: Guest, guests: Mapping[str, Guest], nodes: Mapping[str, Node], running_for_s: Mapping[str, float]
) -> str:
    """Return for whom a guest is to wait before it is started, in words; "" when for nobody.

    running_for_s: for how many seconds guests have been running.
    """
    for name in guest.spec.boot.after:
        other = guests.get(name)
        if other is None or not _on_its_way(other):
            continue
        if not _runs(other, nodes.get(other.status.node)):
            return f"it starts after {name}, which does not run yet"
        if running_for_s.get(name, 0.0) < other.spec.boot.delay_s:
            return f"it starts after {name}, which is to have run for {other.spec.boot.delay_s} s"
    return ""


def follows(guest: Guest, other: Guest, guests: Mapping[str, Guest]) -> bool:
    """Return whether a guest starts after another one, directly or through others."""
    after = {name: one.spec.boot.after for name, one in guests.items()}
    left, seen = list(guest.spec.boot.after), set[str]()
    while left:
        name = left.pop()
        if name == other.meta.name:
            return True
        if name not in seen:
            seen.add(name)
            left.extend(after.get(name, ()))
    return False


def _on_its_way(other: Guest) -> bool:
    """Return whether a guest runs or is going to by itself, so that others may wait for it."""
    status = other.status
    if other.meta.deleting or other.spec.template or other.spec.power not in WANTED:
        return False
    if status.phase == GUEST_PHASE_RUNNING:
        return True
    if status.HasField("lock") or status.phase == GUEST_PHASE_UNKNOWN or status.ha.state == HA_STATE_ERROR:
        return False
    if status.HasField("preempted"):
        return False  # it may have no room for ever
    return status.phase != GUEST_PHASE_ERROR or status.ha.state in TRIED_AGAIN


def _runs(other: Guest, node: Node | None) -> bool:
    """Return whether a guest runs, as far as that is known: what is stored of one whose host is silent, or booted since, is old."""
    if node is None or node.status.state != NODE_STATE_ONLINE or booted(other, node.status.boot_id):
        return False
    return other.status.phase == GUEST_PHASE_RUNNING
