"""Gives guests to nodes: placement of new guests and recovery from lost nodes, one decision at a time.

Invariant: every assignment raises the guest's generation in the same transaction that names the node, and compares what the decision
was made from.
"""

import asyncio

from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_CREATING,
    GUEST_PHASE_PENDING,
    GUEST_PHASE_RECOVERING,
    GUEST_PHASE_UNKNOWN,
    POWER_ON,
    Guest,
    GuestPhase,
)
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.pool_pb2 import Pool
from gugus.cluster.v1.rule_pb2 import Rule

from common.errors import GugusError
from common.logs import get_logger
from common.waiting import happened
from manager.consensus import ConsensusError
from manager.controllers.context import Context
from manager.events import WARNING, record
from manager.ha import account
from manager.ha.guest_machine import Event
from manager.ha.inherited import waiting_for
from manager.ha.recovery import GuestView, Lost, Move, Recovery, Wait, recover
from manager.scheduler import Decision, NodeView, Terms, place
from manager.scheduler.load import LoadOf, no_load
from manager.scheduler.stored_rules import planned_rules
from manager.scheduler.views import guest_request, node_views, to_proto
from manager.scheduler.what_if import Stored
from manager.store import Change, Txn

LOOK_S = 0.25
"""Longest time between two looks at guests of lost nodes; a change of a node is looked at once."""

_log = get_logger("placing")


def decide(context: Context, guest: Guest) -> Decision:
    """Return where the scheduler would put a guest now, with every node's verdict."""
    return place(guest_request(guest, load_of=context.load_of), rooms(context, guest), terms(context))


def stored(context: Context) -> Stored:
    """Return all that the planner looks at, as it is stored."""
    store = context.store
    return Stored(
        nodes=store.peek_all(Node),
        guests=store.peek_all(Guest),
        rules=store.peek_all(Rule),
        settings=context.planner_settings(),
        lease=context.lease_times(),
        disarmed=context.ha_disarmed(),
        pools=store.peek_all(Pool),
        load_of=context.load_of,
    )


def rooms(context: Context, guest: Guest) -> tuple[NodeView, ...]:
    """Return all nodes with what is promised on them, as if a guest were on none."""
    nodes, guests = context.store.peek_all(Node), context.store.peek_all(Guest)
    return node_views(nodes, guests, ignoring=guest.meta.name, load_of=context.load_of)


def terms(context: Context) -> Terms:
    """Return what counts beside the guest that is placed: rules, settings, and where the others are that a rule may cover.

    Who is lost is nowhere: neither near the others nor in their way.
    """
    store = context.store
    settings = context.planner_settings()
    rules = planned_rules(store.peek_all(Rule))
    if not rules:
        return Terms(settings=settings)
    lost = {node.meta.name for node in store.peek_all(Node) if node.status.state in Lost}
    placed = [g for g in store.peek_all(Guest) if g.status.node and g.status.phase != GUEST_PHASE_RECOVERING]
    return Terms(rules, settings, tuple(guest_request(g) for g in placed if g.status.node not in lost))


