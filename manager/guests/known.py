"""What of the state a guest's spec is checked against, and the fault of naming what is not there."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.network_pb2 import Network
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.pool_pb2 import Image, Pool
from gugus.cluster.v1.project_pb2 import Project

from common.errors import GugusError, Violation, not_found
from manager.store import Store


@dataclass(frozen=True)
class Known:
    """What of the state a guest is checked against."""

    guests: Sequence[Guest]
    nodes: Mapping[str, Node]
    pools: Mapping[str, Pool]
    networks: Mapping[str, Network]
    images: Mapping[str, Image]
    projects: Mapping[str, Project] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store) -> Self:
        """Return what the local replica has."""
        return cls(
            store.peek_all(Guest),
            {node.meta.name: node for node in store.peek_all(Node)},
            {pool.meta.name: pool for pool in store.peek_all(Pool)},
            {network.meta.name: network for network in store.peek_all(Network)},
            {image.meta.name: image for image in store.peek_all(Image)},
            {project.meta.name: project for project in store.peek_all(Project)},
        )

    def image(self, pool: str, image: str) -> Image | None:
        """Return an image of a pool, None when there is none."""
        return self.images.get(f"{pool}.{image}")


def shared(pool: Pool) -> bool:
    """Return whether every node sees the same in a pool."""
    return pool.spec.dir.shared


def absent(kind: str, field_: str, name: str, have: Iterable[str]) -> GugusError:
    """Return the fault of a field that names what does not exist."""
    names = ", ".join(sorted(have)) or "none yet"
    error = not_found(kind, name, remedy=f"{field_} must be one of: {names}.")
    error.field = field_
    error.violations = (Violation(field_, error.message),)
    return error
