"""Rebooting, resetting and hibernating guests.

Everything else about power is no operation: it is written into the spec, and the guest controller makes it so.
"""

from typing import Final

from gugus.agent.v1 import guest_pb2 as agent_guest
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER, GUEST_STATE_STOPPED
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_HIBERNATED,
    GUEST_PHASE_PAUSED,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STARTING,
    GUEST_PHASE_STOPPING,
    POWER_HIBERNATED,
    POWER_OFF,
    POWER_ON,
    Guest,
    HibernateGuestRequest,
    RebootGuestRequest,
)
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.pool_pb2 import Pool

from common.errors import GugusError, aborted, precondition
from manager.controllers import guest_node
from manager.controllers.context import with_epoch
from manager.events import INFO, record
from manager.guests.cpu_baseline import choose_hardware
from manager.guests.known import shared
from manager.guests.rules.placement import bound_by
from manager.guests.volumes import volume_name, volume_names
from manager.operations.handler import moved
from manager.operations.operation import Operation

REBOOT: Final = "reboot-guest"
RESET: Final = "reset-guest"
HIBERNATE: Final = "hibernate-guest"

_RUNNING: Final = (GUEST_PHASE_RUNNING, GUEST_PHASE_PAUSED)

_SURELY_NOT_SENT: Final = frozenset({"NOT_ACTING", "NODE_NOT_ONLINE", "GUEST_NOT_RUNNING"})
"""Errors after which a reset was certainly not carried out."""


class Reboot:
    """Work of RebootGuest: stop in order and start, both under the lock, so that nobody takes the end for one of the guest's own."""

    kind, verb, cancellable = REBOOT, "reboot", False

    async def run(self, op: Operation) -> str:
        """Stop the guest and start it, its pending changes applied. Killed in between, it is stopped (again) and started."""
        if not op.step:
            _require_running(op.guest)
            await op.note("stop", node=op.guest.status.node, log="being shut down")
        if op.step == "stop":
            _require_home(op)
            await op.change(lambda guest: _phase(guest, GUEST_PHASE_STOPPING, "being rebooted"))
            request = op.request(RebootGuestRequest)
            own_ms = op.guest.spec.shutdown_timeout_ms or guest_node.DEFAULT_STOP_TIMEOUT_MS
            timeout_ms = request.timeout_ms or own_ms
            outcome = await guest_node.halt(op.tell, op.name, timeout_ms)
            await op.log(guest_node.how_stopped(outcome, timeout_ms))
            await op.note("start", log="being started")
        _require_home(op)
        if op.guest.spec.power == POWER_OFF:
            return "stopped; it was asked to stay so meanwhile"
        await op.change(lambda guest: _to_start(op, guest))
        await guest_node.define(op.tell, op.guest, ha=op.guest.status.ha_armed)
        answer = await guest_node.start(op.tell, op.guest)
        node = op.node()

        def running(guest: Guest) -> None:
            guest_node.note_started(guest, node, answer)
            _phase(guest, GUEST_PHASE_RUNNING, f"runs on {node.meta.name}")

        await op.change(running)
        return f"rebooted on {node.meta.name}"

    async def undo(self, op: Operation) -> None:
        """Leave the start to the guest controller: the guest is to run, and it is said why it does not."""
        if op.guest.status.phase == GUEST_PHASE_STOPPING:
            await op.change(lambda guest: _phase(guest, GUEST_PHASE_STARTING, "a reboot of it failed"))


class Reset:
    """Work of ResetGuest."""

    kind, verb, cancellable = RESET, "reset", False

    async def run(self, op: Operation) -> str:
        """Reset the guest once: whoever goes on after a crash in the middle does not do it again."""
        if op.step:
            raise aborted(
                "RESET_UNKNOWN",
                f"guest {op.name}: manager or node ended in the middle; whether it was reset is not known.",
                remedy="Look at its console, and ask again if it was not.",
            )
        _require_running(op.guest)
        await op.note("reset", node=op.guest.status.node)
        reset = agent_guest.ResetGuestRequest(name=op.name)
        try:
            await op.tell(lambda agent, epoch: agent.guests.ResetGuest(with_epoch(reset, epoch)))
        except GugusError as error:
            if error.reason in _SURELY_NOT_SENT:
                await op.note("")
            raise
        return "reset"

    async def undo(self, op: Operation) -> None:
        """Nothing is left behind."""