class Placing:
    """Placement and recovery. One lock, so that each decision counts what the one before it promised."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = asyncio.Lock()
        self._news = asyncio.Event()

    def changed(self, change: Change) -> None:
        """Take in a change of a node: its guests may be lost, or there may be room for those of another one."""
        if change.kind == "node":
            self._news.set()

    async def place(self, guest: Guest) -> bool:
        """Choose a node for a guest that has none and give it to it. Returns whether it was given."""
        async with self._lock:
            decision = decide(self._context, guest)
            guest.status.placement.CopyFrom(to_proto(decision))
            guest.status.reason = decision.reason
            txn = Txn()
            if decision.node:
                self._assign(guest, decision.node)
                record(txn, f"guest/{guest.meta.name}", "GUEST_PLACED", decision.reason)
            elif not self._pending_differs(guest):
                return False
            else:
                guest.status.phase = GUEST_PHASE_PENDING
            await self._context.store.txn(txn.put(guest, expect_revision=guest.meta.revision))
            return bool(decision.node)

    async def run(self) -> None:
        """Recover guests of lost nodes until cancelled."""
        while True:
            self._news.clear()
            await self._recover()
            await happened(self._news, LOOK_S)

    async def _recover(self) -> None:
        async with self._lock:
            context, store = self._context, self._context.store
            nodes = {node.meta.name: node for node in store.peek_all(Node)}
            guests = {guest.meta.name: guest for guest in store.peek_all(Guest)}
            lost = [guest for guest in guests.values() if _is_lost(guest, nodes)]
            if not lost:
                return
            former = self._context.former_nodes()
            outcomes = recover(
                [view_of(guest, removed=guest.status.node not in nodes, load_of=context.load_of) for guest in lost],
                {name: node.status.state for name, node in nodes.items()},
                node_views(list(nodes.values()), list(guests.values()), load_of=context.load_of),
                terms=terms(self._context),
                blocked=waiting_for("it", former) if former else "",
            )
            await asyncio.gather(*(self._carry_out(guests[outcome.guest], nodes, outcome) for outcome in outcomes))

    async def _carry_out(self, guest: Guest, nodes: dict[str, Node], outcome: Recovery) -> None:
        """Commit one outcome; one that fails is decided anew at the next look and holds up no other guest."""
        try:
            if isinstance(outcome, Move):
                await self._move(guest, nodes.get(outcome.from_node), outcome)
            elif isinstance(outcome, Wait):
                if outcome.event is not None:
                    account.happen(guest, outcome.event, outcome.reason)
                await self._note(guest, GUEST_PHASE_RECOVERING, outcome.reason)
            else:
                await self._note(guest, GUEST_PHASE_UNKNOWN, outcome.reason)
        except (ConsensusError, GugusError) as error:
            _log.warning("recovery is tried again", guest=guest.meta.name, error=str(error))

    async def _move(self, guest: Guest, lost: Node | None, move: Move) -> None:
        guest.status.placement.CopyFrom(to_proto(move.decision))
        guest.status.previous_node = move.from_node
        guest.status.recoveries += 1
        guest.status.reason = move.reason
        account.happen(guest, Event.PROVE, move.reason)
        account.happen(guest, Event.PLACE, move.reason)
        self._assign(guest, move.to_node)
        guest.meta.generation = move.generation
        txn = Txn().put(guest, expect_revision=guest.meta.revision)
        if lost is not None:
            txn.expect(Node, lost.meta.name, revision=lost.meta.revision)
        record(txn, f"guest/{guest.meta.name}", "GUEST_RECOVERING", move.reason, WARNING)
        await self._context.store.txn(txn)
        _log.info("guest moved", guest=guest.meta.name, node=move.to_node, generation=move.generation)

    async def _note(self, guest: Guest, phase: GuestPhase.ValueType, reason: str) -> None:
        if guest.status.phase == phase and guest.status.reason == reason:
            return
        txn = Txn()
        if guest.status.phase != phase:
            word = GuestPhase.Name(phase).removeprefix("GUEST_PHASE_")
            record(txn, f"guest/{guest.meta.name}", f"GUEST_{word}", reason, WARNING)
        guest.status.phase, guest.status.reason = phase, reason
        await self._context.store.txn(txn.put(guest, expect_revision=guest.meta.revision))

    def _assign(self, guest: Guest, node: str) -> None:
        """Give a guest to a node: the new generation is its right to run there."""
        guest.status.node = node
        guest.status.phase = GUEST_PHASE_CREATING
        guest.status.ha_disarmed = self._context.ha_disarmed()
        guest.status.ha_armed = account.held(guest)
        guest.status.inherited = False
        guest.status.failures = 0
        guest.status.applied_spec_number = 0
        guest.status.booting = False
        account.follow(guest)
        for name in ("observed", "boot_id", "pending"):
            guest.status.ClearField(name)
        guest.meta.generation += 1

    def _pending_differs(self, guest: Guest) -> bool:
        stored = self._context.store.peek(Guest, guest.meta.name)
        return stored is None or (stored.status.phase, stored.status.reason) != (
            GUEST_PHASE_PENDING,
            guest.status.reason,
        )


def _is_lost(guest: Guest, nodes: dict[str, Node]) -> bool:
    node = nodes.get(guest.status.node)
    if node is None and guest.status.inherited and not guest.spec.ha.enabled:
        return False  # a person said that its host is off for good: the guest controller places it anew where its disks are
    return bool(guest.status.node) and (
        guest.status.phase == GUEST_PHASE_RECOVERING or node is None or node.status.state in Lost
    )


def view_of(guest: Guest, *, removed: bool = False, load_of: LoadOf = no_load) -> GuestView:
    """Return what the pure core needs to know of a guest. removed: its node is none any more.

    What an inherited guest's node holds under HA is not known until it was started there: the state may be older.
    """
    armed = guest.status.ha_armed and (removed or not guest.status.inherited)
    return GuestView(
        name=guest.meta.name,
        node=guest.status.node,
        generation=guest.meta.generation,
        phase=guest.status.phase,
        ha=guest.spec.ha.enabled and armed,
        power_on=guest.spec.power == POWER_ON,
        request=guest_request(guest, load_of=load_of),
        deleting=guest.meta.deleting,
        uid=guest.meta.uid,
        inherited=guest.status.inherited,
        disabled=guest.spec.ha.disabled,
        priority=guest.spec.ha.priority,
        migration_target=guest.status.migration.target,
    )
