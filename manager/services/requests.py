"""What several services do with requests: do them once, upon the newest state; check the nodes they name, find who uses a thing."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.network_pb2 import Network
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.pool_pb2 import Pool
from gugus.cluster.v1.task_pb2 import Task

from common.errors import already_exists, not_found, precondition
from manager.controllers.context import Context
from manager.events import record
from manager.services.forward import actor
from manager.store import Conflict, Store, Txn
from manager.store.kinds import kind_of
from manager.tasks import task_id

T = TypeVar("T", Pool, Network)
R = TypeVar("R")

MADE_TIMEOUT_S = 10.0
"""A node that takes longer to make a pool or a network is not waited for."""

TOLD_LOOK_S = 0.05
"""So often it is looked whether a node's beat has told of a new pool or network."""

UPON_LATEST_TRIES = 8
"""Times that a change is tried when controllers write to the same object meanwhile; each of them writes a few times a second at most."""


async def upon_latest(change: Callable[[], Awaitable[R]]) -> R:
    """Read, check and write; again from the reading on when another wrote in between. Raises Conflict at last."""
    for _ in range(UPON_LATEST_TRIES - 1):
        with contextlib.suppress(Conflict):
            return await change()
    return await change()


async def change_once(store: Store, what: str, request_id: str, change: Callable[[str], Awaitable[None]]) -> None:
    """Read, check and write upon the newest state, unless a call with the same idempotency key has done it already.

    what: the call and its object. change: commits one transaction, under the request id that it is given. Each attempt has one of its
    own, for what became of a transaction is what its repetition is told. Raises what `change` raises, Conflict at last.
    """
    for attempt in range(UPON_LATEST_TRIES):
        key = f"{actor()} {what} {request_id} {attempt}" if request_id else ""
        outcome = await store.outcome(key) if key else None
        if outcome is False:
            continue
        try:
            if outcome is None:
                await change(key)
            return
        except Conflict:
            if attempt == UPON_LATEST_TRIES - 1:
                raise


async def begun(store: Store, kind: str, target: str, request_id: str) -> Task | None:
    """Return the task that an earlier call of the same actor for the same work, with the same idempotency key, began."""
    return await store.get(Task, task_id(kind, target, str(actor()), request_id)) if request_id else None


async def begin(store: Store, task: Task, txn: Txn) -> Task:
    """Commit a task together with what it asks for; a call repeated meanwhile gets the other one's task. Raises Conflict."""
    try:
        result = await store.txn(txn.put(task, expect_absent=True))
    except Conflict:
        if other := await store.get(Task, task.meta.name):
            return other
        raise
    task.meta.revision = result.revision
    return task


async def create_once(store: Store, obj: T, request_id: str) -> T:
    """Write a new object; a repeated request with the same idempotency key gets the object that the first one made.

    Raises ALREADY_EXISTS.
    """
    kind, name = kind_of(obj), obj.meta.name
    txn = Txn(f"{actor()} {kind}/{name} {request_id}" if request_id else "", spare_reserve=True)
    txn.put(obj, expect_absent=True)
    record(txn, f"{kind}/{name}", f"{kind.upper()}_CREATED", f"created by {actor()}")
    try:
        await store.txn(txn)
    except Conflict:
        raise already_exists(kind, name, remedy="Choose another name.") from None
    return await store.require(type(obj), name)


