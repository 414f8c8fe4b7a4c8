"""Waves: which moves of a plan may run side by side, and in which order guests start.

Invariant: while a wave runs, whichever of its moves are over and whichever are not, every node has room for what it has
and what comes to it: a move's guest counts on both nodes until the wave is over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.fleet import Fleet
from planner.types import GuestRequest


@dataclass(slots=True)
class Waves:
    """Gives each move its wave. The fleet is as it is before the first move; moves are told in their order."""

    fleet: Fleet
    at_once_per_node: int = 1
    _free: NDArray[np.int64] = field(init=False)
    _last: dict[int, int] = field(default_factory=dict)
    """Last wave in which a node takes part."""
    _last_of_rule: dict[str, int] = field(default_factory=dict)
    _taking_part: dict[tuple[int, int], int] = field(default_factory=dict)
    _leaving: dict[tuple[int, int], NDArray[np.int64]] = field(default_factory=dict)
    """What still counts on a node in a wave although its move goes away from there."""

    def __post_init__(self) -> None:
        self._free = self.fleet.free.copy()

    def of(self, guest: GuestRequest, origin: int, target: int) -> int:
        """Return the wave of the next move."""
        needs = self.fleet.needs(guest)
        wave = max(1, self._last.get(origin, 1), self._last.get(target, 1))
        groupings = self.fleet.rules.of(guest)[1]
        for grouping in groupings:
            before = self._last_of_rule.get(grouping.rule.name, 0)
            wave = max(wave, before if grouping.together else before + 1)
        if not self._may_run_beside(wave, needs, origin, target):
            wave += 1
        for node in (origin, target):
            self._last[node] = wave
            self._taking_part[wave, node] = self._taking_part.get((wave, node), 0) + 1
        for grouping in groupings:
            self._last_of_rule[grouping.rule.name] = wave
        self._free[:, origin] += needs
        self._free[:, target] -= needs
        self._leaving[wave, origin] = self._leaving.get((wave, origin), np.zeros_like(needs)) + needs
        return wave

    def _may_run_beside(self, wave: int, needs: NDArray[np.int64], origin: int, target: int) -> bool:
        if max(self._taking_part.get((wave, node), 0) for node in (origin, target)) >= self.at_once_per_node:
            return False
        room = self._free[:, target] - self._leaving.get((wave, target), 0)
        return bool((room[needs > 0] >= needs[needs > 0]).all())


def start_waves(guests: Sequence[GuestRequest]) -> Mapping[str, int]:
    """Return in which wave each guest starts, from 1: after all of these that it comes after. A circle starts as one."""
    known = {guest.name: guest for guest in guests}
    waves: dict[str, int] = {}

    def wave_of(name: str, above: frozenset[str]) -> int:
        if name not in waves:
            before = [one for one in known[name].after if one in known and one not in above]
            found = 1 + max((wave_of(one, above | {name}) for one in before), default=0)
            if above:
                return found
            waves[name] = found
        return waves[name]

    for name in sorted(known):
        wave_of(name, frozenset())
    return waves
