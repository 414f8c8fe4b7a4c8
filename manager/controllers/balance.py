"""Evens the cluster out when it is asked to: plans, moves what may move side by side, and plans anew with what came of it.

Invariant: each plan is made of the state as it is by then, so nothing is moved against a rule that came meanwhile; a guest
that could not be moved stays where it is in all further plans of the task. The task of a move has an id that follows from
the balance's task and its number, so a manager that takes over finds what its predecessor began.
"""

from collections.abc import Sequence
from dataclasses import replace

from gugus.agent.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_SUCCEEDED
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.migration_pb2 import MigrateGuestRequest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node
from gugus.cluster.v1.plan_pb2 import BalanceNotes, BalanceRequest
from gugus.cluster.v1.task_pb2 import Task

from manager.controllers.context import Context
from manager.controllers.placing import stored
from manager.controllers.queue import WorkQueue
from manager.events import INFO, record
from manager.operations.registry import MIGRATE
from manager.scheduler import what_if
from manager.store import Change, Txn
from manager.tasks import ENDED, active, finish, log_line, new_task, task_id
from planner.balance import plan_balance
from planner.plans import Move, Plan

KIND = "balance-cluster"
KINDS = frozenset({KIND})
CANCELLABLE = KINDS

LOOK_S = 0.5
"""While guests move, so often it is looked what became of them; the end of a move is looked at at once."""

DEFAULT_MOVES = 10
"""Most migrations of one balance, as planner.settings.Balance has it."""


class Balance:
    """The balances of the cluster, one after another; the queue's key is the cluster's name."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store
        self._queue = WorkQueue("balance", self._turn, slots=1)

    def changed(self, change: Change) -> None:
        """Take in a change of a balance, or of a move."""
        if change.kind != "task" or change.deleted or change.obj.kind not in (KIND, MIGRATE):
            return
        for task in self._store.peek_all(Task):
            if task.kind == KIND and task.state not in ENDED:
                self._queue.wake(task.target.removeprefix("cluster/"))

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
        plan = self._plan(task, notes, failed)
        first = [move for move in plan.moves if move.wave == plan.moves[0].wave]
        if not first:
            return await self._end(task, notes, failed)
        await self._begin(task, notes, first)
        return LOOK_S

    def _plan(self, task: Task, notes: BalanceNotes, failed: dict[str, str]) -> Plan:
        """Return what is still to be done: guests that cannot move, or are held by something, stay where they are."""
        look = stored(self._context)
        most = BalanceRequest.FromString(task.request).max_moves or DEFAULT_MOVES
        cluster = look.cluster()
        limits = replace(look.settings.balance, max_moves=max(0, most - notes.begun))
        online = {node.meta.name for node in look.nodes if node.status.state == NODE_STATE_ONLINE}
        fixed = {g.meta.name for g in look.guests if _fixed(g, online)} | set(failed)
        guests = [replace(guest, pinned=guest.node) if guest.name in fixed else guest for guest in cluster.guests]
        cluster = replace(cluster, guests=guests, settings=replace(cluster.settings, balance=limits))
        return plan_balance(cluster, resuming=notes.begun > 0)

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
        most = BalanceRequest.FromString(task.request).max_moves or DEFAULT_MOVES
        task.progress_percent = min(99, 100 * notes.begun // most)
        await self._store.txn(txn.put(task, expect_revision=task.meta.revision))

    async def _cancel(self, moves: Sequence[Task]) -> None:
        for move in moves:
            if not move.cancel_requested:
                move.cancel_requested = True
                await self._store.txn(Txn().put(move, expect_revision=move.meta.revision))

    async def _end(
        self, task: Task, notes: BalanceNotes, failed: dict[str, str], *, cancelled: bool = False
    ) -> float | None:
        """End a balance. A move that failed is no failure of it: the cluster is as even as it can be made."""
        done = notes.begun - len(failed)
        text = f"{done} guests moved" if done != 1 else "1 guest moved"
        text += "".join(f"; {guest} could not: {why}" for guest, why in sorted(failed.items()))
        finish(task, TASK_STATE_CANCELLED if cancelled else TASK_STATE_SUCCEEDED, text)
        txn = Txn().put(task, expect_revision=task.meta.revision)
        await self._store.txn(record(txn, task.target, "CLUSTER_BALANCED", text, INFO))
        return 0.0


def _failed(move: Task) -> bool:
    return move.state in ENDED and move.state != TASK_STATE_SUCCEEDED


def _fixed(guest: Guest, online: set[str]) -> bool:
    """Return whether a guest is not to be moved now."""
    busy = guest.status.HasField("lock") or guest.status.HasField("migration")
    return busy or guest.status.node not in online or bool(what_if.bound(guest))
