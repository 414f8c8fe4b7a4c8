"""What several services do with requests: make an object once, check the nodes it names, find who uses a thing."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.network_pb2 import Network
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.pool_pb2 import Pool

from common.errors import already_exists, not_found
from manager.events import record
from manager.services.forward import actor
from manager.store import Conflict, Store, Txn
from manager.store.kinds import kind_of

T = TypeVar("T", Pool, Network)


async def create_once(store: Store, obj: T, request_id: str) -> T:
    """Write a new object; a repeated request with the same idempotency key gets the object that the first one made.

    Raises ALREADY_EXISTS.
    """
    kind, name = kind_of(obj), obj.meta.name
    txn = Txn(f"{actor()} {request_id}" if request_id else "").put(obj, expect_absent=True)
    record(txn, f"{kind}/{name}", f"{kind.upper()}_CREATED", f"created by {actor()}")
    try:
        await store.txn(txn)
    except Conflict:
        raise already_exists(kind, name, remedy="Choose another name.") from None
    return await store.require(type(obj), name)


def known_nodes(store: Store, names: Iterable[str]) -> None:
    """Raise NOT_FOUND for the first name that is no node's."""
    for name in names:
        if store.peek(Node, name) is None:
            have = ", ".join(node.meta.name for node in store.peek_all(Node))
            raise not_found("node", name, remedy=f"nodes: one of {have}.")


def users_of(guests: Sequence[Guest], *, pool: str = "", image: str = "", network: str = "") -> list[str]:
    """Return the names of the guests that use a pool (or an image in it) or a network."""
    return sorted(
        guest.meta.name
        for guest in guests
        if any(disk.pool == pool and image in ("", disk.image) for disk in guest.spec.disks if pool)
        or any(nic.network == network for nic in guest.spec.nics if network)
    )
