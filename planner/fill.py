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
from planner.scores import POLICIES, weights_of
from planner.settings import Policy
from planner.types import GuestRequest

STEPS = 6000
"""Guests that are tried to be moved for others in one attempt."""

ATTEMPTS = 24_000
"""Guests that are placed in all attempts at one filling together; the first attempt is always made."""

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
    lambda fleet, guest: float(fleet.shares(guest).sum()),
    lambda fleet, guest: float(guest.memory_bytes),
    lambda fleet, guest: float(guest.cpus),
    lambda fleet, guest: -fleet.size(guest),
)

TIGHT: tuple[Mapping[str, float], ...] = (
    {**POLICIES[Policy.PACK], "calm": 0.0, "in-use": 0.0},
    {**POLICIES[Policy.PACK], "calm": 0.0, "in-use": 0.0, "filled-cpu": 0.0},
    {**POLICIES[Policy.PACK], "calm": 0.0, "in-use": 0.0, "filled-memory": 0.0},
)
"""Weights that leave as little room unused on a node as can be."""


def fill(fleet: Fleet, guests: Sequence[GuestRequest], within: Mask | None = None) -> list[GuestRequest]:
    """Place guests that have no place; return those that still have none. within: the only nodes to use."""
    ordered = sorted(guests, key=lambda guest: guest.name)
    with fleet.only(within):
        return _Filling(fleet, ordered, frozenset(guest.name for guest in ordered)).run()


@dataclass(slots=True)
class _Filling:
    fleet: Fleet
    guests: Sequence[GuestRequest]
    own: frozenset[str]
    steps_left: int = STEPS

    def run(self) -> list[GuestRequest]:
        best = self._attempt(ORDERS[0], weights_of(self.fleet.settings))
        best_places, best_key = self._places(), self._key()
        placed = len(self.guests)
        for weights, order in ((w, o) for w in TIGHT for o in ORDERS):
            if not best or (placed := placed + len(self.guests)) > ATTEMPTS:
                break
            self._clear()
            left = self._attempt(order, weights)
            if (key := self._key()) > best_key:
                best, best_places, best_key = left, self._places(), key
        self._restore(best_places)
        return repack(self.fleet, self.own, best) if best and len(self.guests) <= ATTEMPTS else best

    def _attempt(self, order: Order, weights: Mapping[str, float]) -> list[GuestRequest]:
        left = []
        self.steps_left = STEPS
        for guest in in_order(self.fleet, self.guests, order):
            node = choose(self.fleet, guest, weights, self._with_its_own(guest))
            if node == NOWHERE and not self._eject(guest, weights, DEPTH, frozenset()):
                left.append(guest)
            elif node != NOWHERE:
                self.fleet.put(guest, node)
        return self._exchange(left, weights)

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
        missing = np.maximum(needs[:, None] - fleet.free, 0) / np.maximum(fleet.total, 1)
        lacking = missing.max(axis=0)
        open_nodes = fits_if_empty(fleet, guest) & (fleet.total >= needs[:, None]).all(axis=0)
        nodes = [int(i) for i in np.argsort(lacking, kind="stable") if open_nodes[i] and int(i) not in closed]
        for node in nodes[:NODES_TRIED]:
            room = fleet.free[:, node]
            movable = [g for g in fleet.guests_on(node) if g.name in self.own]
            for other in sorted(movable, key=fleet.size):
                if (room + fleet.needs(other) < needs).any():
                    continue
                if self.steps_left <= 0:
                    return False
                self.steps_left -= 1
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
        while changed and self.steps_left > 0:
            changed = False
            for victim in sorted(self.guests, key=lambda g: (g.priority, -self.fleet.size(g), g.name)):
                if len(left) < 2 or self.steps_left <= 0 or victim.name not in self.fleet.where:
                    continue
                self.steps_left -= 1 + len(left[:EXCHANGED])
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

    def _clear(self) -> None:
        for guest in self.guests:
            if guest.name in self.fleet.where:
                self.fleet.take(guest)

    def _restore(self, places: Mapping[str, int]) -> None:
        if places == self._places():
            return
        self._clear()
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
