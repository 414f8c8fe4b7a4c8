"""Tasks about guests: which are open, when each is done, and how it ends.

A task about a guest does no work itself. It asks for something by the change of spec that was committed with it, and it is done when the
guest is so. Operations (`manager.operations`) are tasks that do work; here they only end when their guest is gone.
"""

from google.protobuf.wrappers_pb2 import UInt64Value
from gugus.agent.v1.guest_pb2 import GUEST_STATE_PAUSED, GUEST_STATE_UNSPECIFIED
from gugus.agent.v1.task_pb2 import TASK_STATE_FAILED, TASK_STATE_SUCCEEDED
from gugus.cluster.v1 import guest_pb2
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_PAUSED,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STOPPED,
    POWER_OFF,
    POWER_ON,
    POWER_PAUSED,
    Guest,
)
from gugus.cluster.v1.task_pb2 import Task

from common.errors import GugusError, aborted, to_status
from manager.controllers.guest_step import settled_phase
from manager.operations.registry import KINDS
from manager.store import Store, Txn
from manager.tasks import active, finish, log_line

CREATE = "create-guest"
START = "start-guest"
STOP = "stop-guest"
UPDATE = "update-guest"
SUSPEND = "suspend-guest"
RESUME = "resume-guest"
DELETE = "delete-guest"

_WANTS = {START: POWER_ON, RESUME: POWER_ON, STOP: POWER_OFF, SUSPEND: POWER_PAUSED}
"""Power that a task asks for."""

_WORDS = {POWER_ON: "start", POWER_OFF: "stop", POWER_PAUSED: "be held"}


class GuestTasks:
    """The open tasks of guests, as the store has them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def open(self, guest: str) -> list[Task]:
        """Return the tasks about a guest that have not ended, operations apart, oldest first."""
        return [task for task in self._all(guest) if task.kind not in KINDS]

    def stop_timeout_ms(self, guest: str, default: int) -> int:
        """Return how long the guest may take to shut down: what the newest open stop asked for."""
        for task in reversed(self.open(guest)):
            if task.kind == STOP:
                request = guest_pb2.StopGuestRequest.FromString(task.request)
                return 0 if request.force else request.timeout_ms or default
            if task.kind == DELETE:
                return 0
        return default

    def keeps_disks(self, guest: str) -> bool:
        """Return whether a guest that is being deleted leaves its volumes behind: whoever asked last decides."""
        for task in reversed(self.open(guest)):
            if task.kind == DELETE:
                return guest_pb2.DeleteGuestRequest.FromString(task.request).keep_disks
        return False

    def creates(self, guest: str) -> bool:
        """Return whether a guest is still being created: should that fail, it is taken back."""
        return any(task.kind == CREATE for task in self.open(guest))

    async def settle(self, name: str, guest: Guest | None) -> bool:
        """End the tasks whose wish has come true, or cannot any more; and note the guest's reason in the others' logs.

        Returns whether anything was written, so that what the caller knows of the guest may be old.
        """
        wrote = False
        for task in self._all(name) if guest is None else self.open(name):
            if guest is None:
                if task.kind == DELETE:
                    finish(task, TASK_STATE_SUCCEEDED, "deleted")
                else:
                    _give_up(task, "the guest is gone")
            elif _fulfilled(task, guest):
                finish(task, TASK_STATE_SUCCEEDED, _how(task, guest))
            elif superseded := _superseded(task, guest):
                _give_up(task, superseded)
            elif not log_line(task, guest.status.reason):
                continue
            await self._store.txn(Txn().put(task, expect_revision=task.meta.revision))
            wrote = True
        return wrote

    async def fail(self, name: str, error: GugusError, txn: Txn) -> bool:
        """Fail the open tasks of a guest. Returns whether one of them was its creation, which is then to be taken back."""
        created = False
        for task in self.open(name):
            if task.kind == DELETE:
                log_line(task, str(error))
            else:
                created = created or task.kind == CREATE
                task.error.CopyFrom(to_status(error))
                finish(task, TASK_STATE_FAILED, str(error))
            txn.put(task, expect_revision=task.meta.revision)
        return created

    async def end_deleted(self, name: str, txn: Txn) -> None:
        """End a guest's tasks in the transaction that deletes it."""
        for task in self._all(name):
            if task.kind == DELETE:
                finish(task, TASK_STATE_SUCCEEDED, "deleted")
            else:
                _give_up(task, "the guest was deleted meanwhile")
            txn.put(task, expect_revision=task.meta.revision)

    def _all(self, guest: str) -> list[Task]:
        return active(self._store, f"guest/{guest}")


def _fulfilled(task: Task, guest: Guest) -> bool:
    phase = guest.status.phase
    if task.kind == CREATE:
        return phase == _wanted_phase(guest) and guest.status.applied_spec_number >= min(guest.spec_number, 1)
    if task.kind == UPDATE:
        number = UInt64Value.FromString(task.step_notes).value
        applied = guest.status.applied_spec_number >= number and phase == _wanted_phase(guest)
        return applied or not guest.status.node  # it is made by its new spec once it has a node
    if task.kind == RESUME:
        return phase == GUEST_PHASE_RUNNING and guest.status.observed != GUEST_STATE_PAUSED
    if task.kind == SUSPEND:
        return phase == GUEST_PHASE_PAUSED
    if task.kind == START:
        return phase == GUEST_PHASE_RUNNING and guest.spec.power == POWER_ON
    return task.kind == STOP and phase == GUEST_PHASE_STOPPED and guest.spec.power == POWER_OFF


def _wanted_phase(guest: Guest) -> int:
    """Return the phase that the power asked for leads to, for now."""
    if guest.status.HasField("preempted"):
        return settled_phase(guest, GUEST_STATE_UNSPECIFIED)
    if guest.spec.power == POWER_ON and not guest.spec.template:
        return GUEST_PHASE_RUNNING
    if guest.spec.power == POWER_PAUSED and not guest.spec.template:
        return GUEST_PHASE_PAUSED
    return settled_phase(guest, GUEST_STATE_UNSPECIFIED)


def _how(task: Task, guest: Guest) -> str:
    if task.kind == UPDATE and guest.status.pending:
        fields = ", ".join(change.field for change in guest.status.pending)
        return f"changed; waiting for its next start: {fields}"
    return guest.status.reason


def _give_up(task: Task, reason: str) -> None:
    task.error.CopyFrom(to_status(aborted("SUPERSEDED", f"{reason}.")))
    finish(task, TASK_STATE_FAILED, reason)


def _superseded(task: Task, guest: Guest) -> str:
    """Return why a task's wish is no more asked for, or an empty string."""
    wanted = _WANTS.get(task.kind, guest.spec.power)
    if wanted == guest.spec.power:
        return ""
    return f"the guest was asked to {_WORDS.get(guest.spec.power, 'hibernate')} meanwhile"
