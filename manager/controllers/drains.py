"""Empties nodes, and brings guests back after maintenance: begins a migration for each guest, a few at a time, and sees how they end.

Invariant: everything it knows is in the state. The task of a guest's move has an id that follows from the drain's task, the guest and the
number of the try, so a manager that takes over finds the moves that its predecessor began.
"""

import time
from collections.abc import Sequence

from gugus.agent.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_FAILED,
    TASK_STATE_SUCCEEDED,
)
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.migration_pb2 import MigrateGuestRequest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, DrainNodeRequest, DrainNotes, Node, RestoreNodeRequest
from gugus.cluster.v1.task_pb2 import Task

from common.errors import GugusError, aborted, deadline_exceeded, from_status, precondition, to_status
from manager.controllers.context import Context
from manager.controllers.placing import decide
from manager.controllers.queue import WorkQueue
from manager.controllers.together import leaving_with
from manager.events import INFO, WARNING, record
from manager.ha.drain import DEFAULT_PARALLEL, DRAIN, HOPELESS, MAX_TRIES, RESTORE, UNWANTED, Plan, Try, plan
from manager.operations.registry import MIGRATE
from manager.store import Change, Txn
from manager.tasks import ENDED, active, finish, log_line, new_task, task_id

KINDS = frozenset({DRAIN, RESTORE})
CANCELLABLE = KINDS

SLOTS = 8
"""Nodes drained at once."""

AGAIN_S = 2.0
"""Pause between two tries of a guest, by the wall clock: one that was given to the node just now is there by then."""

LOOK_S = 0.5
"""While guests move, so often it is looked what became of them; the end of a move is looked at at once."""


