"""Tightening: under the policy "pack", place guests on as few hosts as can be found.

First as many hosts are tried as could be enough, the roomiest first, then one more; then hosts are emptied one by one.

Invariant: only guests of the filling move; hosts with other guests are in use anyway; no guest loses its place; the
work is bounded by a number of guests placed, never by time.
"""

from collections.abc import Sequence
from itertools import combinations, islice

import numpy as np

from planner.fill import fill
from planner.fleet import Fleet
from planner.rulebook import Mask
from planner.settings import Policy
from planner.types import GuestRequest

PLACEMENTS = 12_000
"""Guests that are placed in all tries together."""

CHOICES = 100
"""Choices of as many hosts that are looked at."""


def tighten(fleet: Fleet, guests: Sequence[GuestRequest]) -> None:
    """Place the guests of a filling anew on fewer hosts, if that can be done."""
    if fleet.settings.policy is Policy.PACK and guests:
        _Tightening(fleet, guests).run()


class _Tightening:
    def __init__(self, fleet: Fleet, guests: Sequence[GuestRequest]) -> None:
        self._fleet = fleet
        self._guests = [guest for guest in guests if guest.name in fleet.where]
        self._tries_left = PLACEMENTS // max(1, len(self._guests))
        self._own = {guest.name for guest in self._guests}

    def run(self) -> None:
        if self._tries_left < 1:
            return
        self._take_the_roomiest()
        while any(self._fit_into(self._without(node)) for node in self._emptiest_first()):
            continue

    def _take_the_roomiest(self) -> None:
        """Use few hosts, the roomiest first: as many as could be enough at least, and more as long as they are too few."""
        fleet = self._fleet
        taken = self._taken()
        others = fleet.counts > np.bincount(list(self._places().values()), minlength=len(fleet.nodes))
        room = (np.maximum(fleet.total[:2], 0) / np.maximum(fleet.total[:2].max(axis=1, keepdims=True), 1)).sum(axis=0)
        order = [int(i) for i in np.argsort(-room, kind="stable") if fleet.open[i] and not others[i]]
        for count in range(int((taken & ~others).sum())):
            for some in islice(combinations(order, count), CHOICES):
                chosen = others.copy()
                chosen[list(some)] = True
                if self._fit_into(chosen):
                    return

    def _could_hold(self, chosen: Mask) -> bool:
        needed = sum(
            (self._fleet.needs(guest) for guest in self._guests), np.zeros(len(self._fleet.free), dtype=np.int64)
        )
        given = sum(
            (self._fleet.needs(g) * bool(chosen[self._fleet.where[g.name]]) for g in self._guests),
            np.zeros(len(self._fleet.free), dtype=np.int64),
        )
        room = np.minimum(np.maximum(self._fleet.free[:, chosen], 0), 1 << 50).sum(axis=1)
        return bool((room + given >= needed).all())

    def _fit_into(self, chosen: Mask) -> bool:
        """Place all guests on chosen hosts; return whether that worked, else everything is as it was."""
        if self._tries_left < 1 or not self._could_hold(chosen):
            return False
        self._tries_left -= 1
        before = self._places()
        for guest in self._guests:
            self._fleet.take(guest)
        if not fill(self._fleet, self._guests, chosen):
            return True
        for guest in self._guests:
            if guest.name in self._fleet.where:
                self._fleet.take(guest)
        for guest in self._guests:
            self._fleet.put(guest, before[guest.name])
        return False

    def _emptiest_first(self) -> list[int]:
        """Return the hosts that have guests of the filling alone, those with the least first."""
        fleet = self._fleet
        alone = [i for i in np.flatnonzero(self._taken()).tolist() if self._own.issuperset(fleet.on[i])]
        alone = [i for i in alone if fleet.counts[i] == len(fleet.on[i])]
        return sorted(alone, key=lambda i: (sum(fleet.size(guest) for guest in fleet.guests_on(i)), i))

    def _without(self, node: int) -> Mask:
        chosen = self._fleet.counts > 0
        chosen[node] = False
        return np.asarray(chosen)

    def _taken(self) -> Mask:
        taken = np.zeros(len(self._fleet.nodes), dtype=bool)
        taken[list(self._places().values())] = True
        return taken

    def _places(self) -> dict[str, int]:
        return {guest.name: self._fleet.where[guest.name] for guest in self._guests}
