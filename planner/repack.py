"""Repacking: put the guests of two or three nodes, and some without a place, anew, so that more of them fit.

A search in depth decides one guest after another, the hardest first: on which of the nodes, or on none. It is cut off
where it can no longer win, and after a number of steps.

Invariant: only guests of the filling move; the outcome is kept only if it has more guests of the highest priority at
which it differs.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, combinations

import numpy as np

from planner.filters import fits_if_empty, refused_by_abilities
from planner.fleet import CPUS, MEMORY, Fleet
from planner.types import GuestRequest

GROUPS = (2, 3)
"""How many nodes are repacked together."""

NODES = 12
"""Nodes of which all groups are tried: those that have guests of the filling and could have one without a place."""

POOL = 4
"""Guests without a place that are tried with each group, the most important and smallest."""

STEPS_EACH, STEPS = 20_000, 300_000
"""Decisions within one group, and in all."""


def repack(fleet: Fleet, own: frozenset[str], left: Sequence[GuestRequest]) -> list[GuestRequest]:
    """Place more guests by repacking groups of nodes; return those still left. own: names of the guests that may move."""
    pool = list(left)
    budget = STEPS
    better = bool(pool)
    while better and pool and budget > 0:
        better = False
        for group in _groups(fleet, own, pool):
            search = _Search(fleet, own, group, _first(fleet, pool))
            better = search.run()
            budget -= search.steps
            if better:
                pool = [guest for guest in pool if guest.name not in fleet.where] + search.dropped
                break
            if budget <= 0:
                break
    return pool


def _first(fleet: Fleet, pool: Sequence[GuestRequest]) -> list[GuestRequest]:
    return sorted(pool, key=lambda g: (-g.priority, fleet.size(g), g.name))[:POOL]


def _groups(fleet: Fleet, own: frozenset[str], pool: Sequence[GuestRequest]) -> Iterator[tuple[int, ...]]:
    possible = np.zeros(len(fleet.nodes), dtype=bool)
    for guest in _first(fleet, pool):
        refused = refused_by_abilities(fleet, guest)
        possible |= fleet.open if refused is None else ~refused
    if fleet.chosen is not None:
        possible &= fleet.chosen
    nodes = [int(i) for i in np.flatnonzero(possible) if not own.isdisjoint(fleet.on[i])][:NODES]
    for size in GROUPS:
        yield from combinations(nodes, size)


@dataclass(slots=True)
class _Search:
    fleet: Fleet
    own: frozenset[str]
    group: tuple[int, ...]
    pool: Sequence[GuestRequest]
    steps: int = 0
    dropped: list[GuestRequest] = field(default_factory=list)
    """Guests that had a place and have none any more."""
    _items: list[GuestRequest] = field(default_factory=list)
    _needs: list[tuple[int, ...]] = field(default_factory=list)
    _allowed: list[tuple[int, ...]] = field(default_factory=list)
    _rivals: list[list[int]] = field(default_factory=list)
    """Of each item, those before it that share a strict rule with it."""
    _free: dict[int, list[int]] = field(default_factory=dict)
    _places: list[int] = field(default_factory=list)
    _rank: list[int] = field(default_factory=list)
    """Of each item, which priority it has: 0 for the highest."""
    _target: list[int] = field(default_factory=list)
    """How many of each rank were placed before."""
    _rest: list[list[int]] = field(default_factory=list)
    """How many of each rank are to be decided from each position on."""
    _least: list[list[list[int]]] = field(default_factory=list)
    """What the one, two, ... smallest items from each position on need of CPUs and memory."""

    def run(self) -> bool:
        """Repack; return whether that won anything."""
        fleet = self.fleet
        homes = {
            guest.name: i
            for i in self.group
            for guest in fleet.guests_on(i)
            if guest.name in self.own and not _bound(fleet, guest)
        }
        movable = [fleet.guests[name] for name in homes]
        pool = [guest for guest in self.pool if not _bound(fleet, guest)]
        self._items = sorted([*movable, *pool], key=lambda g: (-g.priority, -fleet.size(g), g.name))
        for guest in movable:
            fleet.take(guest)
        places = self._search(movable)
        for position, guest in enumerate(self._items):
            target = places[position] if places else homes.get(guest.name, -1)
            if target >= 0:
                fleet.put(guest, target)
            elif guest.name in homes:
                self.dropped.append(guest)
        return places is not None

    def _search(self, before: Sequence[GuestRequest]) -> list[int] | None:
        """Return the node of each item, -1 for none, if that is better than to place those of `before`."""
        fleet = self.fleet
        self._needs = [tuple(int(v) for v in fleet.needs(guest)) for guest in self._items]
        self._free = {i: [int(v) for v in fleet.free[:, i]] for i in self.group}
        for position, guest in enumerate(self._items):
            good = fits_if_empty(fleet, guest)
            self._allowed.append(tuple(i for i in self.group if good[i]))
            strict = {id(one) for one in fleet.rules.of(guest)[1] if one.rule.strict}
            earlier = self._items[:position]
            self._rivals.append(
                [j for j, o in enumerate(earlier) if strict & {id(one) for one in fleet.rules.of(o)[1]}]
            )
        ranks = {priority: rank for rank, priority in enumerate(sorted({-g.priority for g in self._items}))}
        self._rank = [ranks[-guest.priority] for guest in self._items]
        self._target = _counts((ranks[-guest.priority] for guest in before), len(ranks))
        self._rest = [_counts(self._rank[i:], len(ranks)) for i in range(len(self._items) + 1)]
        self._least = [
            [list(accumulate(sorted(needs[row] for needs in self._needs[i:]))) for row in (CPUS, MEMORY)]
            for i in range(len(self._items) + 1)
        ]
        return self._places if self._decide(0, [0] * len(ranks)) else None

    def _decide(self, position: int, placed: list[int]) -> bool:
        """Decide the items from a position on; return True when a better way was found, which is in `_places`."""
        if position == len(self._items):
            return placed > self._target
        self.steps += 1
        if self.steps > STEPS_EACH or not self._can_win(position, placed):
            return False
        needs, rank = self._needs[position], self._rank[position]
        for node in self._allowed[position]:
            free = self._free[node]
            if any(n and n > f for n, f in zip(needs, free, strict=True)):
                continue
            if any(self._clash(self._places[j], node, position, j) for j in self._rivals[position]):
                continue
            self._free[node] = [f - n for n, f in zip(needs, free, strict=True)]
            self._places.append(node)
            placed[rank] += 1
            if self._decide(position + 1, placed):
                return True
            placed[rank] -= 1
            self._places.pop()
            self._free[node] = free
        self._places.append(-1)
        if self._decide(position + 1, placed):
            return True
        self._places.pop()
        return False

    def _can_win(self, position: int, placed: list[int]) -> bool:
        """Whether more could be placed than before, if room were not split up between the nodes."""
        rest = self._rest[position]
        if not [have + more for have, more in zip(placed, rest, strict=True)] > self._target:
            return False
        if len(placed) > 1:
            return True
        most = min(
            bisect_right(least, sum(self._free[node][row] for node in self.group))
            for row, least in zip((CPUS, MEMORY), self._least[position], strict=True)
        )
        return placed[0] + most > self._target[0]

    def _clash(self, one: int, other: int, position: int, rival: int) -> bool:
        """Whether a strict rule forbids two items these nodes; -1 is none."""
        if one < 0:
            return False
        mine = self.fleet.rules.of(self._items[position])[1]
        theirs = self.fleet.rules.of(self._items[rival])[1]
        return any(
            rule.rule.strict and any(rule is o for o in theirs) and rule.domain[one] == rule.domain[other]
            for rule in mine
        )


def _bound(fleet: Fleet, guest: GuestRequest) -> bool:
    """Whether a strict rule keeps a guest with others, so that it does not move alone."""
    return any(one.together and one.rule.strict for one in fleet.rules.of(guest)[1])


def _counts(ranks: Iterable[int], size: int) -> list[int]:
    """Return how often each rank occurs, the most important first."""
    counts = [0] * size
    for rank in ranks:
        counts[rank] += 1
    return counts
