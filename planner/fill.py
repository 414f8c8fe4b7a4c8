"""Filling: give many guests places at once, so that as few as possible stay without, the important ones first.

Guests go in the order of priority, then of size, the largest first, each to its best node. When that leaves some
without a place, it is tried in other orders and with a tighter fit; guests of the same filling give way to others
where they find another place (ejection), and groups of nodes are packed anew (planner.repack). Guests that were there
before are never touched.

Invariant: fewer guests of a priority never have a place so that more of a lower one do; the same guests and fleet give
the same filling; the work is bounded by a number of steps, never by time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planner.filters import fits, fits_if_empty
from planner.fleet import Fleet
from planner.place import NOWHERE, choose
from planner.repack import repack
from planner.rulebook import Grouping, Mask
from planner.scores import weights_of
from planner.settings import Policy
from planner.types import GuestRequest
from planner.weights import POLICIES

EFFORT = 40_000
"""Steps of one plan beyond the first attempt: looking for a guest's node, or for room on a node, is one."""

NODES_TRIED = 24
"""Nodes on which room is made for one guest."""

EXCHANGED = 8
"""Small guests that are tried in the room of a large one."""

DEPTH = 2
"""How many guests may give way to one another in a row."""

Order = Callable[[Fleet, GuestRequest], float]
"""The size of a guest: greater goes first."""

ORDERS: tuple[Order, ...] = (
    lambda fleet, guest: fleet.size(guest),
    lambda fleet, guest: -fleet.size(guest),
    lambda fleet, guest: float(fleet.shares(guest).sum()),
    lambda fleet, guest: float(guest.memory_bytes),
    lambda fleet, guest: float(guest.cpus),
)

TIGHT: tuple[Mapping[str, float], ...] = (
    {**POLICIES[Policy.PACK], "calm": 0.0, "in-use": 0.0},
    {**POLICIES[Policy.PACK], "calm": 0.0, "in-use": 0.0, "filled-cpu": 0.0},
    {**POLICIES[Policy.PACK], "calm": 0.0, "in-use": 0.0, "filled-memory": 0.0},
)
"""Weights that leave as little room unused on a node as can be."""


@dataclass(slots=True)
class Effort:
    """How many steps may still be taken. Counting steps, not time, keeps plans the same on any machine."""

    left: int = EFFORT

    def spend(self, steps: int = 1) -> bool:
        """Take steps; return whether there were any left."""
        self.left -= steps
        return self.left > 0


