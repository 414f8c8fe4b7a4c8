"""The replicated state of the simulation: one log that members apply late, each transaction with its compares.

A small model of manager.store over consensus: linearizable commits by whoever leads and reaches a majority, lost
answers, and replicas that lag.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gugus.cluster.v1.guest_pb2 import GuestPhase
from gugus.cluster.v1.node_pb2 import NodeState


@dataclass(frozen=True, slots=True)
class Node:
    state: NodeState.ValueType
    boot_id: str = ""
    lapse_number: int = 0
    fired: bool = False
    """Its fence devices are to be used, or were."""
    confirmed: tuple[str, int] | None = None
    """Boot and lapse of the incarnation that a person saw off."""


@dataclass(frozen=True, slots=True)
class Guest:
    node: str
    generation: int
    phase: GuestPhase.ValueType
    migration: tuple[str, int] | None = None
    """Target, and the generation that it was granted."""


@dataclass(frozen=True, slots=True)
class Lease:
    holder: str
    epoch: int
    renewals: int


Object = Node | Guest | Lease


@dataclass(frozen=True, slots=True)
class Txn:
    compares: Mapping[str, int]
    puts: Mapping[str, Object]


@dataclass(slots=True)
class State:
    """Objects by key, each with the revision of its last change."""

    revision: int = 0
    objects: dict[str, tuple[Object, int]] = field(default_factory=dict)

    def apply(self, txn: Txn) -> bool:
        if any(self.objects.get(key, (None, 0))[1] != revision for key, revision in txn.compares.items()):
            return False
        self.revision += 1
        for key, value in txn.puts.items():
            self.objects[key] = (value, self.revision)
        return True

    def revision_of(self, key: str) -> int:
        return self.objects[key][1] if key in self.objects else 0

    def node(self, name: str) -> Node:
        found = self.objects[f"node/{name}"][0]
        assert isinstance(found, Node)
        return found

    def guests(self) -> dict[str, Guest]:
        found = ((key, value) for key, (value, _) in self.objects.items())
        return {key.removeprefix("guest/"): value for key, value in found if isinstance(value, Guest)}

    def lease(self) -> tuple[Lease, int] | None:
        if "lease" not in self.objects:
            return None
        value, revision = self.objects["lease"]
        assert isinstance(value, Lease)
        return value, revision
