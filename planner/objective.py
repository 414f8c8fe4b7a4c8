"""How good a cluster is: one list of weighted parts, which drives balancing, scores and explanations.

Invariant: 0 is best; the score is a function of who is where alone. The parts that measure evenness are standard
deviations over the nodes that are online of a share that is linear in what guests take, so that what a move changes
can be told of all moves at once (planner.balance).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.fleet import CPU_LOAD, CPUS, DISK, MEMORY, MEMORY_LOAD, MILLION, Fleet, load_of
from planner.plans import Score
from planner.rulebook import Floats, Ints
from planner.settings import Policy, Settings
from planner.types import GuestRequest

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Share:
    """A share of each node that should be even: what is taken of a base, and what a guest adds to what is taken."""

    name: str
    weight: float
    taken: Callable[[Fleet], Ints]
    base: Callable[[Fleet], Ints]
    adds: Callable[[Fleet, GuestRequest], int]


@dataclass(frozen=True, slots=True)
class Count:
    """Something that should not be, counted over the whole cluster."""

    name: str
    weight: float
    of: Callable[[Fleet], float]


def score(fleet: Fleet, weights: Mapping[str, float] | None = None) -> Score:
    """Return how good a fleet is. weights: of all parts; those of its settings when left out."""
    weights = weights_of(fleet.settings) if weights is None else weights
    parts = {}
    for one in METRICS:
        value = float(shares(fleet, one)[fleet.online].std()) if isinstance(one, Share) and fleet.online.any() else 0.0
        parts[one.name] = weights[one.name] * (one.of(fleet) if isinstance(one, Count) else value)
    return Score(sum(parts.values()), parts)


def shares(fleet: Fleet, one: Share) -> Floats:
    """Return a share of each node."""
    return np.asarray(one.taken(fleet) / np.maximum(one.base(fleet), 1))


def weights_of(settings: Settings) -> Mapping[str, float]:
    """Return the weight of each part: under the policy "pack" what is promised need not be even."""
    uneven = {one.name: 0.0 for one in METRICS if one.name in PROMISES} if settings.policy is Policy.PACK else {}
    return {**{one.name: one.weight for one in METRICS}, **uneven, **settings.balance.weights}


def _promised(row: int) -> Callable[[Fleet], Ints]:
    return lambda fleet: fleet.total[row] - fleet.free[row]


def _total(row: int) -> Callable[[Fleet], Ints]:
    return lambda fleet: fleet.total[row]


def _needed(row: int) -> Callable[[Fleet, GuestRequest], int]:
    return lambda fleet, guest: int(fleet.needs(guest)[row])


def _disk_taken(fleet: Fleet) -> Ints:
    taken = fleet.total[DISK] - fleet.free[DISK]
    return taken if fleet.counts_disk else np.zeros_like(taken)


def _disk_needed(fleet: Fleet, guest: GuestRequest) -> int:
    return guest.disk_bytes if fleet.counts_disk else 0


METRICS: tuple[Share | Count, ...] = (
    Share("memory", 1.0, _promised(MEMORY), _total(MEMORY), _needed(MEMORY)),
    Share("cpu", 0.5, _promised(CPUS), _total(CPUS), _needed(CPUS)),
    Share("disk", 0.25, _disk_taken, _total(DISK), _disk_needed),
    Share("cpu-load", 1.0, lambda f: f.load[CPU_LOAD], lambda f: f.cpus * MILLION, lambda f, g: load_of(g)[0]),
    Share("memory-load", 0.5, lambda f: f.load[MEMORY_LOAD], _total(MEMORY), lambda f, g: load_of(g)[1]),
    Count("rules", 1.0, lambda fleet: fleet.rules.cost()),
    Count("unplaced", 1.0, lambda fleet: float(len(fleet.guests) - len(fleet.where))),
)
"""Promised memory, CPUs and disk and the real load of CPUs and memory should be even; rules should be met; guests should
have a place."""

SHARES = tuple(one for one in METRICS if isinstance(one, Share))
PROMISES = ("memory", "cpu", "disk")
