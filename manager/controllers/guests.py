"""The guest controller: takes one step at a time until each guest is what its spec asks for, and ends the tasks about it.

Invariant: a guest is started only after its assignment to the node (node and generation) was committed, and the start names exactly that
generation; whoever holds an older one is refused by the agent.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gugus.agent.v1 import guest_pb2 as agent_pb2
from gugus.agent.v1 import volume_pb2
from gugus.agent.v1.guest_pb2 import GUEST_STATE_STOPPED, GUEST_STATE_UNSPECIFIED, GuestState
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_DELETING,
    GUEST_PHASE_ERROR,
    GUEST_PHASE_RECOVERING,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STARTING,
    GUEST_PHASE_STOPPED,
    GUEST_PHASE_STOPPING,
    GUEST_PHASE_UNKNOWN,
    POWER_ON,
    Guest,
    GuestPhase,
)
from gugus.cluster.v1.heartbeat_pb2 import GuestReport
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node
from gugus.cluster.v1.pool_pb2 import Pool

from common.errors import GugusError
from common.logs import get_logger
from manager.agents import Agent
from manager.controllers.compile import agent_spec, volume_request
from manager.controllers.context import TRANSIENT_REASONS, Context, with_epoch
from manager.controllers.guest_step import ALIVE_STATES, Action, next_step
from manager.controllers.guest_tasks import GuestTasks
from manager.controllers.placing import Placing
from manager.controllers.queue import WorkQueue
from manager.events import ERROR, INFO, WARNING, record
from manager.ha import inherited
from manager.ha.node_machine import another_incarnation
from manager.store import Change, Conflict, Txn

T = TypeVar("T")

SLOTS = 16
"""Guests of one node worked on at once."""

START_TIMEOUT_S = 60.0
VOLUME_TIMEOUT_S = 300.0
"""Making a volume copies or unpacks an image; a task that takes longer has hung storage."""

STOP_MARGIN_S = 15.0
"""Added to a guest's own time to shut down before the call to the agent is given up."""

DEFAULT_STOP_TIMEOUT_MS = 60_000

STOP_LOOK_S = 0.5
"""While a guest shuts down, so often it is looked whether it is now to be killed instead."""

MAX_RESTART_DELAY_S = 60.0
"""A guest that fails to start is tried again after 1, 2, 4, ... seconds, at most this."""

BACKED_OFF = frozenset({Action.START, Action.PROVISION, Action.DEFINE})
"""Steps that wait after a failure; stopping and deleting do not, their failures are tried again by the queue."""

STEADY_S = 60.0
"""A guest that ends by itself sooner after its start than this is started again later each time."""

SETTLED_PHASES = frozenset({GUEST_PHASE_RUNNING, GUEST_PHASE_STOPPED})

UNCONFIRMED_LOOK_S = 1.0
"""A guest that no beat confirms to be as stored is looked at so often."""

DEFINED_LOOK_S = 1.0
"""After a node was told whether to hold a guest under HA: by then a beat says that it does."""

INHERITED_STEPS = frozenset({Action.PLACE, Action.PROVISION, Action.START, Action.REMOVE})
"""Steps that a guest from before a recovery of the cluster may have to wait with (`manager.ha.inherited`)."""

INHERITED_LOOK_S = 1.0
"""Such a guest is looked at so often."""

PENDING_LOOK_S = 2.0
"""A guest that no node fits is looked at so often."""

_log = get_logger("guests")