class Hibernate:
    """Work of HibernateGuest. The volume's name is noted before the volume is made, so that none is forgotten."""

    kind, verb, cancellable = HIBERNATE, "hibernate", True

    async def run(self, op: Operation) -> str:
        """Have the guest's memory written into a volume, and write down that it is there."""
        if not op.step:
            _require_running(op.guest)
            refuse_to_hibernate(op.guest)
            await op.note("save", self._plan(op), node=op.guest.status.node, log="its memory is being written")
        _require_home(op)
        wish = op.notes(agent_guest.HibernateGuestRequest)
        work = await op.tell(lambda agent, epoch: agent.guests.HibernateGuest(with_epoch(wish, epoch)))
        await op.follow(work)

        def asleep(guest: Guest) -> None:
            status = guest.status
            status.hibernation_pool, status.hibernation_volume = wish.pool, wish.volume
            status.observed, status.mode = GUEST_STATE_STOPPED, ""
            if guest.spec.power != POWER_OFF:  # a stop that was asked for meanwhile throws the memory away
                guest.spec.power = POWER_HIBERNATED
            _phase(guest, GUEST_PHASE_HIBERNATED, f"hibernated on {status.node}")

        await op.change(
            asleep, lambda txn: record(txn, f"guest/{op.name}", "GUEST_HIBERNATED", f"{op.name} was hibernated", INFO)
        )
        return "its memory is on disk"

    def _plan(self, op: Operation) -> agent_guest.HibernateGuestRequest:
        guest = op.guest
        pool = op.request(HibernateGuestRequest).pool or guest.spec.disks[0].pool
        stored = op.context.store.peek(Pool, pool)
        if stored is None:
            raise precondition("POOL_GONE", f'pool "{pool}" was deleted meanwhile.', remedy="Choose another pool.")
        if guest.spec.ha.enabled and not shared(stored):
            raise precondition(
                "POOL_NOT_SHARED",
                f"guest {op.name} is under HA, and pool {pool} exists on each node by itself: its memory would be lost with its node.",
                remedy="Name a shared pool.",
            )
        volume = volume_name(op.name, "memory", guest.meta.uid, volume_names(guest))
        return agent_guest.HibernateGuestRequest(name=op.name, pool=pool, volume=volume, task_id=op.id)

    async def undo(self, op: Operation) -> None:
        """Remove the volume, unless the guest sleeps in it."""
        wish = op.notes(agent_guest.HibernateGuestRequest)
        if wish.volume and op.guest.status.hibernation_volume != wish.volume:
            await guest_node.delete_volumes(op.tell, [(wish.pool, wish.volume)])


def refuse_to_hibernate(guest: Guest) -> None:
    """Raise NOT_HIBERNATABLE for a guest whose state is more than its memory."""
    _require_running(guest)
    why = "containers cannot be" if guest.spec.kind == GUEST_KIND_CONTAINER else ""
    if bound := bound_by(guest.spec):
        why = f"the state of {', '.join(bound)} cannot be saved"
    if why:
        raise precondition(
            "NOT_HIBERNATABLE",
            f"guest {guest.meta.name} cannot be hibernated: {why}.",
            remedy=f"`gugus guest suspend {guest.meta.name}` holds it in memory.",
        )


def _require_running(guest: Guest) -> None:
    if guest.status.phase not in _RUNNING or guest.spec.power == POWER_OFF:
        raise precondition(
            "GUEST_NOT_RUNNING",
            f"guest {guest.meta.name} does not run: {guest.status.reason}.",
            remedy=f"`gugus guest start {guest.meta.name}` first.",
        )


def _require_home(op: Operation) -> None:
    """Raise GUEST_MOVED when the guest was given to another node since the operation began."""
    if op.task.node and op.guest.status.node != op.task.node:
        raise moved(op)


def _to_start(op: Operation, guest: Guest) -> None:
    choose_hardware(guest, op.context.store.peek_all(Node))
    _phase(guest, GUEST_PHASE_STARTING, "being rebooted")


def _phase(guest: Guest, phase: int, reason: str) -> None:
    guest.status.phase, guest.status.reason = phase, reason  # type: ignore[assignment]
    if phase == GUEST_PHASE_RUNNING and guest.spec.power != POWER_OFF:
        guest.spec.power = POWER_ON
