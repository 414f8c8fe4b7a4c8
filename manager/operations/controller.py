"""The operation controller: gives each guest's lock to its oldest open operation, and has the handler work until the task has ended.

Invariant: the lock is taken, and given back, in the same transaction that begins or ends the task. So whoever dies in between leaves
either both or neither, and the next manager goes on. A kind of which something is to be tidied after its success (`Cleaner`) keeps the
lock beyond the end of its task, until that is done.
"""

from collections.abc import Mapping

from gugus.agent.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_FAILED, TASK_STATE_SUCCEEDED, TaskState
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_ERROR,
    GUEST_PHASE_HIBERNATED,
    GUEST_PHASE_PAUSED,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STOPPED,
    Guest,
)
from gugus.cluster.v1.task_pb2 import Task

from common.errors import GugusError, aborted, as_gugus_error, from_status, to_status
from common.logs import get_logger
from manager.consensus import ConsensusError
from manager.controllers.context import TRANSIENT_REASONS, Context
from manager.controllers.queue import WorkQueue
from manager.events import WARNING, record
from manager.operations.handler import Cleaner, Handler
from manager.operations.operation import Cancelled, Operation
from manager.store import Change, Conflict, Txn
from manager.tasks import ENDED, active, finish, log_line

SLOTS = 4
"""Operations on guests of one node at once; the agents have bounds of their own."""

FOREIGN_LOOK_S = 2.0
"""A guest that another one's operation holds is looked at so often; the operation's end wakes it, too."""

BEGIN_PHASES = frozenset(
    {GUEST_PHASE_RUNNING, GUEST_PHASE_STOPPED, GUEST_PHASE_PAUSED, GUEST_PHASE_HIBERNATED, GUEST_PHASE_ERROR}
)
"""Phases in which the guest controller has nothing under way, so that an operation may begin."""

RETRIED = TRANSIENT_REASONS | {"TASK_NOT_FOUND", "NO_LEADER", "NO_QUORUM", "OUTCOME_UNKNOWN"}
"""Errors after which the handler is called again. TASK_NOT_FOUND: the agent was restarted, its work is asked for again."""

_log = get_logger("operations")


