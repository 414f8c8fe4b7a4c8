"""Room for guests that gave way to more important ones, in the simulation: lets them back as soon as they fit.

The product's shell is manager.controllers.room.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE

from manager.ha.account import WANTED
from manager.ha.stored import terms
from manager.scheduler import GuestRequest, place
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
        if self._open or (self._looked == replica.changes and not self._failed):
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
        guest, request = copy_of(stored), guest_request(stored)
        key = guest_key(guest.meta.name)
        if self._choose(guest, replace(request, pinned=home.meta.name)):
            guest.status.ClearField("preempted")
            guest.status.reason = f"there is room on {guest.status.node} again"
            self._put(key, {key: guest}, guest.status.reason)
            return True
        if not may_move or guest.spec.power not in WANTED or not self._has_rested(guest):
            return False
        away = self._choose(guest, replace(request, excluded=frozenset({home.meta.name})))
        if away:
            move = Move(
                f"room-{guest.meta.name}-{guest.meta.generation}-{self.manager.replica.revision}",
                guest.meta.name,
                away,
                "room",
            )
            guest.status.preempted.task = move.name
            self._put(key, {key: guest, f"move/{move.name}": move}, f"there is room on {away} for it")
        return bool(away)

    def _choose(self, guest: Guest, request: GuestRequest) -> str:
        replica = self.manager.replica
        nodes, guests = list(replica.nodes.values()), list(replica.guests.values())
        counts = terms(nodes, guests, replica.rules.values(), planner_settings(replica.cluster.settings))
        return place(request, node_views(nodes, guests, ignoring=guest.meta.name), counts).node

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

        self.manager.put(Txn({key: self.manager.replica.revision_of(key)}, puts, tells=((key, says),)), done)


def _waits(guest: Guest) -> bool:
    status = guest.status
    busy = guest.meta.deleting or status.HasField("lock") or status.HasField("migration")
    return status.HasField("preempted") and not holds_room(guest) and not busy
