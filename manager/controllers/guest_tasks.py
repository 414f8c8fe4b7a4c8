"""Tasks about guests: which are open, when each is done, and how it ends.

A task about a guest does no work itself. It asks for something by the change of spec that was committed with it, and it is done when the
guest is so.
"""

from gugus.agent.v1.task_pb2 import TASK_STATE_FAILED, TASK_STATE_SUCCEEDED
from gugus.cluster.v1 import guest_pb2
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, GUEST_PHASE_STOPPED, POWER_ON, Guest
from gugus.cluster.v1.task_pb2 import Task

from common.errors import GugusError, aborted, to_status
from manager.store import Store, Txn
from manager.tasks import active, finish, log_line

CREATE = "create-guest"
START = "start-guest"
STOP = "stop-guest"
DELETE = "delete-guest"


class GuestTasks:
    """The open tasks of guests, as the store has them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def open(self, guest: str) -> list[Task]:
        """Return the tasks about a guest that have not ended, oldest first."""
        return active(self._store, f"guest/{guest}")

    def stop_timeout_ms(self, guest: str, default: int) -> int:
        """Return how long the guest may take to shut down: what the newest open stop asked for."""
        for task in reversed(self.open(guest)):
            if task.kind == STOP:
                request = guest_pb2.StopGuestRequest.FromString(task.request)
                return 0 if request.force else request.timeout_ms or default
            if task.kind == DELETE:
                return 0
        return default

    async def settle(self, name: str, guest: Guest | None) -> bool:
        """End the tasks whose wish has come true, or cannot any more; and note the guest's reason in the others' logs.

        Returns whether anything was written, so that what the caller knows of the guest may be old.
        """
        wrote = False
        for task in self.open(name):
            if guest is None:
                if task.kind == DELETE:
                    finish(task, TASK_STATE_SUCCEEDED, "deleted")
                else:
                    _give_up(task, "the guest is gone")
            elif _fulfilled(task, guest):
                finish(task, TASK_STATE_SUCCEEDED, guest.status.reason)
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
        for task in self.open(name):
            if task.kind == DELETE:
                finish(task, TASK_STATE_SUCCEEDED, "deleted")
            else:
                _give_up(task, "the guest was deleted meanwhile")
            txn.put(task, expect_revision=task.meta.revision)


def _fulfilled(task: Task, guest: Guest) -> bool:
    running = guest.status.phase == GUEST_PHASE_RUNNING
    stopped = guest.status.phase == GUEST_PHASE_STOPPED
    if task.kind == CREATE:
        return running if guest.spec.power == POWER_ON else stopped
    if task.kind == START:
        return running
    return task.kind == STOP and stopped


def _give_up(task: Task, reason: str) -> None:
    task.error.CopyFrom(to_status(aborted("SUPERSEDED", f"{reason}.")))
    finish(task, TASK_STATE_FAILED, reason)


def _superseded(task: Task, guest: Guest) -> str:
    """Return why a task's wish is no more asked for, or an empty string."""
    on = guest.spec.power == POWER_ON
    if task.kind == START and not on:
        return "the guest was asked to stop meanwhile"
    if task.kind == STOP and on:
        return "the guest was asked to start meanwhile"
    return ""
