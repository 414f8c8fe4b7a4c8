"""The replicated state of the simulation: one log that members apply late, each transaction with its compares.

A small model of manager.store over consensus: linearizable commits by whoever leads and reaches a majority, lost
answers, and replicas that lag. Objects are the product's messages where it has them.

Invariant: what is stored is shared by all replicas and never changed; whoever changes an object copies it first.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeAlias, TypeVar

from gugus.cluster.v1.cluster_pb2 import Cluster
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.rule_pb2 import Rule

M = TypeVar("M", Guest, Node, Rule, Cluster)


@dataclass(frozen=True, slots=True)
class Lease:
    """The acting manager's lease."""

    holder: str
    epoch: int
    renewals: int


class Course(Enum):
    """How far a task is."""

    OPEN = auto()
    DONE = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class Move:
    """The task of moving a guest. target: empty for any node that fits. restart: it is stopped for it, not moved as it runs.

    at_ns: when it was begun, on the clock that everybody shares.
    """

    name: str
    guest: str
    target: str
    actor: str
    restart: bool = False
    at_ns: int = 0
    course: Course = Course.OPEN
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Drain:
    """The task of emptying a node, or (back) of bringing its guests back. leave: they need not come."""

    name: str
    node: str
    back: bool = False
    leave: bool = False
    maintenance: bool = True
    course: Course = Course.OPEN
    message: str = ""


@dataclass(frozen=True, slots=True)
class Rolling:
    """The task of rebooting hosts one after another. notes: how far it is, a RollingReboot."""

    name: str
    notes: bytes
    course: Course = Course.OPEN


@dataclass(frozen=True, slots=True)
class Balance:
    """The task of evening the cluster out, with at most so many moves. notes: how far it is, BalanceNotes."""

    name: str
    notes: bytes
    max_moves: int
    course: Course = Course.OPEN


Object: TypeAlias = Node | Guest | Rule | Cluster | Lease | Move | Drain | Rolling | Balance

LEASE = "lease/acting"
CLUSTER = "cluster/it"


@dataclass(frozen=True, slots=True)
class Txn:
    """A change of the state: done as a whole if each key in `compares` is at that revision still (0: is not there).

    tells: what the cluster's log says of it, as pairs of what it is about and a text.
    """

    compares: Mapping[str, int]
    puts: Mapping[str, Object]
    deletes: tuple[str, ...] = ()
    tells: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class State:
    """Objects by key ("kind/name"), each with the revision of its last change."""

    revision: int = 0
    changes: int = 0
    """Transactions that changed more than the lease."""
    revisions: dict[str, int] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    guests: dict[str, Guest] = field(default_factory=dict)
    rules: dict[str, Rule] = field(default_factory=dict)
    moves: dict[str, Move] = field(default_factory=dict)
    drains: dict[str, Drain] = field(default_factory=dict)
    reboots: dict[str, Rolling] = field(default_factory=dict)
    balances: dict[str, Balance] = field(default_factory=dict)
    cluster: Cluster = field(default_factory=Cluster)
    lease: Lease | None = None

    def apply(self, txn: Txn) -> bool:
        """Apply a transaction; return whether its compares held."""
        if any(self.revisions.get(key, 0) != revision for key, revision in txn.compares.items()):
            return False
        self.revision += 1
        self.changes += any(not isinstance(value, Lease) for value in txn.puts.values()) or bool(txn.deletes)
        for key, value in txn.puts.items():
            self._put(key, value)
        for key in txn.deletes:
            self._kind(key).pop(key.partition("/")[2], None)
            self.revisions.pop(key, None)
        return True

    def revision_of(self, key: str) -> int:
        """Return the revision of an object's last change, 0 if it is not there."""
        return self.revisions.get(key, 0)

    def on(self, node: str) -> Iterable[Guest]:
        """Return the guests that a node was given."""
        return [guest for guest in self.guests.values() if guest.status.node == node]

    def open_moves(self) -> list[Move]:
        """Return the moves that are under way or wait for their turn."""
        return [move for move in self.moves.values() if move.course is Course.OPEN]

    def _put(self, key: str, value: Object) -> None:
        if isinstance(value, Lease):
            self.lease = value
        elif isinstance(value, Cluster):
            self.cluster = value
        else:
            self._kind(key)[key.partition("/")[2]] = value
        self.revisions[key] = self.revision

    def _kind(self, key: str) -> dict[str, Object]:
        kinds: dict[str, dict[str, Object]] = {
            "node": self.nodes,  # type: ignore[dict-item]
            "guest": self.guests,  # type: ignore[dict-item]
            "rule": self.rules,  # type: ignore[dict-item]
            "move": self.moves,  # type: ignore[dict-item]
            "drain": self.drains,  # type: ignore[dict-item]
            "reboot": self.reboots,  # type: ignore[dict-item]
            "balance": self.balances,  # type: ignore[dict-item]
        }
        return kinds[key.partition("/")[0]]


def copy_of(message: M) -> M:
    """Return a message that may be changed."""
    copied = type(message)()
    copied.CopyFrom(message)
    return copied


def guest_key(name: str) -> str:
    """Return the key of a guest."""
    return f"guest/{name}"


def node_key(name: str) -> str:
    """Return the key of a node."""
    return f"node/{name}"
