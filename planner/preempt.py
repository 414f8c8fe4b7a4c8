"""Preemption: which less important guests are stopped so that a more important one has a place.

Invariant: a victim's priority is lower than that of the guest it makes room for; a node's fewest and least important
guests that are enough are chosen, of equals those that do not run, and of all nodes the one where the most important
victim matters least.
"""

import numpy as np

from planner.filters import fits, fits_if_empty
from planner.fleet import Fleet
from planner.plans import Eviction
from planner.types import GuestRequest


def preempt(fleet: Fleet, guest: GuestRequest) -> list[Eviction]:
    """Make room for a guest and give it its node; return who was stopped for it, nothing when that does not help."""
    possible = fits_if_empty(fleet, guest)
    best: tuple[tuple[int, int, int, float, int], list[GuestRequest]] | None = None
    for node in (int(i) for i in np.flatnonzero(possible)):
        victims = _victims(fleet, guest, node)
        if victims:
            busy = sum(not v.idle for v in victims)
            cost = (max(v.priority for v in victims), busy, len(victims), sum(fleet.size(v) for v in victims), node)
            if best is None or cost < best[0]:
                best = cost, victims
    if best is None:
        return []
    node = best[0][4]
    for victim in best[1]:
        fleet.take(victim)
    if not fits(fleet, guest)[node]:
        for victim in best[1]:
            fleet.put(victim, node)
        return []
    fleet.put(guest, node)
    name = fleet.names[node]
    return [
        Eviction(
            victim.name,
            name,
            guest.name,
            f"{guest.name} (priority {guest.priority}) needs its room on {name}; {victim.name} has priority {victim.priority}.",
        )
        for victim in best[1]
    ]


def _victims(fleet: Fleet, guest: GuestRequest, node: int) -> list[GuestRequest]:
    """Return the guests of a node that would have to go, nothing when all that may go are not enough."""
    lesser = sorted(
        (one for one in fleet.guests_on(node) if one.priority < guest.priority),
        key=lambda one: (one.priority, not one.idle, -fleet.size(one), one.name),
    )
    needs = fleet.needs(guest)
    lacking = np.where(needs > 0, needs - fleet.free[:, node], 0)
    chosen = []
    for one in lesser:
        if (lacking <= 0).all():
            break
        if (fleet.needs(one)[lacking > 0] > 0).any():
            chosen.append(one)
            lacking = lacking - fleet.needs(one)
    if (lacking > 0).any():
        return []
    for one in sorted(chosen, key=lambda v: (-v.priority, v.idle, -fleet.size(v), v.name)):
        if (lacking + fleet.needs(one) <= 0).all():  # the others are enough
            chosen.remove(one)
            lacking = lacking + fleet.needs(one)
    return chosen
