"""Evens the cluster out when it is asked to: plans, moves what may move side by side, and plans anew with what came of it.

Invariant: each plan is made of the state as it is by then, so nothing is moved against a rule that came meanwhile; a guest
that could not be moved stays where it is in all further plans of the task. The task of a move has an id that follows from
the balance's task and its number, so a manager that takes over finds what its predecessor began.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence

from gugus.agent.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_SUCCEEDED
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.migration_pb2 import MigrateGuestRequest
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.plan_pb2 import BalanceNotes, BalanceRequest
from gugus.cluster.v1.task_pb2 import Task

from manager.controllers import drains, reboots
from manager.controllers.context import Context
from manager.controllers.placing import stored
from manager.controllers.queue import WorkQueue
from manager.events import INFO, record
from manager.operations.registry import MIGRATE
from manager.scheduler import balancing
from manager.scheduler.balancing import ACTOR
from manager.store import Change, Txn
from manager.tasks import ENDED, active, finish, log_line, new_task, task_id
from planner.plans import Move, Plan

KIND = "balance-cluster"
KINDS = frozenset({KIND})
CANCELLABLE = KINDS

LOOK_S = 0.5
"""While guests move, so often it is looked what became of them; the end of a move is looked at at once."""

DEFAULT_MOVES = 10
"""Most migrations of one balance, as planner.settings.Balance has it."""

TOLD_MOVES = 40
"""Moves of a plan that are written into the task's log, which keeps 100 lines."""


