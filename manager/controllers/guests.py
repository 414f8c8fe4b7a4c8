"""The guest controller: takes one step at a time until each guest is what its spec asks for, and ends the tasks about it.

Invariant: a guest is started only after its assignment to the node (node and generation) was committed, and the start names exactly that
generation; whoever holds an older one is refused by the agent.
"""

from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_ERROR,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_UNKNOWN,
    Guest,
)
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node
from gugus.cluster.v1.pool_pb2 import Pool

from common.errors import GugusError
from common.logs import get_logger
from manager.controllers import guest_ha
from manager.controllers.context import TRANSIENT_REASONS, Context
from manager.controllers.guest_news import SETTLED_PHASES, GuestNews, Seen, agrees
from manager.controllers.guest_retries import IN_USE_S, Retries, backoff_s
from manager.controllers.guest_step import ALIVE_PHASES, ALIVE_STATES, Action, next_step
from manager.controllers.guest_steps import GuestSteps, settled_reason
from manager.controllers.guest_tasks import GuestTasks
from manager.controllers.placing import Placing
from manager.controllers.queue import WorkQueue
from manager.events import ERROR, WARNING, record
from manager.ha import account, inherited
from manager.ha.failing import keep_waiting
from manager.ha.guest_machine import Event
from manager.store import Change, Txn

SLOTS = 16
"""Guests of one node worked on at once."""

BACKED_OFF = frozenset({Action.START, Action.PROVISION, Action.DEFINE, Action.APPLY, Action.RECLAIM})
"""Steps that wait after a failure; stopping and deleting do not, their failures are tried again by the queue."""

COUNTED = frozenset({Action.START, Action.PROVISION})
"""Those of them whose failures the state counts (GuestStatus.failures), until the user asks for a start, or changes the guest."""

UPKEEP = frozenset({Action.APPLY, Action.RECLAIM, Action.SUSPEND, Action.RESUME})
"""Steps whose failure leaves a guest as it was: it runs, or is stopped, all the same."""

DISK_IN_USE = "DISK_IN_USE"
"""Reason with which a node refuses a start while something else has a disk of the guest (`agent.leases`)."""

UNCONFIRMED_LOOK_S = 1.0
"""A guest that no beat confirms to be as stored is looked at so often."""

DEFINED_LOOK_S = 1.0
"""After a node was told whether to hold a guest under HA: by then a beat says that it does."""

INHERITED_STEPS = frozenset({Action.PLACE, Action.PROVISION, Action.START, Action.REMOVE})
"""Steps that a guest from before a recovery of the cluster may have to wait with (`manager.ha.inherited`)."""

INHERITED_LOOK_S = 1.0
"""Such a guest is looked at so often."""

UNPLACED_LOOK_S = 2.0
"""A guest that no node fits is looked at so often."""

PENDING_LOOK_S = 10.0
"""A guest with changes that wait for its next start is asked so often whether they still do: a guest may let go of a disk late."""

_log = get_logger("guests")


