"""Cleans nodes of guests that are not theirs: copies that were given to another node while this one was away, or deleted."""

import asyncio

from gugus.agent.v1 import guest_pb2 as agent_pb2
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import Node

from common.errors import GugusError
from common.logs import get_logger
from manager.consensus import ConsensusError
from manager.controllers.context import Context
from manager.controllers.guest_step import ALIVE_STATES
from manager.controllers.placing import view_of
from manager.events import WARNING, record
from manager.ha.recovery import CopyReport, StaleCopy, stale_copies
from manager.store import Txn

LOOK_S = 1.0

_log = get_logger("copies")


class CopyController:
    """Stale copies on all online nodes."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def run(self) -> None:
        """Look at what every online node reports, until cancelled."""
        while True:
            guests = {guest.meta.name: view_of(guest) for guest in self._context.store.peek_all(Guest)}
            for node in self._context.online_nodes():
                reports = [
                    CopyReport(report.name, report.generation, report.state in ALIVE_STATES)
                    for report in self._context.beats.of(node.meta.name).guests.values()
                ]
                for copy in stale_copies(node.meta.name, reports, guests):
                    await self._clean(node, copy)
            await asyncio.sleep(LOOK_S)

    async def _clean(self, node: Node, copy: StaleCopy) -> None:
        try:
            if copy.kill:
                txn = record(Txn(), f"guest/{copy.name}", "STALE_COPY_KILLED", copy.reason, WARNING)
                await self._context.store.txn(txn)
                await self._context.tell(
                    node,
                    lambda agent, epoch: agent.guests.KillGuest(
                        agent_pb2.KillGuestRequest(epoch=epoch, name=copy.name)
                    ),
                )
            await self._context.tell(
                node,
                lambda agent, epoch: agent.guests.DeleteGuest(
                    agent_pb2.DeleteGuestRequest(epoch=epoch, name=copy.name)
                ),
            )
        except (ConsensusError, GugusError) as error:
            _log.warning("stale copy not removed yet", guest=copy.name, node=node.meta.name, error=str(error))
        else:
            _log.info("stale copy removed", guest=copy.name, node=node.meta.name, reason=copy.reason)
