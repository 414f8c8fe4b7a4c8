"""Which kinds of objects there are: the one table from a kind's name in keys to its message.

Invariant: a kind's name never changes, for it stands in every key; `meta.revision` of stored bytes is always 0, for
the store knows it better.
"""

import uuid
from collections.abc import Mapping
from typing import Any, Final, Protocol, TypeVar

from google.protobuf.message import Message
from gugus.cluster.v1 import (
    cluster_pb2,
    event_pb2,
    guest_pb2,
    meta_pb2,
    network_pb2,
    node_pb2,
    pool_pb2,
    project_pb2,
    rule_pb2,
    snapshot_pb2,
    task_pb2,
)

LEASE_NAME: Final = "acting"
"""Name of the one ManagerLease."""

_KINDS: Final[Mapping[str, type[Message]]] = {
    "cluster": cluster_pb2.Cluster,
    "manager_lease": cluster_pb2.ManagerLease,
    "node": node_pb2.Node,
    "fence_secrets": node_pb2.FenceSecrets,
    "guest": guest_pb2.Guest,
    "pool": pool_pb2.Pool,
    "network": network_pb2.Network,
    "image": pool_pb2.Image,
    "project": project_pb2.Project,
    "rule": rule_pb2.Rule,
    "snapshot": snapshot_pb2.Snapshot,
    "task": task_pb2.Task,
    "token": cluster_pb2.Token,
    "event": event_pb2.Event,
}
_NAMES: Final = {message: kind for kind, message in _KINDS.items()}


class Stored(Protocol):
    """What all stored messages have in common."""

    @property
    def meta(self) -> meta_pb2.Meta:
        """The head."""
        ...

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes:
        """Return the binary form."""
        ...

    def CopyFrom(self, other: Any) -> None:
        """Become a copy of another."""
        ...


T = TypeVar("T", bound=Stored)


def kinds() -> tuple[str, ...]:
    """Return the names of all kinds."""
    return tuple(_KINDS)


def kind_of(of: type[Stored] | Stored) -> str:
    """Return the kind's name of a message or of its class. Raises TypeError for what is no stored kind."""
    cls = of if isinstance(of, type) else type(of)
    try:
        return _NAMES[cls]  # type: ignore[index]  # a class that is not in the table is answered below
    except KeyError:
        raise TypeError(f"{cls.__name__} is not stored; stored kinds: {', '.join(_KINDS)}") from None


def class_of(kind: str) -> type[Any]:
    """Return the message class of a kind. Raises KeyError."""
    return _KINDS[kind]


def key_for(cls: type[Stored], name: str) -> str:
    """Return the key of a kind's object by its name."""
    return f"{kind_of(cls)}/{name}"


def key(obj: Stored) -> str:
    """Return the key of an object."""
    return f"{kind_of(obj)}/{obj.meta.name}"


def new(cls: type[T], name: str, *, labels: Mapping[str, str] | None = None) -> T:
    """Return a fresh object with its head filled: name, a new uid, the wall clock's time, generation 1."""
    kind_of(cls)
    obj = cls()
    obj.meta.name = name
    obj.meta.uid = str(uuid.uuid4())
    obj.meta.generation = 1
    obj.meta.created_at.GetCurrentTime()
    obj.meta.labels.update(labels or {})
    return obj


def encode(obj: Stored) -> bytes:
    """Return the bytes to store: deterministic, without the revision."""
    bare = type(obj)()
    bare.CopyFrom(obj)
    bare.meta.revision = 0
    return bare.SerializeToString(deterministic=True)


def decode(cls: type[T], value: bytes, revision: int) -> T:
    """Return the object of stored bytes, its revision set. Fields of newer versions are kept. Raises DecodeError."""
    obj: T = cls.FromString(value)  # type: ignore[attr-defined]  # a classmethod of every message
    obj.meta.revision = revision
    return obj