class Balance:
    """The balances of the cluster, one after another; the queue's key is the cluster's name."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store
        self._queue = WorkQueue("balance", self._turn, slots=1)
        self.last: Task | None = None
        """The balance that ended last, as far as its task is still there."""

    def changed(self, change: Change) -> None:
        """Take in a change of a balance, or of a move."""
        if change.kind != "task" or change.deleted or change.obj.kind not in (KIND, MIGRATE):
            return
        if change.obj.kind == KIND and change.obj.state in ENDED:
            self._ended(change.obj)
        for task in self._store.peek_all(Task):
            if task.kind == KIND and task.state not in ENDED:
                self._queue.wake(task.target.removeprefix("cluster/"))

    def _ended(self, task: Task) -> None:
        if self.last is None or task.ended_at.ToNanoseconds() >= self.last.ended_at.ToNanoseconds():
            self.last = task

    async def run(self) -> None:
        """Work until cancelled."""
        await self._queue.run()

    async def _turn(self, name: str) -> float | None:
        tasks = [task for task in active(self._store, f"cluster/{name}") if task.kind == KIND]
        if not tasks:
            return None
        task = tasks[0]
        notes = BalanceNotes.FromString(task.step_notes)
        moves = [self._store.peek(Task, task_id(MIGRATE, KIND, task.meta.name, str(n))) for n in range(notes.begun)]
        under_way = [move for move in moves if move is not None and move.state not in ENDED]
        if under_way and task.cancel_requested:
            await self._cancel(under_way)
        if under_way:
            return LOOK_S
        failed = {m.target.removeprefix("guest/"): m.error.message for m in moves if m is not None and _failed(m)}
        if task.cancel_requested:
            return await self._end(task, notes, failed, cancelled=True)
        if task.actor == ACTOR and (why := unsettled(self._context, self._store.peek_all(Task))):
            return await self._end(task, notes, failed, why=f"ended early: {why}")
        plan = await self._plan(task, notes, failed)
        if not notes.told and not notes.begun:
            return await self._tell(task, notes, plan)
        first = balancing.first_wave(plan)
        if not first:
            return await self._end(task, notes, failed)
        await self._begin(task, notes, first)
        return LOOK_S

    async def _plan(self, task: Task, notes: BalanceNotes, failed: dict[str, str]) -> Plan:
        """Return what is still to be done: guests that cannot move, or are held by something, stay where they are.

        In a thread: a plan for a thousand nodes takes a second, in which leases have to be renewed.
        """
        look = stored(self._context)
        left = max(0, _most(task) - notes.begun)
        if task.actor == ACTOR:
            moves = (task for task in self._store.peek_all(Task) if task.kind == MIGRATE)
            fixed = balancing.staying(look, balancing.recent(moves, time.time()).rested)
        else:
            fixed = balancing.held_up(look)
        going_on, unasked = notes.told or notes.begun > 0, task.actor == ACTOR
        stay = fixed.keys() | failed.keys()
        return await asyncio.to_thread(balancing.planned, look, stay, left, resuming=going_on, unasked=unasked)

    async def _tell(self, task: Task, notes: BalanceNotes, plan: Plan) -> float | None:
        """Write the plan into the task's log before anything moves. A plan without moves ends the task."""
        tell_plan(task, plan)
        notes.told, notes.score_before = True, plan.before.total
        if not plan.moves:
            return await self._end(task, notes, {})
        task.step_notes = notes.SerializeToString()
        await self._store.txn(Txn().put(task, expect_revision=task.meta.revision))
        return 0.0

    async def _begin(self, task: Task, notes: BalanceNotes, moves: Sequence[Move]) -> None:
        """Begin moves that may run side by side, and note how many there are, in one transaction."""
        txn = Txn()
        for number, move in enumerate(moves, notes.begun):
            request = MigrateGuestRequest(name=move.guest, target=move.to_node)
            made = new_task(MIGRATE, f"guest/{move.guest}", task.actor, "", request)
            made.meta.name = task_id(MIGRATE, KIND, task.meta.name, str(number))
            txn.put(made, expect_absent=True)
            guest, target = self._store.peek(Guest, move.guest), self._store.peek(Node, move.to_node)
            if guest is not None and target is not None:
                txn.expect(Guest, move.guest, revision=guest.meta.revision)
            log_line(task, move.reason)
        notes.begun += len(moves)
        task.step_notes = notes.SerializeToString()
        task.progress_percent = min(99, 100 * notes.begun // _most(task))
        await self._store.txn(txn.put(task, expect_revision=task.meta.revision))
        if task.actor == ACTOR:
            self._context.outlook.moves_begun += len(moves)

    async def _cancel(self, moves: Sequence[Task]) -> None:
        for move in moves:
            if not move.cancel_requested:
                move.cancel_requested = True
                await self._store.txn(Txn().put(move, expect_revision=move.meta.revision))

    async def _end(
        self, task: Task, notes: BalanceNotes, failed: dict[str, str], *, cancelled: bool = False, why: str = ""
    ) -> float | None:
        """End a balance. A move that failed is no failure of it: the cluster is as even as it can be made."""
        after = await asyncio.to_thread(balancing.score_of, stored(self._context)) if notes.begun else 0.0
        text = balancing.told(notes, failed, after, why)
        finish(task, TASK_STATE_CANCELLED if cancelled else TASK_STATE_SUCCEEDED, text)
        txn = Txn().put(task, expect_revision=task.meta.revision)
        await self._store.txn(record(txn, task.target, "CLUSTER_BALANCED", text, INFO))
        return 0.0


def _failed(move: Task) -> bool:
    return move.state in ENDED and move.state != TASK_STATE_SUCCEEDED


def unsettled(context: Context, tasks: Iterable[Task]) -> str:
    """Return why the cluster itself moves nothing now, without a full stop; "" when nothing is in the way."""
    active = [task for task in tasks if task.state not in ENDED]
    draining = {task.target.removeprefix("node/") for task in active if task.kind in drains.KINDS}
    return balancing.unsettled(
        context.store.peek_all(Node),
        disarmed=context.ha_disarmed(),
        draining=draining,
        rebooting=any(task.kind == reboots.KIND for task in active),
    )


def _most(task: Task) -> int:
    return BalanceRequest.FromString(task.request).max_moves or DEFAULT_MOVES


def tell_plan(task: Task, plan: Plan) -> None:
    """Write a plan into a task's log, its first moves one by one."""
    for note in plan.notes or (() if plan.moves else ("No migration is worth it.",)):
        log_line(task, note)
    if plan.moves:
        log_line(task, f"Plan: {balancing.summary(plan)}")
    for move in plan.moves[:TOLD_MOVES]:
        log_line(task, f"Plan, wave {move.wave}: {move.guest} from {move.from_node} to {move.to_node}.")
    if len(plan.moves) > TOLD_MOVES:
        log_line(task, f"Plan: and {len(plan.moves) - TOLD_MOVES} more.")
