"""Switches HA off and on for the whole cluster, guest by guest, and ends the tasks that asked for it.

Invariant: the guest controller tells a node to let go of a guest only after the state says that it is not held (`GuestSteps.arm`), so at no
moment does the state count on a node that does not hold a guest under HA any more.
"""

import asyncio
from collections.abc import Callable

from gugus.agent.v1.task_pb2 import TASK_STATE_FAILED, TASK_STATE_SUCCEEDED
from gugus.cluster.v1.cluster_pb2 import Cluster
from gugus.cluster.v1.guest_pb2 import HA_STATE_RECOVERY, Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node
from gugus.cluster.v1.task_pb2 import Task

from common.errors import GugusError, aborted, to_status
from common.logs import get_logger
from common.waiting import happened
from manager.consensus import ConsensusError
from manager.controllers.context import Context
from manager.ha import account
from manager.store import Change, Txn
from manager.tasks import active, finish, log_line

DISARM = "disarm-ha"
ARM = "arm-ha"

LOOK_S = 0.25
"""Longest time between two looks while a switch is under way; a change of a guest or of the cluster is looked at once."""

_SHOWN = 5
"""Guests that a log line names before it counts the rest."""

_log = get_logger("ha")


class HaSwitch:
    """The switch of the cluster's HA."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store
        self._news = asyncio.Event()

    def changed(self, change: Change) -> None:
        """Take in a change of the cluster, of a guest, or of a task about the cluster."""
        if change.kind in ("cluster", "guest") or (change.kind == "task" and not change.deleted):
            self._news.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            self._news.clear()
            try:
                under_way = await self._look()
            except (ConsensusError, GugusError) as error:
                _log.warning("switching HA is tried again", error=str(error))
                under_way = True
            if under_way:
                await happened(self._news, LOOK_S)
            else:
                await self._news.wait()

    async def _look(self) -> bool:
        """Do what is to be done now. Returns whether to look again soon."""
        clusters = self._store.peek_all(Cluster)
        if not clusters:
            return False
        ha = clusters[0].ha
        for guest in self._store.peek_all(Guest):
            if account.switch(guest, ha):
                await self._store.txn(Txn().put(guest, expect_revision=guest.meta.revision))
        tasks = [t for t in active(self._store, f"cluster/{clusters[0].meta.name}") if t.kind in (DISARM, ARM)]
        for task in tasks:
            await self._end_or_tell(task, disarmed=ha.disarmed)
        return bool(tasks)

    async def _end_or_tell(self, task: Task, *, disarmed: bool) -> None:
        if (task.kind == DISARM) != disarmed:
            why = f"HA was {'disarmed' if disarmed else 'armed'} again meanwhile"
            task.error.CopyFrom(to_status(aborted("SUPERSEDED", f"{why}.")))
            finish(task, TASK_STATE_FAILED, why)
        elif left := self._left(_holds if disarmed else _lacks):
            more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
            if not log_line(task, f"waiting for {', '.join(left[:_SHOWN])}{more}"):
                return
        else:
            finish(task, TASK_STATE_SUCCEEDED, f"HA is {'disarmed' if disarmed else 'armed'}")
        await self._store.txn(Txn().put(task, expect_revision=task.meta.revision))

    def _left(self, late: Callable[[Guest, bool], bool]) -> list[str]:
        online = {n.meta.name for n in self._store.peek_all(Node) if n.status.state == NODE_STATE_ONLINE}
        return [g.meta.name for g in self._store.peek_all(Guest) if late(g, g.status.node in online)]


def _holds(guest: Guest, online: bool) -> bool:
    """Return whether a node may hold the guest under HA. One in recovery is on none."""
    return guest.status.ha_armed and guest.status.ha.state != HA_STATE_RECOVERY


def _lacks(guest: Guest, online: bool) -> bool:
    """Return whether the guest is to be held under HA and is not yet; nobody can do that on a node that is lost."""
    return online and account.held(guest) and not guest.status.ha_armed
