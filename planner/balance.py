"""Balancing: few migrations that make a cluster more even and meet its rules better.

At each step the one migration is chosen that lowers the score most, its cost taken off. All migrations from the
fullest nodes to the emptiest are weighed at once; only when none of these helps, all there are.

Invariant: every migration lowers the score by at least Balance.min_gain and is allowed as things are then, while its
guest is on both nodes; none makes anything unsafe that was safe (Settings.spare). What is chosen depends on who is
where alone, so that a plan broken off and computed again goes on where it was. Hold time and rate are the caller's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.filters import refused_by_abilities
from planner.fleet import MEMORY, Fleet
from planner.objective import SHARES, score, shares, weights_of
from planner.plans import Cluster, Move, Plan
from planner.rulebook import Floats, Ints, Mask
from planner.spare import Watch, spare_shortfall
from planner.types import GuestRequest
from planner.waves import Waves

ENDS = 24
"""Nodes that are looked at first at either end, the fullest and the emptiest."""

BLOCK = 1 << 19
"""Migrations that are weighed in one go: bounds the memory."""


def plan_balance(cluster: Cluster, *, resuming: bool = False) -> Plan:
    """Return the migrations that make a cluster more even, the best first.

    resuming: the plan goes on with one that was begun, so that it need not win Balance.gain_margin again.
    """
    fleet = cluster.fleet()
    limits = fleet.settings.balance
    before, safe = score(fleet), spare_shortfall(fleet)
    waves = Waves(cluster.fleet(), limits.moves_at_once_per_node)
    evener = Evener(fleet)
    moves = list[Move]()
    while len(moves) < limits.max_moves and (step := evener.step()):
        name, origin, target, gain = step.guest.name, fleet.names[step.origin], fleet.names[step.target], step.gain
        wave = waves.of(step.guest, step.origin, step.target)
        reason = f"{name} moves from {origin} to {target}: the score falls by {gain:.5f}."
        moves.append(Move(name, origin, target, wave, reason, gain))
    after = score(fleet)
    if moves and not resuming and before.total - after.total < limits.gain_margin * before.total:
        part = (before.total - after.total) / before.total
        note = f"{len(moves)} migrations would win {part:.1%} of the score, less than the margin of {limits.gain_margin:.1%}."
        assignments = {g.name: g.node for g in fleet.guests.values()}
        return Plan(assignments, (), (), before, before, (), tuple(safe), (note,))
    assignments = {n: fleet.names[fleet.where[n]] if n in fleet.where else "" for n in fleet.guests}
    ordered = tuple(sorted(moves, key=lambda move: move.wave))
    return Plan(assignments, ordered, (), before, after, (), tuple(spare_shortfall(fleet)))


@dataclass(frozen=True, slots=True)
class Step:
    """A migration that was made in the fleet."""

    guest: GuestRequest
    origin: int
    target: int
    gain: float


@dataclass(frozen=True, slots=True)
class _Choice:
    gain: float
    guest: int
    target: int


@dataclass(frozen=True, slots=True)
class _State:
    """How far each share of each node is from the mean, and the standard deviation of each share."""

    apart: NDArray[np.float64]
    spreads: NDArray[np.float64]


class Evener:
    """Finds and makes one migration after another in a fleet. Guests and shares are columns, too."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        weights = weights_of(fleet.settings)
        guests = [fleet.guests[name] for name in sorted(fleet.where) if fleet.online[fleet.where[name]]]
        self._guests = guests
        self._home: Ints = np.array([fleet.where[guest.name] for guest in guests], dtype=np.int64)
        self._needs = np.array([fleet.needs(guest) for guest in guests], dtype=np.int64).reshape(
            len(guests), len(fleet.free)
        )
        self._shares = [one for one in SHARES if weights[one.name]]
        rows = len(self._shares)
        self._weights: Floats = np.array([weights[one.name] for one in self._shares], dtype=np.float64)
        self._rules_weight = weights["rules"]
        bases = [np.maximum(one.base(fleet), 1) for one in self._shares]
        self._base = np.array(bases, dtype=np.float64).reshape(rows, len(fleet.nodes))
        adds = [[one.adds(fleet, guest) for guest in guests] for one in self._shares]
        self._adds = np.array(adds, dtype=np.float64).reshape(rows, len(guests))
        self._costs = _costs(fleet, guests)
        self._ruled: Mask = np.array([any(fleet.rules.of(guest)) for guest in guests], dtype=bool)
        self._able = _able(fleet, guests)
        self._watch = Watch(fleet, fleet.settings.spare)
        self._unsafe = self._watch.short()

    def step(self) -> Step | None:
        """Make the best migration and return it; None when none is worth it."""
        banned: set[tuple[int, int]] = set()
        while (choice := self._best(banned)) is not None:
            guest, origin = self._guests[choice.guest], int(self._home[choice.guest])
            self._fleet.move(guest, choice.target)
            self._watch.changed(origin, choice.target)
            if (unsafe := self._watch.short()) <= self._unsafe:
                self._unsafe = unsafe
                self._home[choice.guest] = choice.target
                return Step(guest, origin, choice.target, choice.gain)
            self._fleet.move(guest, origin)
            self._watch.changed(origin, choice.target)
            banned.add((choice.guest, choice.target))
        return None

    def _best(self, banned: set[tuple[int, int]]) -> _Choice | None:
        fleet = self._fleet
        if not self._guests or not fleet.open.any():
            return None
        state = self._state()
        heat = (self._weights[:, None] * state.apart / np.maximum(state.spreads, 1e-12)).sum(axis=0)
        coolest = np.argsort(heat, kind="stable")
        targets = coolest[fleet.open[coolest]]
        sources = coolest[::-1][fleet.online[coolest[::-1]]]
        on_fullest = np.isin(self._home, sources[:ENDS])
        found = self._weigh(on_fullest, np.sort(targets[:ENDS]), state, banned)
        if self._ruled.any() and self._rules_weight and fleet.rules.cost():
            found = _better(found, self._weigh(self._ruled, np.sort(targets), state, banned))
        if found is None and len(fleet.nodes) > ENDS:
            found = self._weigh(np.ones(len(self._guests), dtype=bool), np.sort(targets), state, banned)
        return found

    def _state(self) -> _State:
        fleet = self._fleet
        values = np.array([shares(fleet, one) for one in self._shares]).reshape(len(self._shares), len(fleet.nodes))
        apart = values - values[:, fleet.online].mean(axis=1, keepdims=True)
        return _State(apart, apart[:, fleet.online].std(axis=1, keepdims=True))

    def _weigh(self, movable: Mask, targets: Ints, state: _State, banned: set[tuple[int, int]]) -> _Choice | None:
        """Return the best of all migrations of some guests to some nodes, None when none is worth it."""
        best: _Choice | None = None
        guests = np.flatnonzero(movable)
        size = max(1, BLOCK // max(1, len(targets)))
        for start in range(0, len(guests), size):
            block = guests[start : start + size]
            gains = self._gains(block, targets, state)
            gains[~self._allowed(block, targets)] = -np.inf
            self._heed_rules(block, targets, gains)
            for guest, target in banned:
                gains[np.ix_(block == guest, targets == target)] = -np.inf
            row, column = divmod(int(np.argmax(gains)), len(targets))
            if (gain := float(gains[row, column])) >= self._fleet.settings.balance.min_gain:
                best = _better(best, _Choice(gain, int(block[row]), int(targets[column])))
        return best

    def _gains(self, block: Ints, targets: Ints, state: _State) -> Floats:
        """Return by how much the score falls with each migration, its cost taken off, rules left aside.

        A standard deviation over n nodes follows from the sums of values and of their squares, and a migration changes
        both by what leaves one node and comes to another.
        """
        count = max(1, int(self._fleet.online.sum()))
        gains = np.repeat(-self._costs[block][:, None], len(targets), axis=1)
        for row, weight in enumerate(self._weights):
            apart, spread = state.apart[row], float(state.spreads[row, 0])
            home, there = apart[self._home[block]][:, None], apart[targets][None, :]
            leaves = (self._adds[row, block] / self._base[row, self._home[block]])[:, None]
            comes = self._adds[row, block][:, None] / self._base[row, targets][None, :]
            squares = leaves * (leaves - 2 * home) + comes * (comes + 2 * there)
            variance = spread * spread + squares / count - ((comes - leaves) / count) ** 2
            gains += weight * (spread - np.sqrt(np.maximum(variance, 0.0)))
        return gains

    def _allowed(self, block: Ints, targets: Ints) -> Mask:
        """Return which migrations the nodes' abilities and room allow; the guest is on both nodes for a while."""
        free = self._fleet.free
        allowed = self._able[block][:, targets] & (self._home[block][:, None] != targets[None, :])
        for row in range(len(free)):
            needed = self._needs[block, row][:, None]
            allowed &= (free[row, targets][None, :] >= needed) | (needed == 0)
        return np.asarray(allowed)

    def _heed_rules(self, block: Ints, targets: Ints, gains: Floats) -> None:
        """Count what rules gain or cost, and rule out what strict ones forbid."""
        fleet = self._fleet
        for position in np.flatnonzero(self._ruled[block]).tolist():
            guest, home = self._guests[block[position]], int(self._home[block[position]])
            costs = fleet.rules.move_costs(guest, home)
            gains[position] -= self._rules_weight * costs[targets]
            strict = [one for one in fleet.rules.of(guest)[1] if one.rule.strict]
            if strict:
                fleet.take(guest)
                refused = np.logical_or.reduce([one.refused() for one in strict])
                fleet.put(guest, home)
                gains[position, refused[targets]] = -np.inf


def _better(one: _Choice | None, other: _Choice | None) -> _Choice | None:
    """Return the better choice; of two as good, the first."""
    if one is None or other is None:
        return one or other
    return other if other.gain > one.gain else one


def _costs(fleet: Fleet, guests: Sequence[GuestRequest]) -> Floats:
    """Return what moving each guest costs: its share of all memory, times Balance.move_cost."""
    moved = np.array([guest.memory_bytes + guest.disk_bytes for guest in guests], dtype=np.float64)
    memory = max(1.0, float(fleet.total[MEMORY].astype(np.float64).sum()))
    return np.asarray(fleet.settings.balance.move_cost * moved / memory)


def _able(fleet: Fleet, guests: Sequence[GuestRequest]) -> NDArray[np.bool_]:
    """Return for each guest which nodes could have it if they had the room and rules about other guests allowed."""
    able = np.ones((len(guests), len(fleet.nodes)), dtype=bool)
    for i, guest in enumerate(guests):
        if (refused := refused_by_abilities(fleet, guest)) is not None:
            able[i] = ~refused
    return able
