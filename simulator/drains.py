"""Emptying nodes in the simulation, and the ways back: the real `manager.ha.drain` says which moves to begin.

The product's shell is manager.controllers.drains.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE

from manager.ha.drain import DEFAULT_PARALLEL, MAX_TRIES, Plan, Try, plan
from simulator.state import Course, Drain, Move, Object, Txn, copy_of, guest_key, node_key

if TYPE_CHECKING:
    from simulator.manager import Manager


class Drains:
    """All drains that are under way; everything is in the state."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self._writing = 0
        self._looked = -1

    def tick(self) -> None:
        """Begin moves, and end drains, if anything has changed."""
        replica = self.manager.replica
        if self._writing or self._looked == replica.changes:
            return
        self._looked = replica.changes
        for drain in replica.drains.values():
            if drain.course is Course.OPEN:
                self._look(drain)

    def _look(self, drain: Drain) -> None:
        node = self.manager.replica.nodes.get(drain.node)
        if node is None or node.status.state != NODE_STATE_ONLINE:
            return
        guests = self._guests(drain)
        names = [guest.meta.name for guest in guests]
        found = plan(names, {name: self._tries(drain, name) for name in names}, DEFAULT_PARALLEL)
        if not guests or found.over:
            self._end(drain, found, left=bool(guests))
            return
        by_name = {guest.meta.name: guest for guest in guests}
        for name, number in found.begin:
            self._begin(drain, by_name[name], number)

    def _guests(self, drain: Drain) -> list[Guest]:
        guests = [guest for guest in self.manager.replica.guests.values() if not guest.meta.deleting]
        if not drain.back:
            return [guest for guest in guests if guest.status.node == drain.node]
        if drain.leave:
            return []
        return [guest for guest in guests if guest.status.home == drain.node and guest.status.node != drain.node]

    def _tries(self, drain: Drain, guest: str) -> list[Try]:
        tries = []
        for number in range(MAX_TRIES):
            move = self.manager.replica.moves.get(_move_name(drain, guest, number))
            if move is None:
                break
            tries.append(Try(move.course is Course.OPEN, move.reason, move.message))
        return tries

    def _begin(self, drain: Drain, stored: Guest, number: int) -> None:
        name, guest = stored.meta.name, copy_of(stored)
        target, now = drain.node if drain.back else "", self.manager.world.queue.now
        move = Move(_move_name(drain, name, number), name, target, "drain", at_ns=now)
        if not drain.back and drain.maintenance:
            guest.status.home = drain.node
        key = guest_key(name)
        compares = {key: self.manager.replica.revision_of(key)}
        self._put(Txn(compares, {f"move/{move.name}": move, key: guest}))

    def _end(self, drain: Drain, found: Plan, *, left: bool) -> None:
        puts: dict[str, Object] = {}
        for guest in self.manager.replica.guests.values() if drain.back else ():
            if guest.status.home == drain.node:
                home = copy_of(guest)
                home.status.home = ""
                puts[guest_key(guest.meta.name)] = home
        says = "has its guests again" if drain.back else "has no guests"
        if left:
            each = "; ".join(f"{guest}: {why}" for guest, why in sorted(found.stuck.items()))
            says = f"{len(found.stuck)} guests are {'not back' if drain.back else 'still here'}: {each}"
        course = Course.FAILED if left else Course.DONE
        puts[f"drain/{drain.name}"] = replace(drain, course=course, message=says if left else "")
        compares = {key: self.manager.replica.revision_of(key) for key in puts}
        self._put(Txn(compares, puts, tells=((node_key(drain.node), says),)))

    def _put(self, txn: Txn) -> None:
        self._writing += 1

        def done(ok: bool) -> None:
            self._writing -= 1
            self._looked = -1

        self.manager.put(txn, done)


def _move_name(drain: Drain, guest: str, number: int) -> str:
    return f"{drain.name}-{guest}-{number}"
