"""Room for guests that gave way to more important ones, in the simulation: lets them back as soon as they fit.

The product's shell is manager.controllers.room.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE

from manager.ha.account import WANTED
from manager.ha.preemption import way_back
from manager.ha.stored import terms
from manager.scheduler import Decision, GuestRequest, place
from manager.scheduler.settings import planner_settings
from manager.scheduler.views import guest_request, holds_room, node_views
from simulator.clockwork import S
from simulator.state import Course, Move, Object, Txn, copy_of, guest_key

if TYPE_CHECKING:
    from simulator.manager import Manager

AGAIN = 30 * S
"""After a migration failed, the next one is begun so much later."""


class Room:
    """One reign's looks."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self._looked = -1
        self._open = 0
        self._failed: dict[str, int] = {}

    def tick(self) -> None:
        """Let guests back that fit, the important ones first, if anything has changed."""
        replica = self.manager.replica
        if self._open or self.manager.giving or (self._looked == replica.changes and not self._failed):
            return
        self._looked = replica.changes
        waiting = [guest for guest in replica.guests.values() if _waits(guest)]
        waiting.sort(key=lambda guest: (guest.spec.power not in WANTED, -guest.spec.ha.priority, guest.meta.name))
        if not waiting:
            self._failed.clear()
        one_moves = any(map(self._is_moving, replica.guests.values()))
        for guest in waiting:
            if self._let_back(guest, may_move=not one_moves):
                return  # each sees what those before it were given

    def _let_back(self, stored: Guest, *, may_move: bool) -> bool:
        home = self.manager.replica.nodes.get(stored.status.node)
        if home is None or home.status.state != NODE_STATE_ONLINE or self._is_moving(stored):
            return False
        guest, key = copy_of(stored), guest_key(stored.meta.name)
        may_move = may_move and guest.spec.power in WANTED and self._has_rested(guest)
        node = way_back(guest_request(guest), home.meta.name, partial(self._choose, guest), may_move=may_move)
        if node == home.meta.name:
            guest.status.ClearField("preempted")
            guest.status.reason = f"there is room on {guest.status.node} again"
            self._put(key, {key: guest}, guest.status.reason)
        elif node:
            name = guest.meta.name
            task, now = (
                f"room-{name}-{guest.meta.generation}-{self.manager.replica.revision}",
                self.manager.world.queue.now,
            )
            move = Move(task, name, node, "room", at_ns=now)
            guest.status.preempted.task = move.name
            self._put(key, {key: guest, f"move/{move.name}": move}, f"there is room on {node} for it")
        return bool(node)

    def _choose(self, guest: Guest, request: GuestRequest) -> Decision:
        replica = self.manager.replica
        nodes, guests = list(replica.nodes.values()), list(replica.guests.values())
        settings, load_of = planner_settings(replica.cluster.settings), self.manager.loads.of
        counts = terms(nodes, guests, replica.rules.values(), settings, load_of=load_of)
        return place(request, node_views(nodes, guests, ignoring=guest.meta.name, load_of=load_of), counts)

    def _is_moving(self, guest: Guest) -> bool:
        move = self.manager.replica.moves.get(guest.status.preempted.task)
        return move is not None and move.course is Course.OPEN

    def _has_rested(self, guest: Guest) -> bool:
        task, now = guest.status.preempted.task, self.manager.now()
        return not task or now - self._failed.setdefault(task, now) >= AGAIN

    def _put(self, key: str, puts: dict[str, Object], says: str) -> None:
        self._open += 1

        def done(ok: bool) -> None:
            self._open -= 1
            self._looked = -1
            self.manager.nudge()

        self.manager.give(Txn({key: self.manager.replica.revision_of(key)}, puts, tells=((key, says),)), done)


def _waits(guest: Guest) -> bool:
    status = guest.status
    busy = guest.meta.deleting or status.HasField("lock") or status.HasField("migration")
    return status.HasField("preempted") and not holds_room(guest) and not busy
