"""The state of a cluster as the cluster that comes after it takes it over: the same objects, and nothing believed of what runs where.

Invariant: everything that fences is raised above all that the cluster before may have used since this state, even if it lives on: an agent
that has seen any of its epochs or generations takes ours for newer. Pure, and of bounded memory: piece in, piece out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError
from gugus.cluster.v1.cluster_pb2 import Cluster, ManagerLease
from gugus.cluster.v1.event_pb2 import Event
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_UNKNOWN, Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_JOINING, Node
from gugus.store.v1 import store_pb2

from common.errors import GugusError, precondition
from manager.store.kinds import Stored, class_of, decode, encode, key, new

STEP: Final = 1_000_000_000
"""Epochs, generations and revisions are raised by so much. The cluster before, raising one of them once a second, would need 31 years to
catch up; and the first digits of a number tell how often its cluster was recovered."""


@dataclass(frozen=True, slots=True)
class NewLife:
    """What the new cluster is: its id, and the node that founds it. key_sha256: of the key in that node's certificate, empty when the node
    has none. event: what is written down of it."""

    cluster_name: str
    cluster_id: str
    node: str
    address: str
    agent_port: int
    key_sha256: bytes
    event: Event


def reborn(pieces: Iterable[bytes], life: NewLife) -> Iterator[bytes]:
    """Yield the new cluster's state, made of pieces of the old one's.

    Raises GugusError STATE_INVALID when they are no state of the cluster of that name; what was yielded before is of no use then.
    """
    made = _Rebirth(life)
    for piece in pieces:
        yield made.piece(piece)
    yield made.rest()


class _Rebirth:
    """One pass over a state."""

    def __init__(self, life: NewLife) -> None:
        self._life = life
        self._version = self._revision = 0
        self._clusters = 0
        self._founder_seen = False
        self._changes: Mapping[str, Callable[[Any], Stored | None]] = {
            "cluster": self._cluster,
            "manager_lease": self._lease,
            "node": self._node,
            "guest": self._guest,
            "token": lambda _: None,  # they pin the certificate of the CA of before
        }

    def piece(self, data: bytes) -> bytes:
        """Return the new form of a piece."""
        try:
            piece = store_pb2.Snapshot.FromString(data)
            objects = [changed for o in piece.objects if (changed := self._object(o)) is not None]
        except DecodeError as error:
            raise _invalid(f"it cannot be read: {error}") from error
        self._version = piece.version
        self._revision = piece.revision = piece.revision + STEP
        del piece.objects[:]
        piece.objects.extend(objects)
        return piece.SerializeToString()

    def rest(self) -> bytes:
        """Return the last piece: what is new. Raises GugusError STATE_INVALID."""
        if self._clusters != 1:
            raise _invalid(
                "it holds no cluster: a manager that was being added when the others were lost has nothing to go on with"
            )
        added: list[Stored] = [self._life.event]
        if not self._founder_seen:
            node = new(Node, self._life.node)
            added.append(self._founder(node))
        piece = store_pb2.Snapshot(version=self._version, revision=self._revision)
        for obj in added:
            piece.objects.add(
                key=key(obj),
                value=encode(obj),
                create_revision=self._revision,
                mod_revision=self._revision,
                version=1,
            )
        return piece.SerializeToString()

    def _object(self, stored: store_pb2.Object) -> store_pb2.Object | None:
        kind = stored.key.partition("/")[0]
        if kind not in self._changes:
            return stored
        changed = self._changes[kind](decode(class_of(kind), stored.value, 0))
        if changed is None:
            return None
        stored.value = encode(changed)
        return stored

    def _cluster(self, cluster: Cluster) -> Cluster:
        self._clusters += 1
        if cluster.meta.name != self._life.cluster_name:
            raise _invalid(f'it is of the cluster "{cluster.meta.name}", not "{self._life.cluster_name}"')
        cluster.former_ids.append(cluster.cluster_id)
        cluster.cluster_id = self._life.cluster_id
        cluster.generation_floor += STEP
        del cluster.alarms[:]
        return cluster

    def _lease(self, lease: ManagerLease) -> ManagerLease:
        lease.holder = ""
        lease.epoch += STEP
        return lease

    def _node(self, node: Node) -> Node:
        status = node.status
        status.former, status.voter, status.retiring = True, False, False
        status.ClearField("fence")
        status.state = NODE_STATE_JOINING
        status.reason = "from before the recovery of the cluster; not joined anew yet"
        return self._founder(node) if node.meta.name == self._life.node else node

    def _founder(self, node: Node) -> Node:
        self._founder_seen = True
        node.spec.address, node.spec.agent_port = self._life.address, self._life.agent_port
        status = node.status
        status.former, status.voter, status.key_sha256 = True, True, self._life.key_sha256
        status.state = NODE_STATE_JOINING
        status.reason = "founding node of the recovered cluster, not heard of yet"
        return node

    def _guest(self, guest: Guest) -> Guest:
        guest.meta.generation += STEP
        status = guest.status
        status.inherited = True
        if status.node:
            status.phase = GUEST_PHASE_UNKNOWN
            status.reason = f"from before the recovery of the cluster; {status.node} has not been heard of since"
        for field in ("observed", "addresses", "mode"):
            status.ClearField(field)
        return guest


def _invalid(why: str) -> GugusError:
    return precondition(
        "STATE_INVALID",
        f"this state cannot be recovered: {why}.",
        remedy="Try another surviving manager, or `gugus cluster restore` with a backup.",
    )
