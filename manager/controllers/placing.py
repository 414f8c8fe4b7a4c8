"""Gives guests to nodes: placement of new guests, and recovery from lost nodes, which is planned for all their guests at once.

Invariant: every assignment raises the guest's generation in the same transaction that names the node, and compares what the decision
was made from.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_PENDING,
    GUEST_PHASE_RECOVERING,
    GUEST_PHASE_UNKNOWN,
    HA_STATE_FREEZE,
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
from manager.controllers import spare
from manager.controllers.context import Context
from manager.controllers.together import leaving_with, with_company
from manager.events import INFO, WARNING, record
from manager.ha.guest_machine import Event
from manager.ha.inherited import waiting_for
from manager.ha.preemption import Preemption, contested, give_way, giving_way, may_preempt, preemptions
from manager.ha.recovery import MOST_VERDICTS, GuestView, Move, Recovery, Wait, recover
from manager.ha.stored import awaits_node, give, is_lost, recovered, view_of, waits
from manager.ha.stored import terms as terms_of
from manager.scheduler import Decision, NodeView, Terms, place
from manager.scheduler.stored_rules import planned_rules
from manager.scheduler.views import node_views, to_proto
from manager.scheduler.what_if import Stored
from manager.store import Change, Txn
from planner import settings as planned
from planner.settings import SparePolicy

LOOK_S = 0.25
"""Longest time between two looks at guests of lost nodes; a change of a node is looked at once."""

AT_ONCE = 16
"""Recovered guests that are written down at once: the important ones are there first, and what else the state is to take (the lease of
the acting manager, above all) waits for so few, however many hosts are lost."""

_log = get_logger("placing")


def decide(context: Context, guest: Guest) -> Decision:
    """Return where the scheduler would put a guest now, with every node's verdict."""
    company = leaving_with(context.store, guest)
    request = with_company(guest, company, context.load_of)
    decision = place(request, rooms(context, guest), terms(context, company))
    return spare.keeping(context.store, context.spare, guest, decision)


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


def terms(context: Context, company: Sequence[Guest] = ()) -> Terms:
    """Return what counts beside the guest that is placed (`manager.ha.stored.terms`)."""
    store = context.store
    settings = context.planner_settings()
    nodes, guests, rules = store.peek_all(Node), store.peek_all(Guest), store.peek_all(Rule)
    return terms_of(nodes, guests, rules, settings, company, load_of=context.load_of)


