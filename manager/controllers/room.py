"""Room for guests that gave way to more important ones (`manager.ha.preemption`): lets them back as soon as they fit.

Where they were, when they fit there again; else to another node, by a migration with a task of its own, as everything moves.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RECOVERING, POWER_ON, POWER_PAUSED, Guest
from gugus.cluster.v1.migration_pb2 import MigrateGuestRequest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node
from gugus.cluster.v1.task_pb2 import Task

from common.errors import GugusError
from common.leases import NS_PER_MS
from common.logs import get_logger
from manager.consensus import ConsensusError
from manager.controllers.context import Context
from manager.controllers.placing import rooms, terms
from manager.events import INFO, record
from manager.ha.preemption import way_back
from manager.operations.registry import MIGRATE
from manager.scheduler import Decision, GuestRequest, place
from manager.scheduler.views import guest_request, holds_room
from manager.store import Txn
from manager.tasks import ENDED, HA, new_task

AGAIN_NS = 30_000 * NS_PER_MS
"""After a migration failed, the next one is begun so much later."""

LOOK_S = 0.25
"""Longest time between two looks for a change of the state."""

LONG_NS = 5_000 * NS_PER_MS
"""While nothing changes, room is looked for so often: a migration that failed is tried again."""

_WANTED = frozenset({POWER_ON, POWER_PAUSED})

_log = get_logger("room")


class Room:
    """One reign's looks. When a migration failed is remembered in memory: another manager tries again a little sooner or later."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._failed_ns: dict[str, int] = {}

    async def run(self) -> None:
        """Look whenever something changed, and now and then, until cancelled."""
        looked, looked_ns = -1, 0
        while True:
            revision, now_ns = self._context.store.revision, self._context.acting.now_ns()
            if revision != looked or now_ns - looked_ns >= LONG_NS:
                guests = self._context.store.peek_all(Guest)
                if any(guest.status.HasField("preempted") for guest in guests):
                    await self._look()
                looked, looked_ns = revision, now_ns
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        """Let guests back that fit, the important ones first."""
        async with self._context.room:
            await self._each(self._context.store.peek_all(Guest))

    async def _each(self, guests: Sequence[Guest]) -> None:
        waiting = [guest for guest in guests if _waits(guest)]
        waiting.sort(key=lambda guest: (guest.spec.power not in _WANTED, -guest.spec.ha.priority, guest.meta.name))
        if not waiting:
            self._failed_ns.clear()
        one_moves = any(map(self._is_moving, guests))
        for guest in waiting:
            try:
                one_moves |= await self._let_back(guest, may_move=not one_moves)
            except (ConsensusError, GugusError) as error:
                _log.warning("room is looked for again", guest=guest.meta.name, error=str(error))

    async def _let_back(self, guest: Guest, *, may_move: bool) -> bool:
        """Let a guest back if it fits; return whether it is on its way to another node.

        may_move: no other one is; the room at the target is the mover's only once it is there, for it is down and gave its own up.
        """
        home = self._context.store.peek(Node, guest.status.node)
        if home is None or home.status.state != NODE_STATE_ONLINE or self._is_moving(guest):
            return False
        may_move = may_move and guest.spec.power in _WANTED and self._has_rested(guest)
        node = way_back(guest_request(guest), home.meta.name, partial(self._choose, guest), may_move=may_move)
        if node == home.meta.name:
            await self._stay(guest)
        elif node:
            await self._move(guest, node)
        return node not in ("", home.meta.name)

    async def _stay(self, guest: Guest) -> None:
        name, by = guest.meta.name, guest.status.preempted.by
        guest.status.ClearField("preempted")
        guest.status.reason = f"there is room on {guest.status.node} again"
        text = f"{name} gave way to {by}; there is room on {guest.status.node} for it again"
        txn = Txn().put(guest, expect_revision=guest.meta.revision)
        await self._context.store.txn(record(txn, f"guest/{name}", "GUEST_ROOM_AGAIN", text, INFO))

    async def _move(self, guest: Guest, target: str) -> None:
        """Begin a migration, whose id follows from the one before it."""
        name, by = guest.meta.name, guest.status.preempted
        request_id = f"{guest.meta.uid} {guest.meta.generation} room {by.task}"
        task = new_task(MIGRATE, f"guest/{name}", HA, request_id, MigrateGuestRequest(name=name, target=target))
        by.task = task.meta.name
        txn = Txn().put(guest, expect_revision=guest.meta.revision).put(task, expect_absent=True)
        text = f"{name} gave way to {by.by}; there is room on {target} for it"
        await self._context.store.txn(record(txn, f"guest/{name}", "GUEST_ROOM_AGAIN", text, INFO))

    def _choose(self, guest: Guest, request: GuestRequest) -> Decision:
        return place(request, rooms(self._context, guest), terms(self._context))

    def _is_moving(self, guest: Guest) -> bool:
        """Return whether a guest that gave way is on its way to another node."""
        if not guest.status.preempted.task:
            return False
        task = self._context.store.peek(Task, guest.status.preempted.task)
        return task is not None and task.state not in ENDED

    def _has_rested(self, guest: Guest) -> bool:
        """Return whether a migration that failed, if there was one, did so long enough ago."""
        task, now_ns = guest.status.preempted.task, self._context.acting.now_ns()
        return not task or now_ns - self._failed_ns.setdefault(task, now_ns) >= AGAIN_NS


def _waits(guest: Guest) -> bool:
    status = guest.status
    busy = guest.meta.deleting or status.HasField("lock") or status.HasField("migration")
    busy |= status.phase == GUEST_PHASE_RECOVERING  # which gives it a node itself
    return status.HasField("preempted") and not holds_room(guest) and not busy
