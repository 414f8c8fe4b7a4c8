"""What the guest controller does for one guest: each step that `guest_step` may ask for, on its node and in the state."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from gugus.agent.v1 import guest_pb2 as agent_pb2
from gugus.agent.v1.guest_pb2 import GUEST_END_CRASH, GUEST_END_HOST, STOP_OUTCOME_KILLED, STOP_OUTCOME_SHUT_DOWN
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_CREATING,
    GUEST_PHASE_DELETING,
    GUEST_PHASE_ERROR,
    GUEST_PHASE_RECOVERING,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STARTING,
    GUEST_PHASE_STOPPED,
    GUEST_PHASE_STOPPING,
    POWER_OFF,
    POWER_ON,
    Guest,
    GuestPhase,
)
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node

from common.errors import GugusError
from manager.agents import Agent
from manager.controllers import guest_ha, guest_node
from manager.controllers.context import Context
from manager.controllers.guest_news import Seen
from manager.controllers.guest_retries import Retries, count_end
from manager.controllers.guest_step import ALIVE_PHASES, ALIVE_STATES, reclaimable, settled_phase
from manager.controllers.guest_tasks import GuestTasks
from manager.controllers.kept_disks import keep_disks
from manager.events import INFO, WARNING, record
from manager.guests import snapshots, start_after
from manager.guests.boot_order import note_boot, ran_for_s, waits_for
from manager.guests.cpu_baseline import choose_hardware
from manager.guests.endings import words
from manager.guests.volumes import volumes_of
from manager.ha import account, preemption
from manager.store import Conflict, Txn

T = TypeVar("T")

STOP_LOOK_S = 0.5
"""While a guest shuts down, so often it is looked whether it is now to be killed instead."""

TURN_LOOK_S = 0.5
"""A guest that waits for its turn after the boot of its host is looked at so often."""


class GuestSteps:
    """Steps. Each raises what the node answers, and Conflict when the state says otherwise by now."""

    def __init__(self, context: Context, tasks: GuestTasks, retries: Retries) -> None:
        self._context = context
        self._tasks = tasks
        self._retries = retries

    async def tell(self, guest: Guest, node: Node, call: Callable[[Agent, int], Awaitable[T]]) -> T:
        """Call a node's agent about a guest, if the state still says of the guest what the call was decided from.

        Between the decision and a later call of the same turn the guest may have been recovered elsewhere. Raises Conflict then, and what
        `Context.tell` raises.
        """
        now = self._context.store.peek(Guest, guest.meta.name)
        if now is None or _basis(now) != _basis(guest):
            raise Conflict([f"guest/{guest.meta.name}"])
        return await self._context.tell(node, call)

    def _teller(self, guest: Guest, node: Node) -> guest_node.Tell:
        async def tell(call: Callable[[Agent, int], Awaitable[T]]) -> T:
            return await self.tell(guest, node, call)

        return tell

    async def phase(self, guest: Guest, phase: GuestPhase.ValueType, reason: str, txn: Txn | None = None) -> Guest:
        """Write a guest down in a phase, and return it at its new revision."""
        guest.status.phase, guest.status.reason = phase, reason
        return await self.put(guest, txn)

    async def put(self, guest: Guest, txn: Txn | None = None) -> Guest:
        """Write a guest down as it is, and return it at its new revision."""
        result = await self._context.store.txn((txn or Txn()).put(guest, expect_revision=guest.meta.revision))
        guest.meta.revision = result.revision
        return guest

    async def booted(self, guest: Guest, node: Node, seen: Seen) -> None:
        """Do what the boot policy says, once for each boot of the host."""
        name, before = guest.meta.name, guest.spec.power
        note_boot(guest, node.status.boot_id, down=seen.state not in ALIVE_STATES)
        txn = Txn()
        if guest.spec.power != before:
            does = "stays down" if guest.spec.power == POWER_OFF else "is started"
            text = f"{node.meta.name} booted: {name} {does} by its boot policy"
            record(txn, f"guest/{name}", "GUEST_BOOT_POLICY", text, INFO)
        await self.put(guest, txn)

    async def provision(self, guest: Guest, node: Node) -> None:
        """Make the volumes of a guest that has none yet."""
        await guest_node.make_volumes(self._teller(guest, node), guest, guest.spec.disks)
        guest.status.volumes_ready = True
        del guest.status.new_volumes[:]
        await self.put(guest)

    async def start(self, guest: Guest, node: Node, seen: Seen) -> float | None:
        """Define a guest and start it; return after how long to look again when it may not be started yet."""
        if why := preemption.waits_for(guest, self._on(node)):
            if guest.status.reason != why:
                await self.phase(guest, GUEST_PHASE_CREATING, why)
            return TURN_LOOK_S
        if why := self._not_its_turn(guest, node):
            if guest.status.reason != why:
                await self.phase(guest, GUEST_PHASE_STARTING, why)
            return TURN_LOOK_S
        waited = self._retries.waits.over(guest.meta.name)
        if guest.status.phase in ALIVE_PHASES:
            delay_s = await self._ended_by_itself(guest, seen)
            if guest.status.ha.state in account.HELD:
                return None
            if delay_s > 0:
                return delay_s
        choose_hardware(guest, self._context.store.peek_all(Node))
        waits = guest.status.phase == GUEST_PHASE_STARTING and self._retries.kept_waiting(guest.meta.name)
        if not waits:  # its reason says for what
            guest = await self.phase(guest, GUEST_PHASE_STARTING, f"being started on {node.meta.name}")
        await self._make_new_volumes(guest, node)
        await self._define(guest, node)
        answer = await guest_node.start(self._teller(guest, node), guest)
        guest_node.note_started(guest, node, answer)
        self._retries.started(guest.meta.name)
        self._retries.waits.forget(guest.meta.name)
        reason = settled_reason(guest, GUEST_PHASE_RUNNING)
        text = f"{guest.meta.name} {reason}" + (f"; it did not wait any longer: {waited}" if waited else "")
        txn = record(Txn(), f"guest/{guest.meta.name}", "GUEST_RUNNING", text, WARNING if waited else INFO)
        await self.phase(guest, GUEST_PHASE_RUNNING, reason, txn)
        return None

    def _on(self, node: Node) -> list[Guest]:
        return [g for g in self._context.store.peek_all(Guest) if g.status.node == node.meta.name]

    def _not_its_turn(self, guest: Guest, node: Node) -> str:
        """Return for whom a guest waits: those it starts after, but not for ever, and those before it in the order of its host's boot."""
        store = self._context.store
        named = {name: one for name in guest.spec.boot.after if (one := store.peek(Guest, name)) is not None}
        homes = {one.status.node for one in named.values()}
        nodes = {name: home for name in homes if name and (home := store.peek(Node, name)) is not None}
        awaited = start_after.awaited(guest, named, nodes, self._running_for_s(named))
        if (why := self._retries.waits.bounded(guest.meta.name, awaited)) or not guest.status.booting:
            return why
        guests = {one.meta.name: one for one in store.peek_all(Guest)}
        here = {name: one for name, one in guests.items() if one.status.node == node.meta.name}
        follows = partial(_follows, guest, guests)
        return waits_for(guest, here.values(), node.status.boot_id, self._running_for_s(here), follows)

    def _running_for_s(self, guests: Mapping[str, Guest]) -> dict[str, float]:
        """Return for how long those of the guests that run have been running."""
        now_s = time.time()
        return {
            name: max(self._retries.running_for_s(name), ran_for_s(guest, now_s))
            for name, guest in guests.items()
            if guest.status.phase == GUEST_PHASE_RUNNING
        }

    async def _ended_by_itself(self, guest: Guest, seen: Seen) -> float:
        """Note that a running guest ended, and return after how many seconds it is started again: later each time if it does so soon."""
        name = guest.meta.name
        delay_s = count_end(guest, steady=self._retries.steady(name))
        self._retries.wait(name, delay_s, guest.spec_number)
        when = f"in {delay_s:g} s" if delay_s else "now"
        how = f"{words(seen.ended)} ({guest.status.failures} times in a row)"
        reason = f"{how}; started again {when}"
        txn = Txn()
        if not self._retries.steady(name) and seen.ended != GUEST_END_HOST:
            guest_ha.failed(self._context, guest, f"{how}.", txn)
        held = guest.status.ha.state in account.HELD
        reason = guest.status.ha.reason if held else reason
        record(txn, f"guest/{name}", "GUEST_DOWN", f"{name}: {reason}", WARNING)
        await self.phase(guest, GUEST_PHASE_ERROR if held else GUEST_PHASE_STARTING, reason, txn)
        return delay_s

    async def end(self, guest: Guest, seen: Seen) -> None:
        """Write down that a guest which ended by itself is off, as its policies have it."""
        name = guest.meta.name
        guest.spec.power = POWER_OFF
        guest.status.observed, guest.status.mode = seen.state, ""
        reason = f"{words(seen.ended)} and stays down by its policies"
        severity = WARNING if seen.ended == GUEST_END_CRASH else INFO
        txn = record(Txn(), f"guest/{name}", "GUEST_ENDED", f"{name}: {reason}", severity)
        await self.phase(guest, GUEST_PHASE_STOPPED, reason, txn)

    async def _make_new_volumes(self, guest: Guest, node: Node) -> None:
        new = [disk for disk in guest.spec.disks if disk.volume in guest.status.new_volumes]
        await guest_node.make_volumes(self._teller(guest, node), guest, new)
        del guest.status.new_volumes[:]

    async def _define(self, guest: Guest, node: Node) -> agent_pb2.Guest:
        tell = self._teller(guest, node)
        try:
            return await guest_node.define(tell, guest, ha=guest.status.ha_armed)
        except GugusError as error:
            if error.reason != "GUEST_NAME_TAKEN" or guest.status.inherited:
                raise  # what is left from before a recovery may be all there is of a guest that the state does not know
            # Names are unique: what the node has under this one is left of a guest that was deleted while the node was away.
            await guest_node.take_away(tell, guest.meta.name)
            return await guest_node.define(tell, guest, ha=guest.status.ha_armed)

    async def apply(self, guest: Guest, node: Node) -> None:
        """Bring the node up to date with a changed spec: new volumes, the definition, and what runs as far as that can be done."""
        await self._make_new_volumes(guest, node)
        if guest.spec.template:  # no node is to hold its volumes open: others are made from them
            guest_node.note_applied(guest, agent_pb2.Guest())
        else:
            guest_node.note_applied(guest, await self._define(guest, node))
        await self.put(guest)
        self._retries.succeeded(guest.meta.name)

    async def reclaim(self, guest: Guest, node: Node, seen: Seen) -> None:
        """Delete volumes that left the guest, once the node surely does not use them any more."""
        gone = reclaimable(guest, seen.state)
        if not guest.spec.template:
            answer = await self._define(guest, node)
            guest_node.note_applied(guest, answer)
            gone = reclaimable(guest, seen.state)
        await guest_node.delete_volumes(self._teller(guest, node), gone)
        left = [disk for disk in guest.status.leaving_disks if (disk.pool, disk.volume) not in gone]
        del guest.status.leaving_disks[:]
        guest.status.leaving_disks.extend(left)
        await self.put(guest)
        self._retries.succeeded(guest.meta.name)

    async def arm(self, guest: Guest, node: Node) -> None:
        """Make the node's agent hold the guest under HA, or not any more.

        The state says "armed" only while the agent surely does: it is told before arming is written down, and after disarming is.
        """
        wanted = account.held(guest)
        if not wanted and guest.status.ha_armed:
            guest.status.ha_armed = False
            guest = await self.put(guest)
        await guest_node.define(self._teller(guest, node), guest, ha=wanted)
        if wanted and not guest.status.ha_armed:
            guest.status.ha_armed = True
            await self.put(guest)

    async def suspend(self, guest: Guest, node: Node) -> None:
        """Hold the guest's CPUs."""
        answer = await guest_node.suspend(self._teller(guest, node), guest.meta.name)
        await self.settle(guest, Seen(answer.state))

    async def resume(self, guest: Guest, node: Node) -> None:
        """Let the guest go on."""
        answer = await guest_node.resume(self._teller(guest, node), guest.meta.name)
        await self.settle(guest, Seen(answer.state))

    async def stop(self, guest: Guest, node: Node) -> None:
        """Shut the guest down, and kill it when its time is over or somebody lost patience."""
        name = guest.meta.name
        own_ms = guest.spec.shutdown_timeout_ms or guest_node.DEFAULT_STOP_TIMEOUT_MS
        if gives_way := preemption.in_words(guest):
            own_ms = min(own_ms, preemption.STOP_TIMEOUT_MS)
        timeout_ms = self._tasks.stop_timeout_ms(name, own_ms)
        if guest.status.phase != GUEST_PHASE_STOPPING:
            reason = f"being stopped on {node.meta.name}" + (f": {gives_way}" if gives_way else "")
            guest = await self.phase(guest, GUEST_PHASE_STOPPING, reason)
        tell = self._teller(guest, node)
        halting = asyncio.create_task(guest_node.halt(tell, name, timeout_ms))
        try:
            while not (await asyncio.wait({halting}, timeout=STOP_LOOK_S))[0]:
                if timeout_ms and not self._tasks.stop_timeout_ms(name, timeout_ms):
                    timeout_ms = 0
                    await guest_node.kill(tell, name)
            outcome = await halting
        finally:
            halting.cancel()
        if outcome == STOP_OUTCOME_SHUT_DOWN and not timeout_ms:
            outcome = STOP_OUTCOME_KILLED  # while the agent waited for its shutdown
        now, how = self._context.store.peek(Guest, name), guest_node.how_stopped(outcome, timeout_ms)
        if how and now is not None and _basis(now) == _basis(guest):
            txn = Txn()
            if outcome == STOP_OUTCOME_KILLED and timeout_ms:
                record(txn, f"guest/{name}", "GUEST_KILLED", f"{name} {how}", WARNING)
            await self.phase(now, GUEST_PHASE_STOPPING, how, txn)

    async def remove(self, guest: Guest, node: Node | None) -> None:
        """End the guest, remove what its node has of it, and forget it."""
        name, left, txn = guest.meta.name, "", Txn()
        if node is not None:
            if guest.status.phase != GUEST_PHASE_DELETING:
                guest = await self.phase(guest, GUEST_PHASE_DELETING, f"being deleted on {node.meta.name}")
            if node.status.state == NODE_STATE_ONLINE:
                tell = self._teller(guest, node)
                await guest_node.take_away(tell, name)
                kept: Sequence[tuple[str, str]] = ()
                if self._tasks.keeps_disks(name):
                    kept = await keep_disks(self._context, tell, guest, node, txn)
                await guest_node.delete_volumes(tell, [volume for volume in volumes_of(guest) if volume not in kept])
            else:
                left = f"; {node.meta.name} is lost: what it had of the guest is removed when it is back, but volumes stay there"
        txn.delete(Guest, name, expect_revision=guest.meta.revision)
        snapshots.forget_all(self._context.store, guest, txn)
        await self._tasks.end_deleted(name, txn)
        await self._context.store.txn(record(txn, f"guest/{name}", "GUEST_DELETED", f"{name} was deleted{left}", INFO))

    async def settle(self, guest: Guest, seen: Seen) -> None:
        """Write down that a guest is as it was asked to be."""
        report = self._context.beats.of(guest.status.node).guests.get(guest.meta.name)
        guest.status.observed = seen.state
        phase = settled_phase(guest, seen.state)
        if report is not None:
            guest.status.addresses[:] = report.addresses
            guest.status.mode = report.mode
        guest.status.booting = False
        if phase not in ALIVE_PHASES:
            guest.status.mode = ""
            guest.status.failures = 0
            del guest.status.pending[:]
            guest.status.inherited &= bool(self._context.former_nodes())
        if phase in ALIVE_PHASES or guest.spec.power == POWER_OFF:  # it was woken, perhaps by a manager that died then
            guest_node.drop_hibernation(guest)
        if not guest.status.boot_id:
            self._note_boot(guest)
        reason = settled_reason(guest, phase)
        told = guest.status.reason.endswith((guest_node.KILLED, guest_node.SHUT_DOWN))
        if guest.status.phase == GUEST_PHASE_STOPPING and told:
            reason += f": {guest.status.reason}"
        await self.phase(guest, phase, reason)

    def _note_boot(self, guest: Guest) -> None:
        node = self._context.store.peek(Node, guest.status.node)
        if node is not None:
            guest.status.boot_id = node.status.boot_id


def _follows(guest: Guest, guests: Mapping[str, Guest], other: Guest) -> bool:
    return start_after.follows(other, guest, guests)


def settled_reason(guest: Guest, phase: GuestPhase.ValueType) -> str:
    """Return the reason of a guest that is as it was asked to be."""
    if phase == GUEST_PHASE_RUNNING and guest.spec.power == POWER_ON:
        return f"runs on {guest.status.node}"
    word = GuestPhase.Name(phase).removeprefix("GUEST_PHASE_").lower()
    frozen = account.FROZEN if guest.status.ha_frozen and guest.spec.power in account.WANTED else ""
    why = preemption.in_words(guest) or frozen
    return f"{word} on {guest.status.node}" + (f": {why}" if why else "")


def _basis(guest: Guest) -> tuple[object, ...]:
    """Return what a command to a node about a guest rests on."""
    status = guest.status
    recovering = status.phase == GUEST_PHASE_RECOVERING
    return guest.meta.uid, guest.meta.generation, status.node, guest.meta.deleting, recovering, status.lock.task
