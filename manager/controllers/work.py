"""All controllers of the acting manager, run together, fed from one watch of the state."""

import asyncio
from collections.abc import Awaitable, Callable

from gugus.cluster.v1.cluster_pb2 import Cluster

from common.logs import get_logger
from manager.controllers.alarms import Alarms
from manager.controllers.balance import Balance
from manager.controllers.context import Context
from manager.controllers.copies import CopyController
from manager.controllers.departures import Departures
from manager.controllers.drains import Drains
from manager.controllers.fence_rounds import FenceRounds
from manager.controllers.fence_tasks import FenceTasks
from manager.controllers.fencing import Fencing
from manager.controllers.guests import GuestController
from manager.controllers.ha_switch import HaSwitch
from manager.controllers.images import ImageController
from manager.controllers.inheritance import Inheritance
from manager.controllers.janitor import Janitor
from manager.controllers.load_watch import LoadWatch
from manager.controllers.nodes import NodeController
from manager.controllers.placing import Placing
from manager.controllers.reboots import Reboots
from manager.controllers.room import Room
from manager.controllers.self_balance import SelfBalance
from manager.controllers.spread import Networks, Pools
from manager.controllers.voters import Voters
from manager.fencing import FenceDevice
from manager.members import Members
from manager.off_nodes import OffNodes
from manager.operations import HANDLERS, OperationController
from manager.store import Change, Compacted

RESTART_PAUSE_S = 1.0
"""Before a controller that failed is started again."""

_log = get_logger("controllers")


class Work:
    """One term of acting. Everything it knows is made anew from the state; nothing is carried over from an earlier one."""

    def __init__(
        self,
        context: Context,
        off: OffNodes,
        members: Members,
        voters: Voters,
        devices: FenceDevice,
        takeover_ns: int,
    ) -> None:
        self._context = context
        self._off = off
        fencing = Fencing(context, off, takeover_ns)
        self.nodes = NodeController(context, off, fencing, takeover_ns)
        self.placing = Placing(context)
        guests = GuestController(context, self.placing)
        operations = OperationController(context, HANDLERS)
        departures, reboots = Departures(context), Reboots(context, voters)
        drains, balance, ha_switch = Drains(context), Balance(context), HaSwitch(context)
        rounds, fence_tasks = FenceRounds(context, fencing, devices), FenceTasks(context, fencing)
        pools, networks, images = Pools(context), Networks(context), ImageController(context)
        self._listeners: tuple[Callable[[Change], None], ...] = (
            self.nodes.changed,
            rounds.changed,
            fence_tasks.changed,
            self.placing.changed,
            guests.changed,
            operations.changed,
            drains.changed,
            departures.changed,
            reboots.changed,
            balance.changed,
            ha_switch.changed,
            pools.changed,
            networks.changed,
            images.changed,
        )
        self._running: dict[str, Callable[[], Awaitable[None]]] = {
            "nodes": self.nodes.run,
            "fence rounds": rounds.run,
            "fence tasks": fence_tasks.run,
            "recovery": self.placing.run,
            "room": Room(context).run,
            "guests": guests.run,
            "operations": operations.run,
            "drains": drains.run,
            "departures": departures.run,
            "reboots": reboots.run,
            "balance": balance.run,
            "self balance": SelfBalance(context, balance, takeover_ns).run,
            "loads": LoadWatch(context).run,
            "HA switch": ha_switch.run,
            "pools": pools.run,
            "networks": networks.run,
            "images": images.run,
            "copies": CopyController(context).run,
            "inheritance": Inheritance(context).run,
            "janitor": Janitor(context).run,
            "alarms": Alarms(context, members).run,
            "voters": voters.run,
            "feed": self._feed,
        }

    async def run(self) -> None:
        """Run every controller until cancelled. A controller that fails is started again alone: the others go on."""
        await self._context.store.list(Cluster)  # a read barrier: what the predecessor committed is known here now
        await self._off.caught_up(self._context.store.revision)
        async with asyncio.TaskGroup() as group:
            for name, run in self._running.items():
                group.create_task(_kept_running(name, run))

    async def _feed(self) -> None:
        while True:
            revision, present = self._context.store.present()
            for change in present:
                self._dispatch(change)
            try:
                async for change in self._context.store.watch(from_revision=revision):
                    self._dispatch(change)
            except Compacted:
                _log.warning("fell behind the state, reading it anew")

    def _dispatch(self, change: Change) -> None:
        for listener in self._listeners:
            listener(change)


async def _kept_running(name: str, run: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await run()
        except Exception:
            _log.exception("a controller failed and is started again", controller=name)
        await asyncio.sleep(RESTART_PAUSE_S)
