"""Tightening: under the policy "pack", place guests on as few hosts as can be found.

First as many hosts are tried as could be enough, the roomiest first, then one more; then hosts are emptied one by one.

Invariant: only guests of the filling move; hosts with other guests are in use anyway; no guest loses its place; the
work is bounded by a number of steps, never by time.
"""

from collections.abc import Sequence
from itertools import combinations, islice

import numpy as np

from planner.fill import Effort, fill
from planner.fleet import UNCOUNTED, Fleet
from planner.rulebook import Mask
from planner.settings import Policy
from planner.types import GuestRequest

SHARE = 150
"""Steps for each guest that one choice of hosts may take."""

CHOICES = 100
"""Choices of as many hosts that are looked at."""


def tighten(fleet: Fleet, guests: Sequence[GuestRequest], effort: Effort) -> None:
    """Place the guests of a filling anew on fewer hosts, if that can be done."""
    if fleet.settings.policy is Policy.PACK and guests:
        _Tightening(fleet, guests, effort).run()


class _Tightening:
    def __init__(self, fleet: Fleet, guests: Sequence[GuestRequest], effort: Effort) -> None:
        self._fleet = fleet
        self._guests = [guest for guest in guests if guest.name in fleet.where]
        self._effort = effort
        self._own = {guest.name for guest in self._guests}
        needs = [fleet.needs(guest) for guest in self._guests]
        self._needed = np.sum(needs, axis=0) if needs else np.zeros(len(fleet.free), dtype=np.int64)
        room = fleet.free.copy()
        for guest, needed in zip(self._guests, needs, strict=True):
            room[:, fleet.where[guest.name]] += needed
        self._room = np.clip(room, 0, UNCOUNTED >> 10)
        """What each host has for guests of the filling: it does not change while they are placed anew."""

    def run(self) -> None:
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
            if self._effort.left < len(self._guests):
                return
            for some in islice(combinations(order, count), CHOICES):
                chosen = others.copy()
                chosen[list(some)] = True
                if self._fit_into(chosen):
                    return

    def _could_hold(self, chosen: Mask) -> bool:
        """Whether chosen hosts would have the room if it were not split up between them."""
        return bool((self._room[:, chosen].sum(axis=1) >= self._needed).all())

    def _fit_into(self, chosen: Mask) -> bool:
        """Place all guests on chosen hosts; return whether that worked, else everything is as it was."""
        if self._effort.left < len(self._guests) or not self._could_hold(chosen):
            return False
        self._effort.spend(len(self._guests))
        share = Effort(min(len(self._guests) * SHARE, self._effort.left))
        before = self._places()
        for guest in self._guests:
            self._fleet.take(guest)
        given, left = share.left, fill(self._fleet, self._guests, chosen, share)
        self._effort.spend(given - share.left)
        if not left:
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