async def made_on_nodes(context: Context, obj: T) -> T:
    """Wait until the controllers have made a new pool or network on the nodes that are online, and return it.

    The nodes have told of it by then, too: whoever makes a guest next may have it on any of them.

    One that a node refuses is taken back as a whole, so that the call can be repeated when the cause is gone. Nodes that do not answer
    in time get it when they do. Raises FAILED_PRECONDITION `<KIND>_NOT_READY` with each node's reason.
    """
    store, kind, name = context.store, kind_of(obj), obj.meta.name
    hosts = {node.meta.name for node in context.online_nodes() if not node.spec.witness}
    wanted = hosts & set(obj.nodes) if obj.nodes else hosts
    revision = store.revision
    current = store.peek(type(obj), name) or obj
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(MADE_TIMEOUT_S):
            changes = store.watch([f"{kind}/{name}"], from_revision=revision)
            while not wanted <= set(current.status.nodes) and not _refusals(current):
                change = await anext(changes)
                if change.name == name and not change.deleted:
                    current = change.obj
            while not _refusals(current) and not _told_by(store, wanted, kind, name):  # noqa: ASYNC110  (of many nodes)
                await asyncio.sleep(TOLD_LOOK_S)
    if refusals := _refusals(current):
        await upon_latest(lambda: _take_back(store, current, "; ".join(refusals)))
        raise precondition(
            f"{kind.upper()}_NOT_READY",
            f'{kind} "{name}" cannot be made: {"; ".join(refusals)}',
            remedy="It was taken back everywhere; repeat the call when the cause is gone, or name other nodes for it.",
        )
    return current


def _told_by(store: Store, nodes: Iterable[str], kind: str, name: str) -> bool:
    """Return whether nodes say themselves that they have a pool or network; one that is gone is not waited for."""
    told = [node.status.facts for node in map(partial(store.peek, Node), nodes) if node is not None]
    return all(name in (facts.pools if kind == "pool" else facts.networks) for facts in told)


async def _take_back(store: Store, obj: T, why: str) -> None:
    """Delete an object; what nodes told of it meanwhile stays in its status, for it says which of them are to remove it."""
    kind, name = kind_of(obj), obj.meta.name
    newest = await store.get(type(obj), name)
    if newest is None:
        return
    newest.meta.deleting = True
    txn = Txn().put(newest, expect_revision=newest.meta.revision)
    await store.txn(record(txn, f"{kind}/{name}", f"{kind.upper()}_TAKEN_BACK", why))


def _refusals(obj: Pool | Network) -> list[str]:
    states: list[tuple[str, Any]] = sorted(obj.status.nodes.items())
    return [state.reason for _, state in states if not state.ready]


def known_nodes(store: Store, names: Iterable[str]) -> None:
    """Raise NOT_FOUND for the first name that is no node's."""
    for name in names:
        if store.peek(Node, name) is None:
            have = ", ".join(node.meta.name for node in store.peek_all(Node))
            raise not_found("node", name, remedy=f"There are: {have}.")


def known_hosts(store: Store, names: Iterable[str]) -> None:
    """Raise NOT_FOUND for the first name that is no node's, FAILED_PRECONDITION NODE_IS_WITNESS for one that never has guests."""
    known_nodes(store, names)
    for name in names:
        node = store.peek(Node, name)
        if node is not None and node.spec.witness:
            raise precondition(
                "NODE_IS_WITNESS",
                f"node {name} is a witness: it votes, and has no guests, pools or networks.",
                remedy="Name nodes that run guests; `gugus node list` shows which are witnesses.",
            )


def users_of(guests: Sequence[Guest], *, pool: str = "", image: str = "", network: str = "") -> list[str]:
    """Return the names of the guests that use a pool (or an image in it) or a network."""
    return sorted(
        guest.meta.name
        for guest in guests
        if (pool and any(used == pool and image in ("", of) for used, of in _sources(guest)))
        or (network and any(nic.network == network for nic in guest.spec.nics))
    )


def _sources(guest: Guest) -> Iterable[tuple[str, str]]:
    """Yield pool and image of everything of a guest that lies in a pool."""
    for disk in [*guest.spec.disks, *guest.status.unused_disks, *guest.status.leaving_disks]:
        yield disk.pool, disk.image
    for cdrom in guest.spec.virtual_machine.cdroms:
        yield cdrom.pool, cdrom.image
    if guest.status.hibernation_volume:
        yield guest.status.hibernation_pool, ""
