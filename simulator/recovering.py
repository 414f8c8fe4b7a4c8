"""Recovery in the simulation: the real `manager.ha.recovery`, whose decisions are committed together, and stale copies that are removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RECOVERING, GUEST_PHASE_UNKNOWN, Guest, GuestPhase
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE

from manager.ha.guest_machine import Event
from manager.ha.preemption import contested, give_way, giving_way, may_preempt, preemptions
from manager.ha.recovery import CopyReport, GuestView, Move, Recovery, Wait, recover, stale_copies
from manager.ha.stored import awaits_node, is_lost, recovered, terms, view_of, waits
from manager.scheduler import Decision
from manager.scheduler.settings import planner_settings
from manager.scheduler.stored_rules import planned_rules
from manager.scheduler.views import node_views
from planner.settings import Preemption
from simulator.clockwork import S
from simulator.state import Txn, copy_of, guest_key, node_key

if TYPE_CHECKING:
    from simulator.manager import Manager

STALE = 3 * S
"""A copy is removed when it was stale for so long: a beat may be a little older than the state."""


class Recovering:
    """One reign's look at the guests of lost nodes. The next look comes when all that was decided in the one before is known."""

    def __init__(self, manager: Manager) -> None:
        self.manager, self.world = manager, manager.world
        self._looked = -1
        self._open = 0
        self._stale: dict[tuple[str, str], int] = {}

    def tick(self) -> None:
        """Look at the guests of lost nodes, if anything has changed; remove copies that are stale for long enough."""
        if self._stale:
            self._remove()
        replica = self.manager.replica
        if self._open or self.manager.giving or self._looked == replica.changes:
            return
        self._looked = replica.changes
        lost = [guest for guest in replica.guests.values() if is_lost(guest, replica.nodes)]
        if not lost:
            return
        nodes, guests = list(replica.nodes.values()), list(replica.guests.values())
        views = [self._view(guest) for guest in lost]
        settings, load_of = planner_settings(replica.cluster.settings), self.manager.loads.of
        outcomes = recover(
            views if self.world.rules.recovery_minds_migrations else [replace(v, migration_target="") for v in views],
            {node.meta.name: node.status.state for node in nodes},
            node_views(nodes, guests, load_of=load_of),
            terms=terms(nodes, guests, replica.rules.values(), settings, load_of=load_of),
        )
        for outcome in outcomes:
            self._carry_out(copy_of(replica.guests[outcome.guest]), outcome)
        if not any(isinstance(outcome, Move) for outcome in outcomes):  # else it is looked first what room is left
            waiting = [o for o in outcomes if isinstance(o, Wait)]
            self._make_room({o.guest: o.decision for o in waiting if o.decision and o.event is Event.PROVE})
            if any(o.event is Event.FREEZE for o in waiting):  # time alone ends that
                self.world.queue.after(S, self._look_again)

    def _view(self, guest: Guest) -> GuestView:
        node, settings = self.manager.replica.nodes.get(guest.status.node), self.manager.replica.cluster.settings
        awaits = node is not None and awaits_node(guest, node, self.world.queue.now / S, settings)
        view = view_of(guest, removed=node is None, load_of=self.manager.loads.of)
        return replace(view, awaits_node=awaits)

    def _make_room(self, homeless: Mapping[str, Decision]) -> None:
        """Have guests of lower priority give way to those that fit no node, if the settings say so. homeless: with the refusals."""
        replica, settings = self.manager.replica, planner_settings(self.manager.replica.cluster.settings)
        if settings.preemption is Preemption.NEVER or not homeless:
            return
        views = [self._view(replica.guests[name]) for name in homeless]
        waiting = [(view, homeless[view.name]) for view in views if may_preempt(view)]
        if not waiting:
            return
        others = [guest for guest in replica.guests.values() if guest.meta.name not in homeless]
        rules = planned_rules(replica.rules.values())
        fleet = contested(list(replica.nodes.values()), others, rules, settings)
        for found in preemptions(waiting, fleet, giving_way(replica.guests.values())):
            guest = copy_of(replica.guests[found.guest])
            key, lost = guest_key(found.guest), node_key(guest.status.node)
            recovered(guest, found, disarmed=replica.cluster.ha.disarmed)
            puts, tells = {key: guest}, [(key, f"recovering: {found.reason}")]
            for name in found.gives_way:
                lesser = copy_of(replica.guests[name])
                give_way(lesser, guest)
                puts[guest_key(name)] = lesser
                tells.append((guest_key(name), lesser.status.reason))
            compares = {one: replica.revision_of(one) for one in (*puts, lost)}
            self._put(Txn(compares, puts, tells=tuple(tells)))

    def _look_again(self) -> None:
        self._looked = -1

    def told(self, node: str) -> None:
        """A node told what it has: note what is not to be there."""
        replica, now = self.manager.replica, self.manager.now()
        copies = self.manager.reports[node].copies
        foreign = [n for n in copies if n not in replica.guests or replica.guests[n].status.node != node]
        for name in foreign:
            self._stale.setdefault((node, name), now)

    def _carry_out(self, guest: Guest, outcome: Recovery) -> None:
        key = guest_key(outcome.guest)
        compares = {key: self.manager.replica.revision_of(key)}
        if isinstance(outcome, Move):
            lost = node_key(guest.status.node)
            compares[lost] = self.manager.replica.revision_of(lost)
            recovered(guest, outcome, disarmed=self.manager.replica.cluster.ha.disarmed)
            self._put(Txn(compares, {key: guest}, tells=((key, f"recovering: {outcome.reason}"),)))
            return
        phase: GuestPhase.ValueType = GUEST_PHASE_RECOVERING if isinstance(outcome, Wait) else GUEST_PHASE_UNKNOWN
        if isinstance(outcome, Wait):
            waits(guest, outcome, self.manager.replica.nodes.get(guest.status.node))
        if (guest.status.phase, guest.status.reason) == (phase, outcome.reason):
            return
        word = GuestPhase.Name(phase).removeprefix("GUEST_PHASE_").lower()
        guest.status.phase, guest.status.reason = phase, outcome.reason
        self._put(Txn(compares, {key: guest}, tells=((key, f"{word}: {outcome.reason}"),)))

    def _put(self, txn: Txn) -> None:
        self._open += 1

        def done(ok: bool) -> None:
            self._open -= 1
            if not ok:
                self._looked = -1

        self.manager.give(txn, done)

    def _remove(self) -> None:
        manager, replica = self.manager, self.manager.replica
        views = {name: view_of(guest) for name, guest in replica.guests.items()}
        for (node, name), since in list(self._stale.items()):
            copy = manager.reports[node].copies.get(name) if node in manager.reports else None
            found = stale_copies(node, [CopyReport(name, copy.generation, copy.running)], views) if copy else []
            if not found or replica.nodes[node].status.state != NODE_STATE_ONLINE:
                if copy is None or (name in views and views[name].node == node):
                    del self._stale[node, name]
            elif manager.now() - since > STALE:
                self._stale[node, name] = manager.now()
                manager.guests.command(node, lambda agent, epoch, reply, n=name: agent.remove(n, epoch, reply))  # type: ignore[misc]
