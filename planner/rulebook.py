"""Rules made ready for one fleet: what each says of all nodes at once, kept up to date as guests come and go.

Invariant: a grouping's counts are those of its members that the fleet has placed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.rules import GuestAffinity, Mode, NodeAffinity, Rule
from planner.types import GuestRequest, NodeView

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STRICT_COST = 10.0
"""What a broken strict rule counts in the score; a preferring one counts 1. It outweighs any unevenness."""

LESSER_NODE_COST = 0.5
"""What a guest counts that is on a node of its rule, but not on one of the highest priority."""


@dataclass(slots=True)
class Affinity:
    """A NodeAffinity: `rank` of each node from 1, the lowest priority; 0 for nodes that the rule does not name."""

    rule: NodeAffinity
    rank: Ints
    best: int
    """Highest rank of a node that can take guests; 0 when none can."""
    counts: Ints
    """How many of its guests each node has."""

    def liking(self) -> Floats:
        """Return how good each node is, 0 to 1."""
        return self.rank / max(1, int(self.rank.max(initial=0)))

    def costs(self) -> Floats:
        """Return what a guest of it costs on each node."""
        outside = STRICT_COST if self.rule.strict else 1.0
        inside = np.where(self.rank < self.best, LESSER_NODE_COST if self.rule.failback else 0.0, 0.0)
        return np.where(self.rank == 0, outside, inside)


@dataclass(slots=True)
class Grouping:
    """A GuestAffinity: `domain` of each node, -1 for none, and how many of its guests each domain has."""

    rule: GuestAffinity
    domain: Ints
    names: tuple[str, ...]
    counts: Ints
    total: int = 0
    members: set[str] = field(default_factory=set)

    @property
    def together(self) -> bool:
        """Whether its guests belong together."""
        return self.rule.mode is Mode.TOGETHER

    def at_nodes(self) -> Ints:
        """Return how many of its guests the domain of each node has."""
        return (
            np.where(self.domain < 0, 0, self.counts[self.domain]) if len(self.counts) else np.zeros_like(self.domain)
        )

    def refused(self) -> Mask:
        """Return the nodes that one more of its guests may not get while it is strict."""
        outside = self.domain < 0
        if self.together:
            return outside | ((self.at_nodes() == 0) if self.total else outside)
        return outside | (self.at_nodes() > 0)

    def liking(self) -> Floats:
        """Return how good each node is for one more of its guests, 0 to 1."""
        here = self.at_nodes()
        if self.together:
            return here / self.total if self.total else np.ones(len(here))
        return np.where(self.domain < 0, 0.0, 1.0 / (1 + here))

    def cost(self) -> float:
        """Return what the rule costs as things are: guests that are not where they should be."""
        if self.together:
            strays = self.total - int(self.counts.max(initial=0))
        else:
            strays = int(np.maximum(self.counts - 1, 0).sum()) + self.total - int(self.counts.sum())
        return float(strays) * self.weight

    def move_costs(self, origin: int) -> Floats:
        """Return how its cost changes when one of its guests goes from a node to each node."""
        before = self.cost()
        home = int(self.domain[origin])
        if home >= 0:
            self.counts[home] -= 1
        most = int(self.counts.max(initial=0))
        here = self.at_nodes()
        after: Ints
        if self.together:
            after = self.total - np.maximum(most, np.where(self.domain < 0, 0, here + 1))
        else:
            alone = int(np.maximum(self.counts - 1, 0).sum()) + self.total - 1 - int(self.counts.sum())
            after = alone + ((here > 0) | (self.domain < 0)).astype(np.int64)
        if home >= 0:
            self.counts[home] += 1
        return np.asarray(after * self.weight - before, dtype=np.float64)

    @property
    def weight(self) -> float:
        """What one guest that is not where it should be counts."""
        return STRICT_COST if self.rule.strict else 1.0


_NO_RULES: tuple[tuple[Affinity, ...], tuple[Grouping, ...]] = ((), ())


class Rulebook:
    """All rules of a fleet."""

    def __init__(self, rules: Sequence[Rule], nodes: Sequence[NodeView]) -> None:
        self._nodes = len(nodes)
        ordered = sorted(rules, key=lambda rule: rule.name)
        self.affinities = [_affinity(rule, nodes) for rule in ordered if isinstance(rule, NodeAffinity)]
        self.groupings = [_grouping(rule, nodes) for rule in ordered if isinstance(rule, GuestAffinity)]
        self._of: dict[str, tuple[tuple[Affinity, ...], tuple[Grouping, ...]]] = {}

    def of(self, guest: GuestRequest) -> tuple[tuple[Affinity, ...], tuple[Grouping, ...]]:
        """Return the rules that cover a guest."""
        if not self.affinities and not self.groupings:
            return _NO_RULES
        found = self._of.get(guest.name)
        if found is None:
            found = (
                tuple(one for one in self.affinities if one.rule.guests.cover(guest)),
                tuple(one for one in self.groupings if one.rule.guests.cover(guest)),
            )
            self._of[guest.name] = found = found if any(found) else _NO_RULES
        return found

    def forget(self, guest: str) -> None:
        """Look up the rules that cover a guest anew: it has other labels now. It must not be placed."""
        self._of.pop(guest, None)

    def count(self, guest: GuestRequest, node: int, by: int) -> None:
        """Take in that a guest came to a node (by 1) or left it (by -1)."""
        affinities, groupings = self.of(guest)
        for affinity in affinities:
            affinity.counts[node] += by
        for grouping in groupings:
            grouping.total += by
            if by > 0:
                grouping.members.add(guest.name)
            else:
                grouping.members.discard(guest.name)
            if grouping.domain[node] >= 0:
                grouping.counts[grouping.domain[node]] += by

    def cost(self) -> float:
        """Return what broken and unmet rules cost."""
        astray = sum(float((one.costs() * one.counts).sum()) for one in self.affinities)
        return astray + sum(grouping.cost() for grouping in self.groupings)

    def move_costs(self, guest: GuestRequest, origin: int) -> Floats:
        """Return how the cost changes when a guest goes from a node to each node; a rule without failback sees no gain."""
        affinities, groupings = self.of(guest)
        change: Floats = np.zeros(self._nodes, dtype=np.float64)
        for affinity in affinities:
            costs = affinity.costs()
            gain = costs - costs[origin]
            change += gain if affinity.rule.failback else np.maximum(gain, 0.0)
        for grouping in groupings:
            change += grouping.move_costs(origin)
        return change


def _affinity(rule: NodeAffinity, nodes: Sequence[NodeView]) -> Affinity:
    steps = {priority: rank for rank, priority in enumerate(sorted(set(rule.nodes.values())), 1)}
    rank = np.array([steps[rule.nodes[n.name]] if n.name in rule.nodes else 0 for n in nodes], dtype=np.int64)
    usable = [int(r) for r, node in zip(rank, nodes, strict=True) if node.usable and not node.cordoned]
    return Affinity(rule, rank, max(usable, default=0), np.zeros(len(nodes), dtype=np.int64))


def _grouping(rule: GuestAffinity, nodes: Sequence[NodeView]) -> Grouping:
    values = [node.labels.get(rule.domain) if rule.domain else node.name for node in nodes]
    names = tuple(sorted({value for value in values if value is not None}))
    index = {name: i for i, name in enumerate(names)}
    domain = np.array([-1 if value is None else index[value] for value in values], dtype=np.int64)
    return Grouping(rule, domain, names, np.zeros(len(names), dtype=np.int64))
