"""What the guest controller does about guests under HA beyond their power: counts failures, moves a guest off a node that it fails on.

What it decides is `manager.ha.guest_machine`'s.
"""

from gugus.agent.v1.task_pb2 import TASK_STATE_SUCCEEDED
from gugus.cluster.v1.guest_pb2 import HA_STATE_RELOCATE, HA_STATE_STARTED, Guest
from gugus.cluster.v1.migration_pb2 import MigrateGuestRequest
from gugus.cluster.v1.task_pb2 import Task

from manager.controllers.context import Context
from manager.controllers.placing import rooms, terms
from manager.events import ERROR, WARNING, record
from manager.ha import account
from manager.ha.failing import elsewhere, fail
from manager.ha.guest_machine import Action, Event
from manager.operations.registry import MIGRATE
from manager.store import Txn
from manager.tasks import ENDED, HA, new_task


def look(context: Context, guest: Guest, txn: Txn) -> bool:
    """Bring HA's account of a guest up to date with what is asked of it and what became of its relocation. Returns whether it changed."""
    if account.follow(guest):
        return True
    if account.changed(guest):
        return account.happen(guest, Event.CHANGE, "its spec was changed") is not None
    if guest.status.ha.state != HA_STATE_RELOCATE:
        return False
    task = context.store.peek(Task, guest.status.ha.task)
    if task is not None and task.state not in ENDED:
        return False
    if task is not None and task.state == TASK_STATE_SUCCEEDED:
        return account.happen(guest, Event.MOVE, f"moved to {guest.status.node}") is not None
    why = task.error.message if task is not None else "its task is gone"
    _fail(context, guest, Event.STAY, f"could not be moved: {why}", txn)
    return True


def failed(context: Context, guest: Guest, why: str, txn: Txn) -> Action | None:
    """Count that a guest could not be started or did not last; None when HA has nothing to do with that.

    What is begun because of it is put into `txn`; the guest's reason says how it goes on.
    """
    if guest.status.ha.state != HA_STATE_STARTED:
        return None
    return _fail(context, guest, Event.FAIL, why, txn)


def _fail(context: Context, guest: Guest, event: Event, why: str, txn: Txn) -> Action | None:
    decision = elsewhere(guest, rooms(context, guest), terms(context), context.load_of)
    action = fail(guest, event, why, decision)
    if action is Action.GIVE_UP:
        text = f"{guest.meta.name} is given up: {why}"
        record(txn, f"guest/{guest.meta.name}", "HA_GAVE_UP", text, ERROR)
    if action is Action.RELOCATE:
        name, ha = guest.meta.name, guest.status.ha
        request_id = f"{guest.meta.uid} {guest.meta.generation} {ha.relocations}"  # asked for again, it is the same one
        request = MigrateGuestRequest(name=name, target=decision.node, request_id=request_id)
        task = new_task(MIGRATE, f"guest/{name}", HA, request_id, request)
        ha.task = task.meta.name
        txn.put(task, expect_absent=True)
        record(txn, f"guest/{name}", "HA_RELOCATES", f"{name}: {ha.reason}", WARNING)
    return action