class GuestController:
    """All guests of the cluster."""

    def __init__(self, context: Context, placing: Placing) -> None:
        self._context = context
        self._placing = placing
        self._tasks = GuestTasks(context.store)
        self._retries = Retries()
        self._news = GuestNews(context)
        self._steps = GuestSteps(context, self._tasks, self._retries)
        self._queue = WorkQueue("guest", self._turn, slots=SLOTS, lane=self._node_of)
        context.beats.listen(self._beat)

    def changed(self, change: Change) -> None:
        """Take in a change of a guest, of a node, or of a task about a guest."""
        if change.kind == "guest":
            if change.deleted:
                self._retries.forget(change.name)
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
        if node is not None and node.status.state == NODE_STATE_ONLINE and not self._news.heard_as(node):
            return None  # a beat, or its absence, will soon change the node
        if guest.status.HasField("lock") or guest.status.HasField("migration"):
            return None  # whoever holds it knows more of it; it is looked at when that changes
        if node is not None and node.status.state == NODE_STATE_ONLINE and await self._changed_for_ha(guest):
            return 0.0
        seen = await self._news.observe(guest, node)
        action = next_step(guest, node, seen.state, self._news.held(guest, node), seen.ended).action
        if action is Action.WAIT:
            return await self._wait(guest, node)
        if guest.status.inherited and action in INHERITED_STEPS and await self._blocked(guest, node):
            return INHERITED_LOOK_S
        if self._is_to_pause(action, guest) and (delay_s := self._retries.delay_s(name, guest.spec_number)) > 0:
            return delay_s
        try:
            return await self._take(action, guest, node, seen)
        except GugusError as error:
            return await self._failed(action, guest, error)

    def _is_to_pause(self, action: Action, guest: Guest) -> bool:
        """Return whether a step waits after it could not be taken: not once somebody had the failures of the guest forgotten."""
        forgotten = action in COUNTED and not guest.status.failures and not self._retries.kept_waiting(guest.meta.name)
        return action in BACKED_OFF and not forgotten

    async def _take(self, action: Action, guest: Guest, node: Node | None, seen: Seen) -> float | None:
        steps = self._steps
        if action is Action.PLACE:
            return None if await self._placing.place(guest) else UNPLACED_LOOK_S
        if action is Action.REMOVE:
            await steps.remove(guest, node)
            return None
        if node is None:
            raise RuntimeError(f"step {action} without a node")
        match action:
            case Action.BOOTED:
                await steps.booted(guest, node, seen)
            case Action.PROVISION:
                await steps.provision(guest, node)
            case Action.START:
                return await steps.start(guest, node, seen)
            case Action.STOP:
                await steps.stop(guest, node)
                return 0.0
            case Action.END:
                await steps.end(guest, seen)
            case Action.SUSPEND:
                await steps.suspend(guest, node)
            case Action.RESUME:
                await steps.resume(guest, node)
            case Action.APPLY:
                await steps.apply(guest, node)
            case Action.RECLAIM:
                await steps.reclaim(guest, node, seen)
            case Action.DEFINE:
                await steps.arm(guest, node)
                return DEFINED_LOOK_S
            case Action.SETTLE:
                await steps.settle(guest, seen)
        return None

    async def _changed_for_ha(self, guest: Guest) -> bool:
        """Bring HA's account of a guest up to date. Returns whether anything was written."""
        txn = Txn()
        if guest.meta.deleting or not guest_ha.look(self._context, guest, txn):
            return False
        if guest.status.ha.state in account.HELD:
            await self._steps.phase(guest, GUEST_PHASE_ERROR, guest.status.ha.reason, txn)
        else:
            await self._steps.put(guest, txn)
        return True

    async def _blocked(self, guest: Guest, node: Node | None) -> bool:
        """Return whether a guest from before a recovery has to wait, and note for what."""
        if node is None and guest.status.node and guest.spec.ha.enabled and not guest.meta.deleting:
            return True  # recovery gives it to another node (`Placing`)
        store = self._context.store
        report = self._news.report(guest, node)
        pools = {pool.meta.name: pool for pool in store.peek_all(Pool)}
        why = inherited.obstacle(
            guest,
            node,
            self._context.former_nodes(),
            alive_at_home=report is not None and report.uid == guest.meta.uid and report.state in ALIVE_STATES,
            movable=inherited.movable(guest, pools),
        )
        if why and guest.status.reason != why:
            await self._steps.phase(guest, GUEST_PHASE_UNKNOWN, why)
        return bool(why)

    async def _wait(self, guest: Guest, node: Node | None) -> float | None:
        """Nothing to do but to keep what the node tells fresh; return after how long to look again."""
        if node is None or node.status.state != NODE_STATE_ONLINE:
            return None
        report = self._news.report(guest, node)
        if guest.status.phase == GUEST_PHASE_RUNNING and await self._forgave(guest):
            return None
        if report is not None and agrees(guest, report):
            reason = settled_reason(guest, guest.status.phase)
            known = (list(guest.status.addresses), guest.status.mode, guest.status.reason)
            mode = report.mode if guest.status.phase in ALIVE_PHASES else ""
            if known != (list(report.addresses), mode, reason):
                guest.status.addresses[:] = report.addresses
                guest.status.mode, guest.status.reason = mode, reason
                await self._steps.put(guest)
                return None
        if guest.status.pending and guest.status.phase in ALIVE_PHASES:
            await self._refresh_pending(guest, node)
            return PENDING_LOOK_S
        return UNCONFIRMED_LOOK_S if self._news.unconfirmed(guest, node) else None

    async def _forgave(self, guest: Guest) -> bool:
        """Forget the failures of a guest that has run for long enough since. Returns whether there were any."""
        if not account.steady(guest, self._retries.running_for_s(guest.meta.name)):
            return False
        account.happen(guest, Event.STEADY, f"has run for {account.STEADY_S:g} s")
        await self._steps.put(guest)
        return True

    async def _refresh_pending(self, guest: Guest, node: Node) -> None:
        answer = await self._news.ask(guest, node)
        if list(answer.pending) != list(guest.status.pending):
            del guest.status.pending[:]
            guest.status.pending.extend(answer.pending)
            await self._steps.put(guest)

    async def _failed(self, action: Action, guest: Guest, error: GugusError) -> float | None:
        """Write a failure down. A guest that is being created is taken back as a whole, so that the call can be repeated."""
        name = guest.meta.name
        if error.reason in TRANSIENT_REASONS:
            raise error
        stored = self._context.store.peek(Guest, name)
        if stored is None or (stored.meta.uid, stored.meta.generation) != (guest.meta.uid, guest.meta.generation):
            return 0.0  # it failed where it does not belong any more
        txn = Txn()
        if self._retries.is_news(name, str(error)):
            severity = WARNING if error.reason == DISK_IN_USE else ERROR
            record(txn, f"guest/{name}", error.reason, f"{name}: {error}", severity)
        if error.reason == DISK_IN_USE and action is Action.START:
            return await self._keep_waiting(stored, error, txn, guest.spec_number)
        settled = stored.status.phase in SETTLED_PHASES
        if action in UPKEEP and settled and not self._tasks.creates(name):
            return await self._upkeep_failed(stored, error, txn, guest.spec_number)
        stored.status.failures += 1
        delay_s = backoff_s(stored.status.failures)
        self._retries.wait(name, delay_s, guest.spec_number)
        _log.warning("guest failed", guest=name, reason=error.reason, error=str(error), again_in_s=delay_s)
        text = str(error)
        if await self._tasks.fail(name, error, txn):
            stored.meta.deleting = True
            text += " What was made of it is being removed."
        elif action is Action.START and guest_ha.failed(self._context, stored, text, txn) is not None:
            text = stored.status.ha.reason
        elif not stored.meta.deleting:
            text += f" Failed {stored.status.failures} times; tried again every {delay_s:g} s."
        await self._steps.phase(stored, GUEST_PHASE_ERROR, text, txn)
        return delay_s

    async def _keep_waiting(self, stored: Guest, error: GugusError, txn: Txn, tried: int) -> float:
        """Try again until nothing else has the guest's disk. Whoever asked for the start waits, too."""
        self._retries.keep_waiting(stored.meta.name, tried)
        if keep_waiting(stored, str(error)):
            await self._steps.put(stored, txn)
        return IN_USE_S

    async def _upkeep_failed(self, stored: Guest, error: GugusError, txn: Txn, tried: int) -> float:
        """Write down that a guest could not be changed to the spec of a number; it goes on as it was."""
        delay_s = self._retries.upkeep_failed(stored.meta.name, tried)
        _log.warning("guest not changed", guest=stored.meta.name, reason=error.reason, error=str(error))
        await self._tasks.fail(stored.meta.name, error, txn)
        reason = f"{settled_reason(stored, stored.status.phase)}, but cannot be changed: {error}"
        await self._steps.phase(stored, stored.status.phase, reason, txn)
        return delay_s