class Drains:
    """All drains of nodes, and the ways back; the queue's keys are nodes' names."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store
        self._queue = WorkQueue("drain", self._turn, slots=SLOTS)
        self._since: dict[str, float] = {}
        """When a drain with a budget began, on this manager's own clock. From an earlier manager only the time of day is known."""

    def changed(self, change: Change) -> None:
        """Take in a change of a drain, of a move, or of a node."""
        if change.kind == "node":
            self._queue.wake(change.name)
        elif change.kind == "task" and not change.deleted:
            kind, _, name = change.obj.target.partition("/")
            if change.obj.kind in KINDS:
                self._queue.wake(name)
            elif change.obj.kind == MIGRATE and kind == "guest":
                for task in self._store.peek_all(Task):
                    if task.kind in KINDS and task.state not in ENDED:
                        self._queue.wake(task.target.removeprefix("node/"))

    async def run(self) -> None:
        """Work until cancelled."""
        await self._queue.run()

    async def _turn(self, node: str) -> float | None:
        tasks = [task for task in active(self._store, f"node/{node}") if task.kind in KINDS]
        if not tasks:
            return None
        task = tasks[0]
        if self._budget_ms(task) and task.meta.name not in self._since:
            await self._begin_counting(task)
        if task.cancel_requested:
            return await self._cancel(task)
        found = self._store.peek(Node, node)
        if found is None:
            return await self._end(task, aborted("NODE_REMOVED", f"node {node} was removed meanwhile."))
        if found.status.state != NODE_STATE_ONLINE:
            await self._log(task, f"waiting: {node} is not online: {found.status.reason}")
            return LOOK_S
        guests = self._guests(task, node)
        tries = {guest.meta.name: self._tries(task, guest) for guest in guests}
        hopeless = HOPELESS if task.kind == DRAIN else UNWANTED
        plan_ = plan([guest.meta.name for guest in guests], tries, self._parallel(task), hopeless)
        if not guests:
            return await self._end(task, None)
        if plan_.over:
            return await self._end(task, _left(task, node, plan_))
        if self._spent(task):
            return await self._end(task, _too_late(node, [guest.meta.name for guest in guests]))
        by_name = {guest.meta.name: guest for guest in guests}
        for name, number in plan_.begin:
            if number and not self._is_due(task, by_name[name], number - 1):
                continue
            await self._begin(task, by_name[name], node, number)
        await self._log(task, f"{len(guests)} guests left, {plan_.under_way + len(plan_.begin)} under way", len(guests))
        return LOOK_S

    def _is_due(self, task: Task, guest: Guest, last: int) -> bool:
        """Return whether a guest may be tried again: what was in the way may pass by itself, but not at once."""
        move = self._store.peek(Task, self._move_id(task, guest, last))
        ago_s = time.time() - move.ended_at.ToNanoseconds() / 1e9 if move is not None else AGAIN_S
        return not 0 <= ago_s < AGAIN_S

    def _guests(self, task: Task, node: str) -> list[Guest]:
        """Return the guests that are still to be moved."""
        guests = [g for g in self._store.peek_all(Guest) if not g.meta.deleting and not g.spec.template]
        if task.kind == DRAIN:
            return [guest for guest in guests if guest.status.node == node]
        if RestoreNodeRequest.FromString(task.request).leave:
            return []
        return [guest for guest in guests if guest.status.home == node and guest.status.node != node]

    def _tries(self, task: Task, guest: Guest) -> list[Try]:
        tries = []
        for number in range(MAX_TRIES):
            move = self._store.peek(Task, self._move_id(task, guest, number))
            if move is None:
                break
            error = from_status(move.error) if move.HasField("error") else None
            reason = "TASK_CANCELLED" if move.state == TASK_STATE_CANCELLED else error.reason if error else ""
            tries.append(Try(move.state not in ENDED, reason, error.message if error else "it was cancelled"))
        return tries

    async def _begin(self, task: Task, guest: Guest, node: str, number: int) -> None:
        name = guest.meta.name
        target = node if task.kind == RESTORE else self._target(task, guest)
        move = new_task(MIGRATE, f"guest/{name}", task.actor, "", MigrateGuestRequest(name=name, target=target))
        move.meta.name = self._move_id(task, guest, number)
        txn = Txn().put(move, expect_absent=True)
        if task.kind == DRAIN and DrainNodeRequest.FromString(task.request).maintenance:
            guest.status.home = node
            txn.put(guest, expect_revision=guest.meta.revision)
        else:
            txn.expect(Guest, name, revision=guest.meta.revision)
        await self._store.txn(txn)

    def _target(self, task: Task, guest: Guest) -> str:
        """Return the node to which all of a set go that rules keep together; "" lets a guest's own migration choose."""
        company = leaving_with(self._store, guest)
        for one in company:
            for number in range(MAX_TRIES):
                move = self._store.peek(Task, self._move_id(task, one, number))
                if move is not None and move.state not in ENDED:
                    return MigrateGuestRequest.FromString(move.request).target
        return decide(self._context, guest).node if company else ""

    def _move_id(self, task: Task, guest: Guest, number: int) -> str:
        return task_id(MIGRATE, f"guest/{guest.meta.uid}", task.meta.name, str(number))

    def _parallel(self, task: Task) -> int:
        request = (DrainNodeRequest if task.kind == DRAIN else RestoreNodeRequest).FromString(task.request)
        return request.parallel or DEFAULT_PARALLEL

    def _spent(self, task: Task) -> bool:
        budget_ms = self._budget_ms(task)
        return bool(budget_ms) and time.monotonic() - self._since[task.meta.name] > budget_ms / 1000

    def _budget_ms(self, task: Task) -> int:
        return DrainNodeRequest.FromString(task.request).budget_ms if task.kind == DRAIN else 0

    async def _begin_counting(self, task: Task) -> None:
        """Note when a drain began, or take up what an earlier manager noted; clocks that differ give it no more than its budget anew."""
        notes = DrainNotes.FromString(task.step_notes)
        if notes.HasField("began_at"):
            ago_s = max(0.0, time.time() - notes.began_at.ToMilliseconds() / 1000)
        else:
            ago_s = 0.0
            notes.began_at.GetCurrentTime()
            task.step_notes = notes.SerializeToString()
            await self._store.txn(Txn().put(task, expect_revision=task.meta.revision))
            task.meta.CopyFrom((self._store.peek(Task, task.meta.name) or task).meta)
        self._since[task.meta.name] = time.monotonic() - ago_s

    async def _cancel(self, task: Task) -> float | None:
        """End a drain at somebody's wish, and the moves that it began; the node takes guests again."""
        name = task.target.removeprefix("node/")
        for guest in self._guests(task, name):
            for number in range(MAX_TRIES):
                move = self._store.peek(Task, self._move_id(task, guest, number))
                if move is not None and move.state not in ENDED and not move.cancel_requested:
                    move.cancel_requested = True
                    await self._store.txn(Txn().put(move, expect_revision=move.meta.revision))
        txn, node = Txn(), self._store.peek(Node, name)
        if task.kind == DRAIN and node is not None and node.spec.maintenance:
            node.spec.maintenance = False
            txn.put(node, expect_revision=node.meta.revision)
        finish(task, TASK_STATE_CANCELLED, "cancelled; what has moved stays where it is")
        return await self._put(task, txn)

    async def _end(self, task: Task, error: GugusError | None) -> float | None:
        """End a drain, or a way back. Guests whose way back failed do not try it again by themselves."""
        name, txn = task.target.removeprefix("node/"), Txn()
        for guest in self._store.peek_all(Guest) if task.kind == RESTORE else ():
            if guest.status.home == name:
                guest.status.home = ""
                txn.put(guest, expect_revision=guest.meta.revision)
        if error is None:
            text = f"{name} has no guests" if task.kind == DRAIN else f"{name} has its guests again"
            finish(task, TASK_STATE_SUCCEEDED, text)
            record(txn, task.target, "NODE_DRAINED" if task.kind == DRAIN else "NODE_RESTORED", text, INFO)
        else:
            task.error.CopyFrom(to_status(error))
            finish(task, TASK_STATE_FAILED, str(error))
            record(txn, task.target, error.reason, str(error), WARNING)
        return await self._put(task, txn)

    async def _put(self, task: Task, txn: Txn) -> float:
        self._since.pop(task.meta.name, None)
        await self._store.txn(txn.put(task, expect_revision=task.meta.revision))
        return 0.0  # the next one may be waiting

    async def _log(self, task: Task, text: str, left: int | None = None) -> None:
        if log_line(task, text):
            if left is not None:
                task.progress_percent = max(task.progress_percent, 100 - 100 * left // max(1, self._most(task, left)))
            await self._store.txn(Txn().put(task, expect_revision=task.meta.revision))

    def _most(self, task: Task, left: int) -> int:
        """Return how many guests there were at the most, as the log tells."""
        counts = [int(line.text.split()[0]) for line in task.log if line.text.endswith("under way")]
        return max([left, *counts])


def _left(task: Task, node: str, plan_: Plan) -> GugusError:
    each = "; ".join(f"{guest}: {why}" for guest, why in sorted(plan_.stuck.items()))
    where = f"still on {node}" if task.kind == DRAIN else f"not back on {node}"
    return precondition(
        "GUESTS_LEFT",
        f"{len(plan_.stuck)} guests are {where}: {each}",
        remedy="Mend what is in the way, stop them, or move them by hand; then ask again.",
        subject=task.target,
        metadata={"guests": ",".join(sorted(plan_.stuck))},
    )


def _too_late(node: str, left: Sequence[str]) -> GugusError:
    return deadline_exceeded(
        "BUDGET_SPENT",
        f"the time is over and {node} still has {', '.join(sorted(left))}; moves that are under way go on.",
        remedy="Ask again with more time (--budget), or end the maintenance.",
    )
