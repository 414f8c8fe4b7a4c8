"""Places for several guests at once, each with its decision: what recovery does with the guests of lost hosts.

Invariant: the same guests and fleet give the same decisions; the work is that of one filling (planner.fill) and one look at all nodes
for each guest.
"""

from collections.abc import Sequence
from dataclasses import replace

from planner.fill import fill, in_order
from planner.fleet import Fleet
from planner.place import decide
from planner.scores import weights_of
from planner.types import Decision, GuestRequest


def settle(fleet: Fleet, guests: Sequence[GuestRequest], most: int = 0) -> dict[str, Decision]:
    """Give guests that have no place the nodes that suit all of them best together, and return the decision about each.

    Those that find none have none afterwards. most: see `decide`.
    """
    weights = weights_of(fleet.settings)
    fill(fleet, guests)
    found = {guest.name: fleet.take(guest) for guest in guests if guest.name in fleet.where}
    decisions = {}
    for guest in sorted(in_order(fleet, guests), key=lambda one: one.name not in found):  # who is left sees all others
        decision = decide(fleet, guest, weights, most)
        node = fleet.names[found[guest.name]] if guest.name in found else decision.node
        if node != decision.node:
            told = f"{node} has room for it, and so all of {len(guests)} guests that are placed together fit best."
            decision = replace(decision, node=node, reason=told)
        if node:
            fleet.put(guest, fleet.index[node])
        decisions[guest.name] = decision
    return decisions