class Placing:
    """Placement and recovery, each under `Context.room`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._news = asyncio.Event()
        self._looked = -1
        """Revision of the state as it was when recovery found nothing more to do: it looks again when anything has changed."""

    def changed(self, change: Change) -> None:
        """Take in a change of a node: its guests may be lost, or there may be room for those of another one."""
        if change.kind == "node":
            self._news.set()

    async def place(self, guest: Guest) -> bool:
        """Choose a node for a guest that has none and give it to it. Returns whether it was given."""
        async with self._context.room:
            decision = self._admitted(guest, decide(self._context, guest))
            guest.status.placement.CopyFrom(to_proto(decision, MOST_VERDICTS))
            guest.status.reason = decision.reason
            txn = Txn()
            if decision.node:
                give(guest, decision.node, disarmed=self._context.ha_disarmed())
                record(txn, f"guest/{guest.meta.name}", "GUEST_PLACED", decision.reason)
            elif not self._pending_differs(guest):
                return False
            else:
                guest.status.phase = GUEST_PHASE_PENDING
            await self._context.store.txn(txn.put(guest, expect_revision=guest.meta.revision))
            return bool(decision.node)

    def _admitted(self, guest: Guest, decision: Decision) -> Decision:
        """Return a decision, or that the guest waits: others took the room meanwhile that the settings want to be kept."""
        store, room = self._context.store, self._context.spare
        if guest.status.inherited or spare.settings_of(store).spare.policy is not SparePolicy.REFUSE:
            return decision
        if text := spare.leaves_short(store, room, guest, decision.node):
            reason = f"{guest.meta.name} waits: too little room would be left to survive a loss: {text}."
            return replace(decision, node="", reason=reason)
        return decision

    async def run(self) -> None:
        """Recover guests of lost nodes until cancelled."""
        while True:
            self._news.clear()
            await self._recover()
            await happened(self._news, LOOK_S)

    async def _recover(self) -> None:
        async with self._context.room:
            store = self._context.store
            revision = store.revision
            if revision == self._looked:
                return
            nodes = {node.meta.name: node for node in store.peek_all(Node)}
            guests = {guest.meta.name: guest for guest in store.peek_all(Guest)}
            lost = [guest for guest in guests.values() if is_lost(guest, nodes)]
            outcomes = await self._plan(lost, nodes, guests) if lost else []
            gate = asyncio.Semaphore(AT_ONCE)
            done = list(await asyncio.gather(*(self._carry_out(guests[o.guest], nodes, o, gate) for o in outcomes)))
            if not any(isinstance(outcome, Move) for outcome in outcomes):  # else it is looked first what room is left
                waiting = [o for o in outcomes if isinstance(o, Wait)]
                homeless = {o.guest: o.decision for o in waiting if o.decision and o.event is Event.PROVE}
                done.append(await self._make_room(homeless, nodes))
                done.append(not any(o.event is Event.FREEZE for o in waiting))  # time alone ends that
            self._looked = revision if all(done) else -1

    async def _make_room(self, homeless: Mapping[str, Decision], nodes: dict[str, Node]) -> bool:
        """Have guests of lower priority give way to those that fit no node, if the settings say so. homeless: with the refusals.

        Returns False when that is to be tried again.
        """
        settings = self._context.planner_settings()
        if settings.preemption is planned.Preemption.NEVER or not homeless:
            return True
        guests = self._context.store.peek_all(Guest)
        by_name = {guest.meta.name: guest for guest in guests}
        views = [view_of(g, removed=g.status.node not in nodes) for g in guests if g.meta.name in homeless]
        waiting = [(view, homeless[view.name]) for view in views if may_preempt(view)]
        if not waiting:
            return True
        others = [guest for guest in guests if guest.meta.name not in homeless]
        rules = planned_rules(self._context.store.peek_all(Rule))
        fleet = contested(list(nodes.values()), others, rules, settings)
        for found in preemptions(waiting, fleet, giving_way(guests)):
            guest = by_name[found.guest]
            try:
                await self._move(guest, nodes.get(found.from_node), found, [by_name[name] for name in found.gives_way])
            except (ConsensusError, GugusError) as error:
                _log.warning("room is made again", guest=guest.meta.name, error=str(error))
                return False
        return True

    async def _plan(self, lost: list[Guest], nodes: dict[str, Node], guests: dict[str, Guest]) -> list[Recovery]:
        """Return what becomes of lost guests. Thousands of them take seconds to plan, in which beats are to be answered."""
        former = self._context.former_nodes()
        plan = partial(
            recover,
            [self._lost_view(guest, nodes.get(guest.status.node)) for guest in lost],
            {name: node.status.state for name, node in nodes.items()},
            node_views(list(nodes.values()), list(guests.values()), load_of=self._context.load_of),
            terms=terms(self._context),
            blocked=waiting_for("it", former) if former else "",
        )
        return await asyncio.to_thread(plan)

    def _lost_view(self, guest: Guest, node: Node | None) -> GuestView:
        awaits = node is not None and awaits_node(guest, node, time.time(), self._context.settings())
        return replace(view_of(guest, removed=node is None, load_of=self._context.load_of), awaits_node=awaits)

    async def _carry_out(
        self, guest: Guest, nodes: dict[str, Node], outcome: Recovery, gate: asyncio.Semaphore
    ) -> bool:
        """Commit one outcome; one that fails is decided anew at the next look and holds up no other guest."""
        try:
            async with gate:
                if isinstance(outcome, Move):
                    await self._move(guest, nodes.get(outcome.from_node), outcome)
                elif isinstance(outcome, Wait):
                    waits(guest, outcome, nodes.get(guest.status.node))
                    await self._note(guest, GUEST_PHASE_RECOVERING, outcome.reason)
                else:
                    await self._note(guest, GUEST_PHASE_UNKNOWN, outcome.reason)
        except (ConsensusError, GugusError) as error:
            _log.warning("recovery is tried again", guest=guest.meta.name, error=str(error))
            return False
        return True

    async def _move(
        self, guest: Guest, lost: Node | None, move: Move | Preemption, give_way: Sequence[Guest] = ()
    ) -> None:
        guest.status.placement.CopyFrom(to_proto(move.decision, MOST_VERDICTS))
        recovered(guest, move, disarmed=self._context.ha_disarmed())
        thawed = isinstance(move, Move) and move.thaw
        txn = Txn().put(guest, expect_revision=guest.meta.revision)
        if lost is not None:
            txn.expect(Node, lost.meta.name, revision=lost.meta.revision)
        word = ("GUEST_THAWED", INFO) if thawed else ("GUEST_RECOVERING", WARNING)
        record(txn, f"guest/{guest.meta.name}", word[0], move.reason, word[1])
        for other in give_way:
            _give_way(other, guest, txn)
        await self._context.store.txn(txn)
        _log.info("guest moved", guest=guest.meta.name, node=move.to_node, generation=move.generation)

    async def _note(self, guest: Guest, phase: GuestPhase.ValueType, reason: str) -> None:
        if guest.status.phase == phase and guest.status.reason == reason:
            return
        txn = Txn()
        if guest.status.phase != phase:
            frozen = guest.status.ha.state == HA_STATE_FREEZE
            word = "FROZEN" if frozen else GuestPhase.Name(phase).removeprefix("GUEST_PHASE_")
            record(txn, f"guest/{guest.meta.name}", f"GUEST_{word}", reason, WARNING)
        guest.status.phase, guest.status.reason = phase, reason
        await self._context.store.txn(txn.put(guest, expect_revision=guest.meta.revision))

    def _pending_differs(self, guest: Guest) -> bool:
        stored = self._context.store.peek(Guest, guest.meta.name)
        return stored is None or (stored.status.phase, stored.status.reason) != (
            GUEST_PHASE_PENDING,
            guest.status.reason,
        )


def _give_way(guest: Guest, to: Guest, txn: Txn) -> None:
    """Have a guest give its room up, in the transaction that gives it to another one."""
    name, node = guest.meta.name, guest.status.node
    give_way(guest, to)
    guest.status.preempted.at.GetCurrentTime()
    txn.put(guest, expect_revision=guest.meta.revision)
    record(txn, f"guest/{name}", "GUEST_PREEMPTED", f"{name} on {node} {guest.status.reason}", WARNING)
