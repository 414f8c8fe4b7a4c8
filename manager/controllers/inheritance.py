"""Takes in what the nodes of a cluster that was recovered run from before (`manager.ha.inherited` decides).

Invariant: a node counts as taken in only after it was heard as the incarnation that holds the lease, and everything that it runs and the
state gives to another was given to it.
"""

import asyncio
from collections.abc import Mapping

from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_STARTING, POWER_ON, Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node

from common.errors import GugusError
from common.logs import get_logger
from manager.consensus import ConsensusError
from manager.controllers.context import Context
from manager.controllers.guest_step import ALIVE_STATES
from manager.events import INFO, WARNING, record
from manager.ha.inherited import Adopt, adoptions, unknown_copies
from manager.ha.node_machine import another_incarnation
from manager.ha.recovery import CopyReport
from manager.store import Txn

LOOK_S = 0.5

_log = get_logger("inheritance")


class Inheritance:
    """What is left from before the last recovery, on all online nodes."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._told: set[tuple[str, str]] = set()

    async def run(self) -> None:
        """Look until cancelled; in a cluster that was never recovered there is nothing to see."""
        while True:
            if self._context.generation_floor():
                for node in self._context.online_nodes():
                    try:
                        await self._look(node)
                    except (ConsensusError, GugusError) as error:
                        _log.warning("taken in at the next look", node=node.meta.name, error=str(error))
            await asyncio.sleep(LOOK_S)

    async def _look(self, node: Node) -> None:
        if not self._heard(node):
            return
        guests = {guest.meta.name: guest for guest in self._context.store.peek_all(Guest)}
        reports, floor = self._reports(node.meta.name), self._context.generation_floor()
        found = adoptions(node.meta.name, reports, guests, floor, self._alive_at_home(guests))
        for adopt in found:
            await self._adopt(guests[adopt.guest], adopt)
        await self._tell_unknown(node.meta.name, unknown_copies(reports, guests, floor))
        if node.status.former and not found:
            await self._taken_in(node)

    def _heard(self, node: Node) -> bool:
        """Return whether this manager has heard the node, and as the incarnation that holds the lease."""
        beat = self._context.beats.of(node.meta.name).beat
        if beat is None or node.status.state != NODE_STATE_ONLINE:
            return False
        lapse = beat.lapse.number if beat.HasField("lapse") else None
        return not another_incarnation(node.status.boot_id, node.status.lapse_number, beat.boot_id, lapse)

    def _reports(self, node: str) -> list[CopyReport]:
        return [
            CopyReport(report.name, report.generation, report.state in ALIVE_STATES, report.uid)
            for report in self._context.beats.of(node).guests.values()
        ]

    def _alive_at_home(self, guests: Mapping[str, Guest]) -> set[str]:
        alive, online = set(), {node.meta.name for node in self._context.online_nodes()}
        for name, guest in guests.items():
            if guest.status.node not in online:
                continue
            report = self._context.beats.of(guest.status.node).guests.get(name)
            if report is not None and report.state in ALIVE_STATES and report.uid == guest.meta.uid:
                alive.add(name)
        return alive

    async def _adopt(self, guest: Guest, adopt: Adopt) -> None:
        """Give a guest to the node that has it. Its start there, which finds one running that runs, makes the new generation known."""
        guest.status.node = adopt.node
        guest.status.phase, guest.status.reason = GUEST_PHASE_STARTING, adopt.reason
        guest.status.volumes_ready = True  # without them the node could not have defined it
        guest.status.ha_armed = False  # nothing of HA runs on a host that has just joined: it held no lease
        guest.spec.power = POWER_ON if adopt.running else guest.spec.power
        guest.meta.generation += 1
        txn = Txn().put(guest, expect_revision=guest.meta.revision)
        await self._context.store.txn(
            record(txn, f"guest/{adopt.guest}", "GUEST_ADOPTED", f"{adopt.guest}: {adopt.reason}", WARNING)
        )

    async def _tell_unknown(self, node: str, copies: list[CopyReport]) -> None:
        for copy in copies:
            if (node, copy.name) in self._told:
                continue
            self._told.add((node, copy.name))
            text = (
                f"{node} {'runs' if copy.running else 'has'} a guest {copy.name} ({copy.uid or 'without a definition'}) that the "
                "recovered state does not know: it was made after that was taken. It is left alone; see docs/recovery.md"
            )
            await self._context.store.txn(record(Txn(), f"node/{node}", "UNKNOWN_GUEST_LEFT", text, WARNING))

    async def _taken_in(self, node: Node) -> None:
        node.status.former = False
        txn = Txn().put(node, expect_revision=node.meta.revision)
        text = f"{node.meta.name} has joined anew, and what it runs was taken in"
        await self._context.store.txn(record(txn, f"node/{node.meta.name}", "NODE_TAKEN_IN", text, INFO))
