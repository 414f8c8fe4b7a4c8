"""Spare room (N+1, N+2, failure domains): which guests could not be restarted if hosts were lost.

Those guests of the lost hosts that are restarted at all are given places among the rest, the important and large ones
first, each where it leaves the least memory unused. That is not a proof that there is no other way: a guest that is
told here might just find a place in a cleverer arrangement; one that is not told surely has a place.

Invariant: looking changes nothing.
"""

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from planner.fill import in_order
from planner.filters import fits
from planner.fleet import MEMORY, Fleet
from planner.plans import Shortfall
from planner.settings import Spare
from planner.types import GuestRequest

Loss = tuple[int, ...]

EXACT_LOSSES = 2000
"""Losses of several hosts that are all tried; where there are more, each host is lost with those that hurt most."""


def spare_shortfall(fleet: Fleet, spare: Spare | None = None) -> list[Shortfall]:
    """Return the guests that could not be restarted after each loss that must be possible. spare: of its settings."""
    return Watch(fleet, fleet.settings.spare if spare is None else spare).shortfalls()


class Watch:
    """Keeps track of what is safe while guests come, go and move: each loss remembers the nodes that would help, and is
    looked at again only when one of them, or a lost one, has changed."""

    def __init__(self, fleet: Fleet, spare: Spare) -> None:
        self._fleet = fleet
        self._losses = list(losses(fleet, spare)) if spare.asked else []
        self._involved: dict[Loss, frozenset[int]] = {}
        self._short: dict[Loss, tuple[str, ...]] = {}
        for loss in self._losses:
            self._look(loss)

    def short(self) -> frozenset[tuple[Loss, str]]:
        """Return what is not safe: the loss, and the guest that would have no place."""
        return frozenset((loss, guest) for loss, guests in self._short.items() for guest in guests)

    def changed(self, *nodes: int) -> None:
        """Look again after guests came to nodes or left them. Rules by label reach farther than their nodes."""
        everywhere = any(one.rule.domain for one in self._fleet.rules.groupings)
        for loss in self._losses:
            if everywhere or not self._involved[loss].isdisjoint(nodes):
                self._look(loss)

    def shortfalls(self) -> list[Shortfall]:
        """Return what is not safe, in words."""
        told = []
        for loss in self._losses:
            names = tuple(self._fleet.names[i] for i in loss)
            for guest in self._short[loss]:
                reason = f"If {_list(names)} were lost, no other host would have room for {guest}."
                told.append(Shortfall(names, guest, reason))
        return told

    def _look(self, loss: Loss) -> None:
        short, helpers = _restart(self._fleet, loss)
        self._short[loss] = tuple(sorted(short))
        watched = helpers if not short else frozenset(range(len(self._fleet.nodes)))
        self._involved[loss] = watched | frozenset(loss)


def losses(fleet: Fleet, spare: Spare) -> Iterator[Loss]:
    """Yield the sets of hosts whose loss must be survived. A host without the label is a domain of its own."""
    online = [int(i) for i in np.flatnonzero(fleet.online)]
    if spare.domain:
        domains: dict[str, list[int]] = {}
        for i in online:
            node = fleet.nodes[i]
            domains.setdefault(node.labels.get(spare.domain, f"\0{node.name}"), []).append(i)
        yield from (tuple(domains[key]) for key in sorted(domains))
    if not spare.hosts:
        return
    every = list(_up_to(combinations(online, min(spare.hosts, len(online))), EXACT_LOSSES + 1))
    if spare.hosts == 1 or len(every) <= EXACT_LOSSES:
        yield from combinations(online, min(spare.hosts, len(online)))
        return
    worst = sorted(online, key=lambda i: (-int(fleet.total[MEMORY, i]), i))
    seen = set()
    for i in online:
        loss = tuple(sorted([i, *[j for j in worst if j != i][: spare.hosts - 1]]))
        if loss not in seen:
            seen.add(loss)
            yield loss


def _restart(fleet: Fleet, loss: Loss) -> tuple[list[str], frozenset[int]]:
    """Return which guests of lost nodes would find no place, and which nodes would take the others."""
    guests = [guest for i in loss for guest in fleet.guests_on(i)]
    homes = [fleet.take(guest) for guest in guests]
    gone = np.zeros(len(fleet.nodes), dtype=bool)
    gone[list(loss)] = True
    short: list[str] = []
    placed: list[GuestRequest] = []
    helpers = set()
    for guest in in_order(fleet, [guest for guest in guests if guest.restarted]):
        good = fits(fleet, guest) & ~gone
        if not good.any():
            short.append(guest.name)
            continue
        node = int(np.argmin(np.where(good, fleet.free[MEMORY], np.iinfo(np.int64).max)))
        fleet.put(guest, node)
        placed.append(guest)
        helpers.add(node)
    for guest in placed:
        fleet.take(guest)
    for guest, home in zip(guests, homes, strict=True):
        fleet.put(guest, home)
    return short, frozenset(helpers)


def _up_to(items: Iterator[Loss], count: int) -> Iterator[Loss]:
    for _, item in zip(range(count), items, strict=False):
        yield item


def _list(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
