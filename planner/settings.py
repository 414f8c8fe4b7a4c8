"""What an operator decides about planning, with the defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

CPU_OVERCOMMIT_PERCENT = 400
"""CPUs of guests may sum up to so many hundredths of a host's CPUs (default of cluster.v1.ClusterSettings)."""

MEMORY_OVERCOMMIT_PERCENT = 100
"""Memory of guests may sum up to so many hundredths of a host's memory for guests."""

_NONE: Mapping[str, float] = MappingProxyType({})


class Policy(StrEnum):
    """What makes a node good."""

    SPREAD = "spread"
    """Room that is left: guests share all hosts."""
    PACK = "pack"
    """Room that is taken: guests share as few hosts as they can."""


class SparePolicy(StrEnum):
    """What becomes of a guest that would leave too little room to survive a loss."""

    WARN = "warn"
    REFUSE = "refuse"


class Preemption(StrEnum):
    """Whether a guest without room may take that of others."""

    NEVER = "never"
    LOWER_PRIORITY = "lower-priority"
    """Guests of lower priority are stopped for it, as few and as unimportant as will do."""


@dataclass(frozen=True, slots=True)
class Spare:
    """What must be possible to lose with every guest finding a place among the rest (N+1, N+2)."""

    hosts: int = 0
    """Any so many hosts at once; 0 for none."""
    domain: str = ""
    """Or all hosts with one value of this label, like rack or site; empty for none."""
    policy: SparePolicy = SparePolicy.WARN

    @property
    def asked(self) -> bool:
        """Whether anything is to be kept."""
        return bool(self.hosts or self.domain)


@dataclass(frozen=True, slots=True)
class Balance:
    """When moving a running guest is worth it."""

    max_moves: int = 10
    """Most migrations of a plan."""
    min_gain: float = 1e-5
    """Least by which each migration must lower the score, its cost taken off."""
    gain_margin: float = 0.0
    """Least part of the score that a whole plan must win, 0 to 1; else nothing moves."""
    move_cost: float = 0.1
    """Cost of moving all memory of all hosts; a migration costs its share, disks that it copies included."""
    moves_at_once_per_node: int = 1
    """Migrations that a node takes part in at the same time."""
    weights: Mapping[str, float] = field(default_factory=lambda: _NONE)
    """Of parts of the score, by name (planner.objective.METRICS); others have their default."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that steers planning beside nodes, guests and rules."""

    cpu_overcommit_percent: int = CPU_OVERCOMMIT_PERCENT
    memory_overcommit_percent: int = MEMORY_OVERCOMMIT_PERCENT
    reserved_memory_bytes: int = 0
    """Of each host that does not say its own."""
    policy: Policy = Policy.SPREAD
    weights: Mapping[str, float] = field(default_factory=lambda: _NONE)
    """Of scores, by name (planner.scores.SCORES); others have the policy's."""
    spare: Spare = field(default_factory=Spare)
    preemption: Preemption = Preemption.NEVER
    balance: Balance = field(default_factory=Balance)