class GuestController:
    """All guests of the cluster."""

    def __init__(self, context: Context, placing: Placing) -> None:
        self._context = context
        self._placing = placing
        self._tasks = GuestTasks(context.store)
        self._queue = WorkQueue("guest", self._turn, slots=SLOTS, lane=self._node_of)
        self._retry_at: dict[str, float] = {}
        self._told: dict[str, str] = {}
        self._started: dict[str, float] = {}
        context.beats.listen(self._beat)

    def changed(self, change: Change) -> None:
        """Take in a change of a guest, of a node, or of a task about a guest."""
        if change.kind == "guest":
            if change.deleted:
                self._retry_at.pop(change.name, None)
                self._told.pop(change.name, None)
                self._started.pop(change.name, None)
            self._queue.wake(change.name)
        elif change.kind == "node":
            self._wake_guests_of(change.name)
        elif change.kind == "task" and not change.deleted and change.obj.target.startswith("guest/"):
            self._queue.wake(change.obj.target.removeprefix("guest/"))

    async def run(self) -> None:
        """Work until cancelled."""
        await self._queue.run()

    def _node_of(self, name: str) -> str:
        guest = self._context.store.peek(Guest, name)
        return guest.status.node if guest else ""

    def _beat(self, node: str) -> None:
        for name in self._context.beats.of(node).guests:
            self._queue.wake(name)
        self._wake_guests_of(node)

    def _wake_guests_of(self, node: str) -> None:
        for guest in self._context.store.peek_all(Guest):
            if guest.status.node in ("", node):
                self._queue.wake(guest.meta.name)

    async def _turn(self, name: str) -> float | None:
        guest = self._context.store.peek(Guest, name)
        if guest is None:
            await self._tasks.settle(name, None)
            return None
        if await self._tasks.settle(name, guest):
            return 0.0  # time has passed: look at the guest anew
        node = self._context.store.peek(Node, guest.status.node) if guest.status.node else None
        if node is not None and node.status.state == NODE_STATE_ONLINE and not self._heard_as(node):
            return None  # a beat, or its absence, will soon change the node
        observed = await self._observe(guest, node)
        step = next_step(guest, node, observed, self._held(guest, node))
        if step.action is Action.WAIT:
            await self._wait(guest, node)
            return UNCONFIRMED_LOOK_S if self._unconfirmed(guest, node) else None
        if guest.status.inherited and step.action in INHERITED_STEPS and await self._blocked(guest, node):
            return INHERITED_LOOK_S
        if step.action in BACKED_OFF and (delay_s := self._retry_at.get(name, 0.0) - time.monotonic()) > 0:
            return delay_s
        try:
            return await self._take(step.action, guest, node, observed)
        except GugusError as error:
            return await self._failed(guest, error)

    async def _take(
        self, action: Action, guest: Guest, node: Node | None, observed: GuestState.ValueType
    ) -> float | None:
        if action is Action.PLACE:
            return None if await self._placing.place(guest) else PENDING_LOOK_S
        if action is Action.REMOVE:
            await self._remove(guest, node)
            return None
        if node is None:
            raise RuntimeError(f"step {action} without a node")
        if action is Action.PROVISION:
            await self._provision(guest, node)
        elif action is Action.START:
            return await self._start(guest, node)
        elif action is Action.STOP:
            await self._stop(guest, node)
            return 0.0
        elif action is Action.DEFINE:
            await self._arm(guest, node)
            return DEFINED_LOOK_S
        elif action is Action.SETTLE:
            await self._settle(guest, observed)
        return None

    def _heard_as(self, node: Node) -> bool:
        """Return whether this manager has heard the node, and as the incarnation that holds the lease.

        What another one says of guests is no news of theirs: the node is about to be fenced, and they to be recovered.
        """
        beat = self._context.beats.of(node.meta.name).beat
        return beat is not None and not another_incarnation(
            node.status.boot_id,
            node.status.lapse_number,
            beat.boot_id,
            beat.lapse.number if beat.HasField("lapse") else None,
        )

    async def _observe(self, guest: Guest, node: Node | None) -> GuestState.ValueType:
        """Return what the node's agent says of the guest; asks it when the last beat does not agree with the stored phase."""
        if node is None or node.status.state != NODE_STATE_ONLINE:
            return GUEST_STATE_UNSPECIFIED
        report = self._context.beats.of(node.meta.name).guests.get(guest.meta.name)
        if report is not None and _is_of(report.uid, report.generation, guest) and _agrees(guest, report):
            return report.state
        try:
            answer = await self._context.tell(
                node,
                lambda agent, _: agent.guests.InspectGuest(agent_pb2.InspectGuestRequest(name=guest.meta.name)),
            )
        except GugusError as error:
            if error.reason == "GUEST_NOT_FOUND":
                return GUEST_STATE_STOPPED
            raise
        # A copy of an older generation, or of a deleted guest of this name, is not this assignment's: the start, which is idempotent,
        # brings the one to it and takes the other away.
        return answer.state if _is_of(answer.spec.uid, answer.generation, guest) else GUEST_STATE_STOPPED

    def _unconfirmed(self, guest: Guest, node: Node | None) -> bool:
        """Return whether no beat has yet told what is stored: a guest that ends before one did is told of by none."""
        if node is None or node.status.state != NODE_STATE_ONLINE or guest.status.phase not in SETTLED_PHASES:
            return False
        report = self._context.beats.of(node.meta.name).guests.get(guest.meta.name)
        if report is None:  # a node need not know a guest that never ran there
            return guest.status.phase == GUEST_PHASE_RUNNING
        return not _agrees(guest, report)

    def _held(self, guest: Guest, node: Node | None) -> bool | None:
        """Return whether the newest beat of the node says that it holds the guest under HA; None when it does not say."""
        report = self._context.beats.of(node.meta.name).guests.get(guest.meta.name) if node else None
        return report.ha if report is not None and _is_of(report.uid, report.generation, guest) else None

    async def _blocked(self, guest: Guest, node: Node | None) -> bool:
        """Return whether a guest from before a recovery has to wait, and note for what."""
        if node is None and guest.status.node and guest.spec.ha.enabled and not guest.meta.deleting:
            return True  # recovery gives it to another node (`Placing`)
        store = self._context.store
        report = self._context.beats.of(node.meta.name).guests.get(guest.meta.name) if node else None
        pools = {pool.meta.name: pool for pool in store.peek_all(Pool)}
        why = inherited.obstacle(
            guest,
            node,
            self._context.former_nodes(),
            alive_at_home=report is not None and report.uid == guest.meta.uid and report.state in ALIVE_STATES,
            movable=inherited.movable(guest, pools),
        )
        if why and guest.status.reason != why:
            await self._phase(guest, GUEST_PHASE_UNKNOWN, why)
        return bool(why)

    async def _tell(self, guest: Guest, node: Node, call: Callable[[Agent, int], Awaitable[T]]) -> T:
        """Call a node's agent about a guest, if the state still says of the guest what the call was decided from.

        Between the decision and a later call of the same turn the guest may have been recovered elsewhere. Raises Conflict then, and what
        `Context.tell` raises.
        """
        now = self._context.store.peek(Guest, guest.meta.name)
        if now is None or _basis(now) != _basis(guest):
            raise Conflict([f"guest/{guest.meta.name}"])
        return await self._context.tell(node, call)

    async def _provision(self, guest: Guest, node: Node) -> None:
        for disk in guest.spec.disks:
            await self._tell(
                guest,
                node,
                lambda agent, epoch, disk=disk: agent.volumes.CreateVolume(  # type: ignore[misc]
                    volume_request(guest, disk, epoch), timeout=VOLUME_TIMEOUT_S
                ),
            )
        guest.status.volumes_ready = True
        await self._put(guest)

    async def _start(self, guest: Guest, node: Node) -> float | None:
        if guest.status.phase == GUEST_PHASE_RUNNING and (delay_s := await self._ended_by_itself(guest)) > 0:
            return delay_s
        if guest.status.phase != GUEST_PHASE_STARTING:
            guest = await self._phase(guest, GUEST_PHASE_STARTING, f"being started on {node.meta.name}")
        await self._define(guest, node)
        answer = await self._tell(
            guest,
            node,
            lambda agent, epoch: agent.guests.StartGuest(
                agent_pb2.StartGuestRequest(
                    epoch=epoch, name=guest.meta.name, grant=agent_pb2.Grant(generation=guest.meta.generation)
                ),
                timeout=START_TIMEOUT_S,
            ),
        )
        guest.status.observed, guest.status.mode = answer.state, answer.mode
        guest.status.inherited = False
        self._retry_at.pop(guest.meta.name, None)
        self._told.pop(guest.meta.name, None)
        self._started[guest.meta.name] = time.monotonic()
        reason = _settled_reason(guest)
        txn = record(Txn(), f"guest/{guest.meta.name}", "GUEST_RUNNING", f"{guest.meta.name} {reason}", INFO)
        await self._phase(guest, GUEST_PHASE_RUNNING, reason, txn)
        return None

    async def _ended_by_itself(self, guest: Guest) -> float:
        """Note that a running guest ended, and return after how many seconds it is started again: later each time if it does so soon."""
        name, now_s = guest.meta.name, time.monotonic()
        steady = now_s - self._started.get(name, float("-inf")) > STEADY_S
        guest.status.failures = 1 if steady else guest.status.failures + 1
        delay_s = 0.0 if guest.status.failures == 1 else _backoff_s(guest.status.failures - 1)
        self._retry_at[name] = now_s + delay_s
        when = f"in {delay_s:g} s" if delay_s else "now"
        reason = f"it ended by itself ({guest.status.failures} times in a row); started again {when}"
        txn = record(Txn(), f"guest/{name}", "GUEST_DOWN", f"{name}: {reason}", WARNING)
        guest = await self._phase(guest, GUEST_PHASE_STARTING, reason, txn)
        return delay_s

    async def _define(self, guest: Guest, node: Node) -> None:
        request = agent_pb2.CreateGuestRequest(spec=agent_spec(guest, ha=guest.status.ha_armed))
        try:
            await self._tell(guest, node, lambda agent, epoch: agent.guests.CreateGuest(with_epoch(request, epoch)))
        except GugusError as error:
            if error.reason != "GUEST_NAME_TAKEN" or guest.status.inherited:
                raise  # what is left from before a recovery may be all there is of a guest that the state does not know
            # Names are unique: what the node has under this one is left of a guest that was deleted while the node was away.
            await self._take_away(guest, node)
            await self._tell(guest, node, lambda agent, epoch: agent.guests.CreateGuest(with_epoch(request, epoch)))

    async def _arm(self, guest: Guest, node: Node) -> None:
        """Make the node's agent hold the guest under HA, or not any more.

        The state says "armed" only while the agent surely does: it is told before arming is written down, and after disarming is.
        """
        wanted = guest.spec.ha.enabled
        if not wanted and guest.status.ha_armed:
            guest.status.ha_armed = False
            guest = await self._put(guest)
        spec = agent_spec(guest, ha=wanted)
        await self._tell(
            guest,
            node,
            lambda agent, epoch: agent.guests.CreateGuest(agent_pb2.CreateGuestRequest(epoch=epoch, spec=spec)),
        )
        if wanted and not guest.status.ha_armed:
            guest.status.ha_armed = True
            await self._put(guest)

    async def _stop(self, guest: Guest, node: Node) -> None:
        timeout_ms = self._tasks.stop_timeout_ms(guest.meta.name, DEFAULT_STOP_TIMEOUT_MS)
        if guest.status.phase != GUEST_PHASE_STOPPING:
            guest = await self._phase(guest, GUEST_PHASE_STOPPING, f"being stopped on {node.meta.name}")
        halting = asyncio.create_task(self._halt(guest, node, timeout_ms))
        try:
            while not (await asyncio.wait({halting}, timeout=STOP_LOOK_S))[0]:
                if timeout_ms and not self._tasks.stop_timeout_ms(guest.meta.name, timeout_ms):
                    timeout_ms = 0
                    await self._kill(guest, node)
            await halting
        finally:
            halting.cancel()

    async def _kill(self, guest: Guest, node: Node) -> None:
        """Someone lost patience with the graceful stop under way."""
        await self._tell(
            guest,
            node,
            lambda agent, epoch: agent.guests.KillGuest(agent_pb2.KillGuestRequest(epoch=epoch, name=guest.meta.name)),
        )

    async def _halt(self, guest: Guest, node: Node, timeout_ms: int) -> None:
        await self._tell(
            guest,
            node,
            lambda agent, epoch: agent.guests.StopGuest(
                agent_pb2.StopGuestRequest(epoch=epoch, name=guest.meta.name, timeout_ms=timeout_ms),
                timeout=timeout_ms / 1000 + STOP_MARGIN_S,
            ),
        )

    async def _remove(self, guest: Guest, node: Node | None) -> None:
        name, left = guest.meta.name, ""
        if node is not None:
            if guest.status.phase != GUEST_PHASE_DELETING:
                guest = await self._phase(guest, GUEST_PHASE_DELETING, f"being deleted on {node.meta.name}")
            if node.status.state == NODE_STATE_ONLINE:
                await self._take_away(guest, node)
                await self._delete_volumes(guest, node)
            else:
                left = f"; {node.meta.name} is lost: what it had of the guest is removed when it is back, but volumes stay there"
        txn = Txn().delete(Guest, name, expect_revision=guest.meta.revision)
        await self._tasks.end_deleted(name, txn)
        await self._context.store.txn(record(txn, f"guest/{name}", "GUEST_DELETED", f"{name} was deleted{left}", INFO))

    async def _delete_volumes(self, guest: Guest, node: Node) -> None:
        for disk in guest.spec.disks:
            request = volume_pb2.DeleteVolumeRequest(pool=disk.pool, name=disk.volume)
            await self._tell(
                guest,
                node,
                lambda agent, epoch, request=request: agent.volumes.DeleteVolume(  # type: ignore[misc]
                    with_epoch(request, epoch), timeout=VOLUME_TIMEOUT_S
                ),
            )

    async def _take_away(self, guest: Guest, node: Node) -> None:
        """End a guest on its node and remove its definition there. Fine when the node does not know it."""
        try:
            await self._halt(guest, node, 0)
        except GugusError as error:
            if error.reason != "GUEST_NOT_FOUND":
                raise
        await self._tell(
            guest,
            node,
            lambda agent, epoch: agent.guests.DeleteGuest(
                agent_pb2.DeleteGuestRequest(epoch=epoch, name=guest.meta.name)
            ),
        )

    async def _settle(self, guest: Guest, observed: GuestState.ValueType) -> None:
        node = guest.status.node
        report = self._context.beats.of(node).guests.get(guest.meta.name)
        guest.status.observed = observed
        if report is not None:
            guest.status.addresses[:] = report.addresses
            guest.status.mode = report.mode
        on = guest.spec.power == POWER_ON
        if not on:
            guest.status.mode = ""
            guest.status.failures = 0
            guest.status.inherited &= bool(self._context.former_nodes())
        await self._phase(guest, GUEST_PHASE_RUNNING if on else GUEST_PHASE_STOPPED, _settled_reason(guest))

    async def _wait(self, guest: Guest, node: Node | None) -> None:
        """Nothing to do but to keep what the node tells fresh."""
        if node is None:
            return
        if node.status.state == NODE_STATE_ONLINE:
            report = self._context.beats.of(node.meta.name).guests.get(guest.meta.name)
            if report is None or not _agrees(guest, report):
                return
            known = (list(guest.status.addresses), guest.status.mode, guest.status.reason)
            mode = report.mode if guest.status.phase == GUEST_PHASE_RUNNING else ""
            if known != (list(report.addresses), mode, _settled_reason(guest)):
                guest.status.addresses[:] = report.addresses
                guest.status.mode, guest.status.reason = mode, _settled_reason(guest)
                await self._put(guest)

    async def _failed(self, guest: Guest, error: GugusError) -> float | None:
        """Write a failure down. A guest that is being created is taken back as a whole, so that the call can be repeated."""
        name = guest.meta.name
        if error.reason in TRANSIENT_REASONS:
            raise error
        stored = self._context.store.peek(Guest, name)
        if stored is None or (stored.meta.uid, stored.meta.generation) != (guest.meta.uid, guest.meta.generation):
            return 0.0  # it failed where it does not belong any more
        stored.status.failures += 1
        delay_s = _backoff_s(stored.status.failures)
        self._retry_at[name] = time.monotonic() + delay_s
        _log.warning("guest failed", guest=name, reason=error.reason, error=str(error), again_in_s=delay_s)
        txn = Txn()
        if self._told.get(name) != str(error):
            self._told[name] = str(error)
            record(txn, f"guest/{name}", error.reason, f"{name}: {error}", ERROR)
        text = str(error)
        if await self._tasks.fail(name, error, txn):
            stored.meta.deleting = True
            text += " What was made of it is being removed."
        elif not stored.meta.deleting:
            text += f" Failed {stored.status.failures} times; tried again every {delay_s:g} s."
        await self._phase(stored, GUEST_PHASE_ERROR, text, txn)
        return delay_s

    async def _phase(self, guest: Guest, phase: GuestPhase.ValueType, reason: str, txn: Txn | None = None) -> Guest:
        guest.status.phase, guest.status.reason = phase, reason
        return await self._put(guest, txn)

    async def _put(self, guest: Guest, txn: Txn | None = None) -> Guest:
        result = await self._context.store.txn((txn or Txn()).put(guest, expect_revision=guest.meta.revision))
        guest.meta.revision = result.revision
        return guest


def _basis(guest: Guest) -> tuple[object, ...]:
    """Return what a command to a node about a guest rests on."""
    recovering = guest.status.phase == GUEST_PHASE_RECOVERING
    return guest.meta.uid, guest.meta.generation, guest.status.node, guest.meta.deleting, recovering


def _is_of(uid: str, generation: int, guest: Guest) -> bool:
    """Return whether a node speaks of this guest and its present assignment. A node may know no UUID: of a copy without a definition."""
    return uid in ("", guest.meta.uid) and generation == guest.meta.generation


def _agrees(guest: Guest, report: GuestReport) -> bool:
    """Return whether a beat says what the state says already; a beat may be older than the last command."""
    if guest.status.phase in SETTLED_PHASES:
        return (report.state in ALIVE_STATES) == (guest.status.phase == GUEST_PHASE_RUNNING)
    return False


def _settled_reason(guest: Guest) -> str:
    """Return the reason of a guest that is as it was asked to be."""
    return f"{'runs' if guest.spec.power == POWER_ON else 'stopped'} on {guest.status.node}"


def _backoff_s(failures: int) -> float:
    return float(min(2.0 ** min(failures - 1, 10), MAX_RESTART_DELAY_S))
