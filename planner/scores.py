"""Scores: which of the fit nodes is best.

Invariant: SCORES is the one list that drives scoring and explaining. Each score lies between 0 and 1 and looks at its
node alone (and at a rule's guests), so that another node's coming or going never changes the order of the rest.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from planner.fleet import CPU_LOAD, CPUS, DISK, MEMORY, MILLION, Fleet
from planner.rulebook import Floats
from planner.settings import Policy, Settings
from planner.types import GuestRequest
from planner.weights import POLICIES

Score = Callable[[Fleet, GuestRequest], Floats | None]
"""Of every node of a fleet; None stands for 0 everywhere."""


def total_of(fleet: Fleet, guest: GuestRequest, weights: Mapping[str, float]) -> Floats:
    """Return the weighted sum of all scores of every node."""
    total = np.zeros(len(fleet.nodes))
    for name, of in SCORES:
        weight = weights.get(name, 0.0)
        if weight and (values := of(fleet, guest)) is not None:
            total += weight * values
    return total


def weights_of(settings: Settings) -> Mapping[str, float]:
    """Return the weight of each score: the policy's, unless the settings have another."""
    return {**POLICIES[settings.policy], **settings.weights}


def _spread(fleet: Fleet, guest: GuestRequest) -> Floats:
    return np.asarray(1.0 / (1 + fleet.counts))


def _left(row: int) -> Score:
    def free(fleet: Fleet, guest: GuestRequest) -> Floats:
        left = np.maximum(fleet.free[row] - fleet.needs(guest)[row], 0)
        return np.asarray(left / np.maximum(fleet.total[row], 1))

    return free


def _free_disk(fleet: Fleet, guest: GuestRequest) -> Floats | None:
    return _left(DISK)(fleet, guest) if guest.disk_bytes else None


def _filled(row: int) -> Score:
    free = _left(row)

    def filled(fleet: Fleet, guest: GuestRequest) -> Floats | None:
        left = free(fleet, guest)
        return None if left is None else 1.0 - left

    return filled


def _in_use(fleet: Fleet, guest: GuestRequest) -> Floats:
    return (fleet.counts > 0).astype(np.float64)


def _calm(fleet: Fleet, guest: GuestRequest) -> Floats | None:
    if not fleet.load[CPU_LOAD].any():
        return None
    return np.asarray(np.clip(1.0 - fleet.load[CPU_LOAD] / (np.maximum(fleet.cpus, 1) * MILLION), 0.0, 1.0))


def _preferred(fleet: Fleet, guest: GuestRequest) -> Floats | None:
    if guest.preferred not in fleet.index:
        return None
    values = np.zeros(len(fleet.nodes))
    values[fleet.index[guest.preferred]] = 1.0
    return values


def _rules(fleet: Fleet, guest: GuestRequest) -> Floats | None:
    affinities, groupings = fleet.rules.of(guest)
    liked = [one.liking() for one in affinities] + [one.liking() for one in groupings if not one.rule.strict]
    return np.asarray(np.mean(liked, axis=0)) if liked else None


SCORES: tuple[tuple[str, Score], ...] = (
    ("spread", _spread),
    ("free-memory", _left(MEMORY)),
    ("free-cpu", _left(CPUS)),
    ("free-disk", _free_disk),
    ("filled-memory", _filled(MEMORY)),
    ("filled-cpu", _filled(CPUS)),
    ("in-use", _in_use),
    ("calm", _calm),
    ("preferred", _preferred),
    ("rules", _rules),
)
"""Name and function of each score, in the order in which they are told."""

WEIGHTS: Mapping[str, float] = MappingProxyType(dict(POLICIES[Policy.SPREAD]))
"""The weights of the default policy."""
