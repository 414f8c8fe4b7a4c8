"""Tightening: under the policy "pack", empty hosts again that a filling need not have begun.

Invariant: only guests of the filling move, and only to hosts that are in use; no guest loses its place.
"""

from collections.abc import Sequence

import numpy as np

from planner.fill import in_order
from planner.fleet import Fleet
from planner.place import NOWHERE, choose
from planner.scores import POLICIES
from planner.settings import Policy
from planner.types import GuestRequest

HOSTS_TRIED = 256
"""Hosts that are tried to be emptied."""


def tighten(fleet: Fleet, guests: Sequence[GuestRequest]) -> None:
    """Move guests of a filling off the emptiest hosts as long as that empties them."""
    if fleet.settings.policy is not Policy.PACK:
        return
    own = {guest.name for guest in guests}
    tried: set[int] = set()
    for _ in range(HOSTS_TRIED):
        begun = [i for i in range(len(fleet.nodes)) if fleet.on[i] and fleet.counts[i] == len(fleet.on[i])]
        candidates = [i for i in begun if i not in tried and own.issuperset(fleet.on[i])]
        if not candidates:
            return
        node = min(candidates, key=lambda i: (sum(fleet.size(g) for g in fleet.guests_on(i)), i))
        tried.add(node)
        if _empty(fleet, node):
            tried = set()


def _empty(fleet: Fleet, node: int) -> bool:
    """Move all guests of a node to others in use, or none of them."""
    in_use = fleet.counts > 0
    in_use[node] = False
    moved = list[GuestRequest]()
    for guest in in_order(fleet, fleet.guests_on(node)):
        fleet.take(guest)
        target = choose(fleet, guest, POLICIES[Policy.PACK], np.asarray(in_use))
        if target == NOWHERE:
            fleet.put(guest, node)
            for one in moved:
                fleet.move(one, node)
            return False
        fleet.put(guest, target)
        moved.append(guest)
    return True
