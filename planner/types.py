"""What the planner is asked, what it looks at, and what it answers about one guest.

Invariant: values only. Promised resources of a node count every guest given to it, running or not, for a stopped one
may be started at any time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_NOTHING: Mapping[int, str] = MappingProxyType({})
_NO_LABELS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class GuestRequest:
    """What one guest needs of a node. `kind` is agent.v1.GuestKind; `excluded` are nodes that it must not get."""

    name: str
    kind: int
    cpus: int
    memory_bytes: int
    pools: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()
    pinned: str = ""
    preferred: str = ""
    excluded: frozenset[str] = frozenset()
    machine: str = ""
    """Machine type; empty when any will do."""
    cpu_model: str = ""
    """CPU model that the host itself must have; empty when any will do."""
    abilities: frozenset[str] = frozenset()
    """Of HypervisorFacts.abilities."""
    huge_pages_2m_bytes: int = 0
    huge_pages_1g_bytes: int = 0
    disk_bytes: int = 0
    """What it takes of the node's own disks, which a migration must copy."""
    node: str = ""
    """Where it is; empty when nowhere yet."""
    priority: int = 0
    """Those with more are served first."""
    labels: Mapping[str, str] = field(default_factory=lambda: _NO_LABELS)
    cpu_load: float = 0.0
    """Smoothed part of its own CPUs that is busy, 0 to 1."""
    memory_load: float = 0.0
    """Smoothed part of its own memory that is in use, 0 to 1."""
    after: tuple[str, ...] = ()
    """Guests that are started before it."""
    idle: bool = False
    """It is not to run: that it gives its room up costs nobody anything yet."""
    restarted: bool = True
    """Whether it is given another node when its own is lost: spare room is kept for it."""
    company: tuple["GuestRequest", ...] = ()
    """Guests that come after it to the node that it gets, and so must find room there, too."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node as the planner sees it. `memory_bytes` is what guests may use; `kinds` have a ready hypervisor."""

    name: str
    online: bool
    cordoned: bool = False
    cpus: int = 0
    memory_bytes: int = 0
    kinds: frozenset[int] = frozenset()
    pools: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()
    promised_cpus: int = 0
    promised_memory_bytes: int = 0
    guests: int = 0
    busy_cpus: float = 0.0
    """Smoothed number of CPUs that the promised guests keep busy."""
    used_memory_bytes: int = 0
    """Smoothed memory that they use."""
    offline_reason: str = ""
    kind_reasons: Mapping[int, str] = field(default_factory=lambda: _NOTHING)
    machines: frozenset[str] = frozenset()
    """Machine types; empty when the host does not say what its virtual machines can have."""
    cpu_models: frozenset[str] = frozenset()
    abilities: frozenset[str] = frozenset()
    huge_pages_2m_bytes: int = 0
    huge_pages_1g_bytes: int = 0
    promised_huge_pages_2m_bytes: int = 0
    promised_huge_pages_1g_bytes: int = 0
    disk_bytes: int | None = None
    """Size of its own disks for guests; None when that is not counted."""
    promised_disk_bytes: int = 0
    reserved_memory_bytes: int | None = None
    """Of `memory_bytes`, what guests may not have; None for Settings.reserved_memory_bytes."""
    labels: Mapping[str, str] = field(default_factory=lambda: _NO_LABELS)
    witness: bool = False
    """It only votes: it never has guests, and neither evenness nor spare room is about it."""

    @property
    def usable(self) -> bool:
        """Whether guests can run on it now."""
        return self.online and not self.witness


@dataclass(frozen=True, slots=True)
class Verdict:
    """One node's fitness: every refusal in a sentence that starts with the filter's name, every score weighted."""

    node: str
    fits: bool
    refusals: tuple[str, ...]
    scores: tuple[tuple[str, float], ...]
    score: float


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a guest goes and why. `node` is empty when none fits; `hopeless` when waiting for room cannot help."""

    node: str
    verdicts: tuple[Verdict, ...]
    reason: str
    hopeless: bool = False
    left_out: int = 0
    """Nodes that have no verdict here, because only so many were asked for."""
