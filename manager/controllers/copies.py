"""Cleans nodes of guests that are not theirs: copies that were given to another node while this one was away, or deleted."""

import asyncio

from gugus.agent.v1 import guest_pb2 as agent_pb2
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node

from common.logs import get_logger
from manager.controllers.context import Context, with_epoch
from manager.controllers.guest_step import ALIVE_STATES
from manager.controllers.queue import WorkQueue
from manager.events import WARNING, record
from manager.ha.recovery import CopyReport, StaleCopy, stale_copies
from manager.ha.stored import view_of
from manager.store import Txn

LOOK_S = 1.0

SETTLED_S = 3.0
"""A copy is removed when it was stale for so long by beats that are newer: a beat may be a little older than the state."""

SLOTS = 4

_log = get_logger("copies")


class CopyController:
    """Stale copies on all online nodes; keys of the queue are "guest@node"."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._queue = WorkQueue("copy", self._turn, slots=SLOTS, lane=lambda key: key.partition("@")[2])
        self._since_ns: dict[str, int] = {}
        self._told: set[str] = set()

    async def run(self) -> None:
        """Look at what every online node reports, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._queue.run())
            while True:
                self._look()
                await asyncio.sleep(LOOK_S)

    def _look(self) -> None:
        stale = {f"{copy.name}@{node.meta.name}" for node in self._context.online_nodes() for copy in self._stale(node)}
        now_ns = self._context.acting.now_ns()
        self._since_ns = {key: self._since_ns.get(key, now_ns) for key in stale}
        self._told &= stale
        for key in stale:
            heard_ns = self._context.beats.of(key.partition("@")[2]).heard_ns or 0
            if heard_ns - self._since_ns[key] > SETTLED_S * 1e9:
                self._queue.wake(key)

    def _stale(self, node: Node) -> list[StaleCopy]:
        guests = {guest.meta.name: view_of(guest) for guest in self._context.store.peek_all(Guest)}
        reports = [
            CopyReport(report.name, report.generation, report.state in ALIVE_STATES, report.uid)
            for report in self._context.beats.of(node.meta.name).guests.values()
        ]
        return stale_copies(node.meta.name, reports, guests, self._context.generation_floor())

    def _copy(self, key: str) -> tuple[Node, StaleCopy] | None:
        """Return the copy if it is stale still: asked anew before each call, for a guest of its name may be made any time."""
        name, _, node_name = key.partition("@")
        node = self._context.store.peek(Node, node_name)
        if node is None or node.status.state != NODE_STATE_ONLINE:
            return None
        return next(((node, copy) for copy in self._stale(node) if copy.name == name), None)

    async def _turn(self, key: str) -> float | None:
        if (found := self._copy(key)) is None:
            return None
        node, copy = found
        if copy.kill:
            if key not in self._told:
                self._told.add(key)
                text = f"killed on {node.meta.name}: {copy.reason}"
                await self._context.store.txn(record(Txn(), f"guest/{copy.name}", "STALE_COPY_KILLED", text, WARNING))
            if self._copy(key) is None:
                return None
            kill = agent_pb2.KillGuestRequest(name=copy.name)
            await self._context.tell(node, lambda agent, epoch: agent.guests.KillGuest(with_epoch(kill, epoch)))
        delete = agent_pb2.DeleteGuestRequest(name=copy.name)
        if self._copy(key) is not None:
            await self._context.tell(node, lambda agent, epoch: agent.guests.DeleteGuest(with_epoch(delete, epoch)))
            _log.info("stale copy removed", guest=copy.name, node=node.meta.name, reason=copy.reason)
        return None
