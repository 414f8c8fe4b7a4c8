"""Preemption: a guest that has to be recovered and finds no room takes that of guests of lower priority.

Invariant: a guest gives way only to one of higher priority, and the room goes to that one in the same transaction, so that it is never
without an owner: the one that gave way fits there again only when there is other room. It stays asked to run, is stopped, counts until it
is down, and is let back where it was, or taken to another node, once it fits (`manager.controllers.room`). Who took the room is not
started before it is down. All of this follows from what is stored, so whoever acts goes on with it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_CREATING,
    GUEST_PHASE_ERROR,
    GUEST_PHASE_HIBERNATED,
    GUEST_PHASE_PAUSED,
    GUEST_PHASE_RECOVERING,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STARTING,
    GUEST_PHASE_STOPPED,
    Guest,
)
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.rule_pb2 import Rule

from manager.ha.recovery import GuestView, Lost
from manager.scheduler import Decision, GuestRequest, Settings
from manager.scheduler.stored_rules import planned_rules
from manager.scheduler.views import guest_request, holds_room, node_views
from planner.fleet import Fleet
from planner.preempt import preempt

Choose = Callable[[GuestRequest], Decision]
"""Chooses a node for a guest as if it were on none."""

UNTOUCHABLE = 1 << 31
"""Priority that guests are planned with that cannot give way now: above all others."""

STOP_TIMEOUT_MS = 30_000
"""Longest shutdown of a guest that gives way, for a more important one waits meanwhile. Its own limit counts if that is shorter."""

_CAN_GIVE_WAY = frozenset(
    {
        GUEST_PHASE_RUNNING,
        GUEST_PHASE_PAUSED,
        GUEST_PHASE_STARTING,
        GUEST_PHASE_STOPPED,
        GUEST_PHASE_HIBERNATED,
        GUEST_PHASE_ERROR,
    }
)


@dataclass(frozen=True, slots=True)
class Preemption:
    """Give a lost guest to a node with the next generation, and have guests there give way. `decision` names the node, and why."""

    guest: str
    from_node: str
    to_node: str
    generation: int
    decision: Decision
    reason: str
    gives_way: tuple[str, ...]


def preemptions(
    waiting: Sequence[tuple[GuestView, Decision]], fleet: Fleet, avoided: frozenset[str] = frozenset()
) -> list[Preemption]:
    """Return who gets room that others give up, the most important first.

    waiting: guests that surely run nowhere, are to run, and fit no node, with the refusals. fleet: all other guests that hold room on
    nodes that are not lost; those that cannot give way with the priority UNTOUCHABLE. It is changed. avoided: nodes on which guests are
    giving way already: what is free there soon may be enough.
    """
    found = []
    for view, decision in sorted(waiting, key=lambda one: (-one[0].priority, one[0].name)):
        request = replace(view.request, node="", excluded=view.request.excluded | avoided)
        fleet.guests[request.name] = request
        with _kept(fleet, request.after):
            evictions = preempt(fleet, request)
        if not evictions:
            continue
        node, names = evictions[0].node, tuple(sorted(eviction.guest for eviction in evictions))
        reason = f"{view.node} was fenced; no node had room, so {_list(names)} gave way on {node} (priority below {view.priority})"
        chosen = replace(decision, node=node, reason=reason)
        found.append(Preemption(view.name, view.node, node, view.generation + 1, chosen, reason, names))
    return found


@contextmanager
def _kept(fleet: Fleet, names: Iterable[str]) -> Iterator[None]:
    """Have some guests not give way for a while: those that a guest starts after, for it needs them."""
    before = {name: fleet.guests[name] for name in names if name in fleet.guests}
    fleet.guests.update({name: replace(guest, priority=UNTOUCHABLE) for name, guest in before.items()})
    try:
        yield
    finally:
        fleet.guests.update(before)


def may_preempt(view: GuestView) -> bool:
    """Return whether others may have to give way to a guest that has no room: it is to be recovered, and to run."""
    wanted = view.ha and view.power_on and not view.disabled and not view.deleting
    return wanted and view.phase == GUEST_PHASE_RECOVERING and view.priority > 0


def contested(nodes: Sequence[Node], guests: Iterable[Guest], rules: Iterable[Rule], settings: Settings) -> Fleet:
    """Return the nodes with the guests that hold room on them; those that cannot give way now are above all others.

    guests: but those that wait. Who is on a lost node is nowhere.
    """
    present = {node.meta.name for node in nodes if node.status.state not in Lost}
    requests = [
        request if can_give_way(guest) else replace(request, priority=UNTOUCHABLE)
        for guest in guests
        if (request := guest_request(guest)).node in present
    ]
    return Fleet(node_views(nodes, ()), requests, planned_rules(rules), settings)


def way_back(request: GuestRequest, home: str, choose: Choose, *, may_move: bool) -> str:
    """Return the node that a guest which gave way can have now: the one that it is on before any other; "" when there is none."""
    if choose(replace(request, pinned=home)).node:
        return home
    return choose(replace(request, excluded=request.excluded | {home})).node if may_move else ""


def give_way(guest: Guest, to: Guest) -> None:
    """Write down that a guest gives its room up for another one; when is the caller's to say."""
    preempted = guest.status.preempted
    preempted.by, preempted.priority = to.meta.name, to.spec.ha.priority
    guest.status.reason = in_words(guest)


def can_give_way(guest: Guest) -> bool:
    """Return whether a guest could give its room up now: nothing works on it, and it did not do so already."""
    status = guest.status
    busy = (
        guest.meta.deleting or status.HasField("lock") or status.HasField("migration") or status.HasField("preempted")
    )
    return not busy and not guest.spec.template and status.volumes_ready and status.phase in _CAN_GIVE_WAY


def giving_way(guests: Iterable[Guest]) -> frozenset[str]:
    """Return the nodes on which guests that gave way are not down yet."""
    return frozenset(g.status.node for g in guests if g.status.HasField("preempted") and holds_room(g))


def waits_for(guest: Guest, others: Iterable[Guest]) -> str:
    """Return whom a guest that its node was given just now has to wait for, in words; "" when it may start."""
    if guest.status.phase != GUEST_PHASE_CREATING:
        return ""
    names = sorted(
        g.meta.name
        for g in others
        if g.status.node == guest.status.node and g.status.HasField("preempted") and holds_room(g)
    )
    return (
        f"waits until {_list(names)} on {guest.status.node} {'is' if len(names) == 1 else 'are'} stopped"
        if names
        else ""
    )


def in_words(guest: Guest) -> str:
    """Return for whom a guest gave way, and how it goes on; "" when it did not."""
    if not guest.status.HasField("preempted"):
        return ""
    by = guest.status.preempted
    return f"gave way to {by.by} (priority {by.priority}, its own is {guest.spec.ha.priority}); there is no room to start it yet"


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