class OperationController:
    """All operations on guests; the queue's keys are guests' names."""

    def __init__(self, context: Context, handlers: Mapping[str, Handler]) -> None:
        self._context = context
        self._handlers = handlers
        self._queue = WorkQueue("guest", self._turn, slots=SLOTS, lane=self._node_of)

    def changed(self, change: Change) -> None:
        """Take in a change of a task about a guest, of a guest, or of a node."""
        if change.kind == "task" and not change.deleted:
            task = change.obj
            if task.kind in self._handlers and task.state not in ENDED:
                self._queue.wake(task.target.removeprefix("guest/"))
        elif change.kind == "guest" and not change.deleted:
            if change.obj.status.HasField("lock") or self._open(change.name):
                self._queue.wake(change.name)
        elif change.kind == "node":
            for task in self._context.store.peek_all(Task):
                if task.kind in self._handlers and task.state not in ENDED:
                    self._queue.wake(task.target.removeprefix("guest/"))

    async def run(self) -> None:
        """Work until cancelled."""
        await self._queue.run()

    def _node_of(self, name: str) -> str:
        guest = self._context.store.peek(Guest, name)
        return guest.status.node if guest else ""

    def _open(self, guest: str) -> list[Task]:
        return [task for task in active(self._context.store, f"guest/{guest}") if task.kind in self._handlers]

    async def _turn(self, name: str) -> float | None:
        guest = self._context.store.peek(Guest, name)
        if guest is None:
            return None  # the guest controller ends the tasks of a guest that is gone
        tasks = {task.meta.name: task for task in self._open(name)}
        holder = guest.status.lock.task
        if holder and holder not in tasks:
            return await self._foreign(guest, holder)
        if not tasks:
            return None
        task = tasks[holder] if holder else next(iter(tasks.values()))
        if not holder and not await self._begin(guest, task):
            return None
        return await self._work(Operation(self._context, name, task.meta.name), self._handlers[task.kind])

    async def _foreign(self, guest: Guest, holder: str) -> float | None:
        """A lock of no open operation on this guest: a clone's, which holds the new guest, too; or an ended one's."""
        task = self._context.store.peek(Task, holder)
        if task is not None and task.state not in ENDED:
            return FOREIGN_LOOK_S
        name = guest.meta.name
        cleaner = self._cleaner(task)
        if task is not None and cleaner is not None and task.target == f"guest/{name}":
            await self._tidy(Operation(self._context, name, holder, ended=True), cleaner)
        else:
            guest.status.ClearField("lock")
            await self._context.store.txn(Txn().put(guest, expect_revision=guest.meta.revision))
        return 0.0

    async def _tidy(self, op: Operation, cleaner: Cleaner) -> None:
        """Tidy up after a task, then give the lock back: also after a fault of ours, which must not hold the guest for ever."""
        try:
            await cleaner.clean(op)
        except (Conflict, ConsensusError):
            raise
        except Exception as error:
            known = as_gugus_error(error, _log)
            if known.reason in RETRIED:
                raise known from error
            await op.log(f"something is left: {known.message}")
        await op.change(lambda guest: guest.status.ClearField("lock"))

    def _cleaner(self, task: Task | None) -> Cleaner | None:
        """Return what tidies up after a task: it succeeded, and its kind has something that does."""
        handler = self._handlers.get(task.kind) if task is not None and task.state == TASK_STATE_SUCCEEDED else None
        return handler if isinstance(handler, Cleaner) else None

    async def _begin(self, guest: Guest, task: Task) -> bool:
        """Take the guest's lock for a task; end one whose turn need not come. Returns whether it was taken."""
        if task.cancel_requested:
            finish(task, TASK_STATE_CANCELLED, "cancelled before it began")
        elif guest.meta.deleting:
            task.error.CopyFrom(to_status(aborted("SUPERSEDED", "the guest is being deleted.")))
            finish(task, TASK_STATE_FAILED, "the guest is being deleted")
        elif guest.status.phase not in BEGIN_PHASES:
            if log_line(task, f"waiting: {guest.status.reason}"):
                await self._context.store.txn(Txn().put(task, expect_revision=task.meta.revision))
            return False
        else:
            guest.status.lock.task, guest.status.lock.reason = task.meta.name, self._handlers[task.kind].verb
            log_line(task, f"begun: {task.kind}")
            txn = Txn().put(task, expect_revision=task.meta.revision)
            await self._context.store.txn(txn.put(guest, expect_revision=guest.meta.revision))
            return True
        await self._context.store.txn(Txn().put(task, expect_revision=task.meta.revision))
        return False

    async def _work(self, op: Operation, handler: Handler) -> float | None:
        if not op.task.HasField("error"):
            try:
                text = await handler.run(op)
            except (Conflict, ConsensusError):
                raise
            except Exception as error:
                known = as_gugus_error(error, _log)
                if known.reason in RETRIED:
                    await op.log(f"waiting: {known.message}")
                    raise known from error
                await op.failed(known)  # durably, so that a repeated turn takes back and does not run again
            else:
                await self._end(op, None, text)
                return 0.0  # the next one may be waiting
        await handler.undo(op)
        await self._end(op, from_status(op.task.error))
        return 0.0

    async def _end(self, op: Operation, error: GugusError | None, text: str = "") -> None:
        """End the task and give the lock back, unless something is to be tidied up after it first."""

        cancelled = error is not None and error.reason == Cancelled.REASON

        def end(txn: Txn) -> None:
            task = op.task
            if cancelled:
                task.ClearField("error")
            finish(task, _state(error, cancelled=cancelled), text or str(error))
            txn.put(task, expect_revision=task.meta.revision)
            if error is not None and not cancelled:
                record(txn, task.target, error.reason, f"{task.kind} of {op.name} failed: {error}", WARNING)

        def give_back(guest: Guest) -> None:
            if error is not None or not isinstance(self._handlers[op.task.kind], Cleaner):
                guest.status.ClearField("lock")

        await op.change(give_back, end)
        if error is not None:
            _log.warning("operation ended", guest=op.name, reason=error.reason, error=str(error))


def _state(error: GugusError | None, *, cancelled: bool) -> TaskState.ValueType:
    if error is None:
        return TASK_STATE_SUCCEEDED
    return TASK_STATE_CANCELLED if cancelled else TASK_STATE_FAILED
