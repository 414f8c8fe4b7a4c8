"""What plans are made of: a cluster as it is in, and what to do, why, and how good that is out.

Invariant: values only. Moves are in the order in which they can be done; those of one wave may run side by side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from planner.fleet import Fleet
from planner.rules import Rule
from planner.settings import Settings
from planner.types import GuestRequest, NodeView


@dataclass(frozen=True, slots=True)
class Cluster:
    """Everything that planning goes by."""

    nodes: Sequence[NodeView]
    guests: Sequence[GuestRequest] = ()
    rules: Sequence[Rule] = ()
    settings: Settings = field(default_factory=Settings)

    def fleet(self) -> Fleet:
        """Return its columns."""
        return Fleet(self.nodes, self.guests, self.rules, self.settings)


@dataclass(frozen=True, slots=True)
class Score:
    """How uneven and unsatisfied a cluster is: 0 is best. `parts` are weighted and sum up to the total."""

    total: float
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Move:
    """Give a guest to a node. `from_node` is empty when it is nowhere; waves count from 1."""

    guest: str
    from_node: str
    to_node: str
    wave: int
    reason: str
    gain: float = 0.0
    """By how much the score falls, of a balancing move."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one node does not get a guest: each reason begins with the filter's name."""

    node: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unplaced:
    """A guest without a place, and the reason host by host."""

    guest: str
    reason: str
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True)
class Eviction:
    """A guest that is stopped to make room for a more important one, before the moves."""

    guest: str
    node: str
    for_guest: str
    reason: str


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A guest that could not be restarted if these nodes were lost together."""

    lost: tuple[str, ...]
    guest: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. `assignments`: each guest's node after it, "" for none."""

    assignments: Mapping[str, str]
    moves: tuple[Move, ...]
    unplaced: tuple[Unplaced, ...]
    before: Score
    after: Score
    evictions: tuple[Eviction, ...] = ()
    shortfalls: tuple[Shortfall, ...] = ()
    """What is not safe from the losses of Settings.spare, as things would be after the plan."""
    notes: tuple[str, ...] = ()
    """What else an operator should know, a sentence each."""