def fill(
    fleet: Fleet, guests: Sequence[GuestRequest], within: Mask | None = None, effort: Effort | None = None
) -> list[GuestRequest]:
    """Place guests that have no place; return those that still have none. within: the only nodes to use."""
    ordered = sorted(guests, key=lambda guest: guest.name)
    own = frozenset(guest.name for guest in ordered)
    with fleet.only(within):
        return _Filling(fleet, ordered, own, Effort() if effort is None else effort).run()


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to fill: how good it is, who is where, who is left, and the weights that it went by."""

    key: tuple[tuple[int, int], ...]
    places: Mapping[str, int]
    left: list[GuestRequest]
    weights: Mapping[str, float]


@dataclass(slots=True)
class _Filling:
    fleet: Fleet
    guests: Sequence[GuestRequest]
    own: frozenset[str]
    effort: Effort

    def run(self) -> list[GuestRequest]:
        ways = [self._place_all(ORDERS[0], weights_of(self.fleet.settings))]
        if ways[0].left:
            ways += self._other_ways()
        best = max(ways, key=lambda way: way.key)  # the first of those that are as good
        for way in sorted(ways, key=lambda way: way.key, reverse=True):
            if not best.left or self.effort.left <= 0:
                break
            self._restore(way.places)
            better = self._improve(way)
            if better.key > best.key:
                best = better
        self._restore(best.places)
        return repack(self.fleet, self.own, best.left) if best.left and self.effort.left > 0 else best.left

    def _other_ways(self) -> list[_Way]:
        """Return what tighter fits and other orders come to, for half the effort."""
        ways, least = [], self.effort.left // 2
        for weights, order in ((weights, order) for weights in TIGHT for order in ORDERS):
            if self.effort.left - len(self.guests) < least:
                break
            self.effort.spend(len(self.guests))
            self._restore({})
            ways.append(self._place_all(order, weights))
        return ways

    def _place_all(self, order: Order, weights: Mapping[str, float]) -> _Way:
        left = []
        for guest in in_order(self.fleet, self.guests, order):
            node = choose(self.fleet, guest, weights, self._with_its_own(guest))
            if node == NOWHERE:
                left.append(guest)
            else:
                self.fleet.put(guest, node)
        return self._way(left, weights)

    def _improve(self, way: _Way) -> _Way:
        """Make room for those left by giving others another place, or the room of one to several."""
        left = [guest for guest in way.left if not self._eject(guest, way.weights, DEPTH, frozenset())]
        return self._way(self._exchange(left, way.weights), way.weights)

    def _way(self, left: list[GuestRequest], weights: Mapping[str, float]) -> _Way:
        return _Way(self._key(), self._places(), left, weights)

    def _with_its_own(self, guest: GuestRequest) -> Mask | None:
        """Return the nodes where all that a strict rule keeps together have room, if there are any."""
        for grouping in self.fleet.rules.of(guest)[1]:
            if grouping.together and grouping.rule.strict and not grouping.total:
                needed = sum(
                    (self.fleet.needs(g) for g in self.guests if grouping.rule.guests.cover(g)),
                    np.zeros(len(self.fleet.free), dtype=np.int64),
                )
                good = np.asarray((_room_of_domains(self.fleet, grouping) >= needed[:, None]).all(axis=0))
                if (good & fits(self.fleet, guest)).any():
                    return good
        return None

    def _eject(self, guest: GuestRequest, weights: Mapping[str, float], depth: int, closed: frozenset[int]) -> bool:
        """Make room for a guest by giving one of the filling another place; return whether it has its place now."""
        fleet, needs = self.fleet, self.fleet.needs(guest)
        if not self.effort.spend():
            return False
        missing = np.maximum(needs[:, None] - fleet.free, 0) / np.maximum(fleet.total, 1)
        lacking = missing.max(axis=0)
        open_nodes = fits_if_empty(fleet, guest) & (fleet.total >= needs[:, None]).all(axis=0)
        nodes = [int(i) for i in np.argsort(lacking, kind="stable") if open_nodes[i] and int(i) not in closed]
        for node in nodes[:NODES_TRIED]:
            if not self.effort.spend():
                return False
            room = fleet.free[:, node]
            movable = [g for g in fleet.guests_on(node) if g.name in self.own]
            for other in sorted(movable, key=fleet.size):
                if (room + fleet.needs(other) < needs).any():
                    continue
                if not self.effort.spend():
                    return False
                if self._swap(guest, other, node, weights, depth, closed):
                    return True
        return False

    def _swap(
        self,
        guest: GuestRequest,
        other: GuestRequest,
        node: int,
        weights: Mapping[str, float],
        depth: int,
        closed: frozenset[int],
    ) -> bool:
        fleet = self.fleet
        fleet.take(other)
        if fits(fleet, guest)[node]:
            fleet.put(guest, node)
            target = choose(fleet, other, weights)
            if target != NOWHERE:
                fleet.put(other, target)
                return True
            if depth > 1 and self._eject(other, weights, depth - 1, closed | {node}):
                return True
            fleet.take(guest)
        fleet.put(other, node)
        return False

    def _exchange(self, left: list[GuestRequest], weights: Mapping[str, float]) -> list[GuestRequest]:
        """Give the room of one large guest to several small ones, none of them less important."""
        left = sorted(left, key=lambda g: (-g.priority, self.fleet.size(g), g.name))
        changed = len(left) > 1
        while changed and self.effort.left > 0:
            changed = False
            for victim in sorted(self.guests, key=lambda g: (g.priority, -self.fleet.size(g), g.name)):
                if len(left) < 2 or victim.name not in self.fleet.where:
                    continue
                if not self.effort.spend(len(left[:EXCHANGED])):
                    break
                node = self.fleet.take(victim)
                came = []
                for guest in left[:EXCHANGED]:
                    if guest.priority >= victim.priority and fits(self.fleet, guest)[node]:
                        self.fleet.put(guest, node)
                        came.append(guest)
                if len(came) >= 2:
                    rest = [g for g in left if g not in came]
                    target = choose(self.fleet, victim, weights)
                    if target == NOWHERE:
                        rest.append(victim)
                    else:
                        self.fleet.put(victim, target)
                    left = sorted(rest, key=lambda g: (-g.priority, self.fleet.size(g), g.name))
                    changed = True
                    continue
                for guest in came:
                    self.fleet.take(guest)
                self.fleet.put(victim, node)
        return left

    def _key(self) -> tuple[tuple[int, int], ...]:
        """Return how good the filling is: how many guests of each priority have a place, the highest first."""
        placed: dict[int, int] = {guest.priority: 0 for guest in self.guests}
        for guest in self.guests:
            placed[guest.priority] += guest.name in self.fleet.where
        return tuple(sorted(placed.items(), reverse=True))

    def _places(self) -> dict[str, int]:
        where = self.fleet.where
        return {guest.name: where[guest.name] for guest in self.guests if guest.name in where}

    def _restore(self, places: Mapping[str, int]) -> None:
        if places == self._places():
            return
        for guest in self.guests:
            if guest.name in self.fleet.where:
                self.fleet.take(guest)
        for guest in self.guests:
            if guest.name in places:
                self.fleet.put(guest, places[guest.name])


def in_order(fleet: Fleet, guests: Sequence[GuestRequest], order: Order = ORDERS[0]) -> list[GuestRequest]:
    """Return guests as they are served: by priority, those that few nodes can have, the largest; those that a strict rule
    keeps together beside one another."""
    own = {
        guest.name: (-guest.priority, not _is_choosy(fleet, guest), -order(fleet, guest), guest.name)
        for guest in guests
    }
    first: dict[str, tuple[int, bool, float, str]] = {}
    for guest in guests:
        for rule in _kept_together(fleet, guest):
            first[rule] = min(first.get(rule, own[guest.name]), own[guest.name])
    leading = {
        guest.name: min([first[rule] for rule in _kept_together(fleet, guest)], default=own[guest.name])
        for guest in guests
    }
    return sorted(guests, key=lambda guest: (leading[guest.name], own[guest.name]))


def _kept_together(fleet: Fleet, guest: GuestRequest) -> list[str]:
    return [one.rule.name for one in fleet.rules.of(guest)[1] if one.together and one.rule.strict]


def _is_choosy(fleet: Fleet, guest: GuestRequest) -> bool:
    affinities, _ = fleet.rules.of(guest)
    return bool(guest.pinned) or any(one.rule.strict for one in affinities)


def _room_of_domains(fleet: Fleet, grouping: Grouping) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return what the domain of each node has left of each resource; nothing for nodes in none or that take no guests."""
    free = np.where(fleet.open, np.maximum(fleet.free, 0), 0)
    if not grouping.rule.domain:
        return free
    room = np.zeros((len(free), len(grouping.names) + 1), dtype=np.int64)
    for row, values in enumerate(free):
        np.add.at(room[row], grouping.domain, np.minimum(values, 1 << 50))
    room[:, -1] = 0
    return room[:, grouping.domain]
