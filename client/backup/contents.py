"""What of a backup's state a person is told before it is restored."""

import socket
from dataclasses import dataclass, field
from pathlib import Path

from gugus.cluster.v1.backup_pb2 import BackupIdentity
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import Node
from gugus.store.v1 import store_pb2

from client.backup.file import read

PROBE_TIMEOUT_S = 1.0


@dataclass(slots=True)
class Contents:
    """The secrets, the nodes with their addresses, which of them voted, and how many guests there are."""

    identity: BackupIdentity = field(default_factory=BackupIdentity)
    nodes: dict[str, str] = field(default_factory=dict)
    voters: list[str] = field(default_factory=list)
    guests: int = 0
    given: int = 0
    """Guests that a node has."""

    def answering(self) -> list[str]:
        """Return the voters of the backup at whose Raft port something answers."""
        return [name for name in self.voters if _answers(self.nodes[name], self.identity.raft_port)]


def look(path: Path, passphrase: str) -> Contents:
    """Read all of a backup. Raises GugusError as `client.backup.file.read` does."""
    found = Contents()
    for message in read(path, passphrase):
        kind = message.WhichOneof("content")
        if kind == "identity":
            found.identity = message.identity
        elif kind == "state":
            for stored in store_pb2.Snapshot.FromString(message.state).objects:
                _take(found, stored)
    return found


def _take(found: Contents, stored: store_pb2.Object) -> None:
    kind, _, name = stored.key.partition("/")
    if kind == "node":
        node = Node.FromString(stored.value)
        found.nodes[name] = node.spec.address
        if node.status.voter:
            found.voters.append(name)
    elif kind == "guest":
        found.guests += 1
        found.given += bool(Guest.FromString(stored.value).status.node)


def _answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), PROBE_TIMEOUT_S):
            return True
    except OSError:
        return False
