"""Giving a stopped guest another name.

Its object in the state moves from one key to another in one transaction, and with it everything that names it; before, its definition
goes from its node, where the guest controller makes one of the new name.
"""

import contextlib
from collections.abc import Callable
from typing import Final

from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_ERROR,
    GUEST_PHASE_HIBERNATED,
    GUEST_PHASE_PENDING,
    GUEST_PHASE_STOPPED,
    Guest,
    RenameGuestRequest,
)
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.rule_pb2 import Rule
from gugus.cluster.v1.task_pb2 import Task

from common.errors import already_exists, precondition
from manager.controllers import guest_node
from manager.events import INFO, record
from manager.operations.operation import Operation
from manager.store import Conflict, Store, Txn
from manager.tasks import ENDED

KIND: Final = "rename-guest"

MAX_BYTES: Final = 6 * 1024
"""Of other open tasks that move in the same transaction as the guest, which has a limit (`manager.consensus.types.MAX_PAYLOAD_BYTES`);
the rest follow one by one."""

BATCH_BYTES: Final = 16 * 1024
"""Of tasks that follow in one transaction: some tens of usual ones, far below the limits of a transaction even if all are short."""

Renamed = Callable[[Store, Guest, str, Txn], None]
"""Adds to the transaction that gives a guest a new name whatever else holds the old one."""


def _rename_in_rules(store: Store, guest: Guest, old_name: str, txn: Txn) -> None:
    for rule in store.peek_all(Rule):
        if old_name in rule.spec.guests:
            rule.spec.guests[:] = [guest.meta.name if name == old_name else name for name in rule.spec.guests]
            txn.put(rule, expect_revision=rule.meta.revision)


def _rename_in_guests(store: Store, guest: Guest, old_name: str, txn: Txn) -> None:
    for other in store.peek_all(Guest):
        if old_name in other.spec.boot.after and other.meta.uid != guest.meta.uid:
            names = [guest.meta.name if name == old_name else name for name in other.spec.boot.after]
            other.spec.boot.after[:] = names
            other.spec_number += 1
            txn.put(other, expect_revision=other.meta.revision)


RENAMED: Final[tuple[Renamed, ...]] = (_rename_in_rules, _rename_in_guests)

_STOPPED: Final = (GUEST_PHASE_STOPPED, GUEST_PHASE_HIBERNATED, GUEST_PHASE_ERROR, GUEST_PHASE_PENDING)


class Rename:
    """Work of RenameGuest."""

    kind, verb, cancellable = KIND, "rename", False

    async def run(self, op: Operation) -> str:
        """Rename the guest. Whoever goes on after the transaction, at once or after a crash, finds it under the new name."""
        request, store = op.request(RenameGuestRequest), op.context.store
        new_name = request.new_name
        if op.name == new_name:
            await _move_tasks(store, request.name, new_name)
            return f"renamed from {request.name} to {new_name}"
        refuse_unless_stopped(op.guest)
        if store.peek(Guest, new_name) is not None:
            raise already_exists("guest", new_name, remedy="Choose another name.")
        await op.note("undefine", log=f"being renamed to {new_name}")
        if op.guest.status.node and store.peek(Node, op.guest.status.node) is not None:
            await guest_node.undefine(op.tell, op.name)
        await store.txn(_transaction(store, op, new_name))
        op.name = new_name
        await _move_tasks(store, request.name, new_name)
        return f"renamed from {request.name} to {new_name}"

    async def undo(self, op: Operation) -> None:
        """Have the definition that may be gone made anew."""
        if op.step:

            def again(guest: Guest) -> None:
                guest.status.applied_spec_number = 0

            await op.change(again)


def refuse_unless_stopped(guest: Guest) -> None:
    """Raise GUEST_RUNNING."""
    if guest.status.phase not in _STOPPED:
        raise precondition(
            "GUEST_RUNNING",
            f"guest {guest.meta.name} is not stopped: {guest.status.reason}.",
            remedy=f"`gugus guest stop {guest.meta.name}` first.",
        )


def _transaction(store: Store, op: Operation, new_name: str) -> Txn:
    guest = op.guest
    old_name = guest.meta.name
    txn = Txn().delete(Guest, old_name, expect_revision=guest.meta.revision)
    guest.meta.name = new_name
    guest.status.applied_spec_number = 0
    txn.put(guest, expect_absent=True)
    room = MAX_BYTES
    for task in _tasks(store, old_name):
        size = task.ByteSize()
        if task.meta.name != op.id and (task.state in ENDED or size > room):
            continue
        room -= size
        task.target = f"guest/{new_name}"
        txn.put(task, expect_revision=task.meta.revision)
    for renamed in RENAMED:
        renamed(store, guest, old_name, txn)
    return record(txn, f"guest/{new_name}", "GUEST_RENAMED", f"{old_name} was renamed to {new_name}", INFO)


async def _move_tasks(store: Store, old_name: str, new_name: str) -> None:
    """Let the tasks that are left go with the guest, several at a time; those of a batch in which one changes meanwhile stay behind."""
    batch, size = Txn(), 0
    for task in _tasks(store, old_name):
        task.target = f"guest/{new_name}"
        if size and size + task.ByteSize() > BATCH_BYTES:
            await _commit(store, batch)
            batch, size = Txn(), 0
        batch.put(task, expect_revision=task.meta.revision)
        size += task.ByteSize()
    if size:
        await _commit(store, batch)


async def _commit(store: Store, batch: Txn) -> None:
    with contextlib.suppress(Conflict):
        await store.txn(batch)


def _tasks(store: Store, name: str) -> list[Task]:
    return [task for task in store.peek_all(Task) if task.target == f"guest/{name}"]
