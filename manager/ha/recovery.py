"""Recovery: what becomes of the guests of lost nodes, and of copies that a node should not have.

Invariant: a guest gets a new generation and a new node only when its node is FENCED (or was, and the guest has waited
in RECOVERING since) and its copy there was under HA, so that it is proven dead. Guests outside HA are never moved:
nobody knows whether they run. A guest that was migrating may run on its target, too: it waits until its migration is settled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RECOVERING, GUEST_PHASE_UNKNOWN, GuestPhase
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED, NODE_STATE_FENCING, NodeState

from manager.ha.guest_machine import Event
from manager.scheduler import (
    Decision,
    GuestRequest,
    NodeView,
    Terms,
    place,
    promise,
    withdraw,
)

Lost = (NODE_STATE_FENCING, NODE_STATE_FENCED)
"""States in which a node's guests are lost."""

TAKEN_IN = (GUEST_PHASE_RECOVERING, GUEST_PHASE_UNKNOWN)
"""Phases of a lost node's guests that recovery has looked at; the others it has yet to."""


@dataclass(frozen=True, slots=True)
class GuestView:
    """A guest as stored. `ha`: under HA by its spec, *and* its copy on the node is known to be held under HA there,
    so that it dies with the lease; a copy that its agent holds outside HA must not count. `inherited`: `manager.ha.inherited`."""

    name: str
    node: str
    generation: int
    phase: GuestPhase.ValueType
    ha: bool
    power_on: bool
    request: GuestRequest
    deleting: bool = False
    uid: str = ""
    inherited: bool = False
    priority: int = 0
    """Who is given a node first; higher first."""
    disabled: bool = False
    """Out of use: under HA, but not given to another node."""
    awaits_node: bool = False
    """Its node went down in order and it waits for it, to be started there again (`departure`)."""
    migration_target: str = ""
    """Node that it may have gone to: which of the two has it is found out by its migration (`manager.ha.migration`)."""


@dataclass(frozen=True, slots=True)
class Move:
    """Give the guest to another node (or anew to its own, which came back) with the next generation."""

    guest: str
    from_node: str
    to_node: str
    generation: int
    decision: Decision
    reason: str
    thaw: bool = False
    """It waited for its node, which is back and gets it."""


@dataclass(frozen=True, slots=True)
class Wait:
    """The guest is to be recovered and cannot be yet; without a decision its node is not proven dead.

    event: what that is to HA's account of the guest; None when nothing has become clear.
    """

    guest: str
    reason: str
    decision: Decision | None = None
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """The guest is outside HA, or out of use, and its node is lost."""

    guest: str
    reason: str


Recovery = Move | Wait | Unknown


@dataclass(frozen=True, slots=True)
class CopyReport:
    """A guest that a node reports."""

    name: str
    generation: int
    running: bool
    uid: str = ""


@dataclass(frozen=True, slots=True)
class StaleCopy:
    """A copy that must go: killed first if it runs, then undefined."""

    name: str
    kill: bool
    reason: str


def recover(
    guests: Sequence[GuestView],
    node_states: Mapping[str, NodeState.ValueType],
    nodes: Sequence[NodeView],
    *,
    terms: Terms | None = None,
    blocked: str = "",
) -> list[Recovery]:
    """Return what to do with each guest of a lost node, powered ones first, of these the important ones.

    Guests being deleted are left alone.

    `nodes` carry the promises of all guests, these included; each guest sees what those before it were given, and so do the rules of
    `terms`, whose others are the guests that are not lost. A guest
    of a node that is not in `node_states` any more was removed with it by a person: that is the proof. blocked: why guests
    from before a recovery may not be moved now, "" when they may.
    """
    terms = terms or Terms()
    present = {node.name: node for node in nodes}
    outcomes: list[Recovery] = []
    for guest in sorted(guests, key=lambda g: (not g.power_on, -g.priority, g.name)):
        state = node_states.get(guest.node, NODE_STATE_FENCED)
        if guest.deleting or not guest.node or not (state in Lost or guest.phase == GUEST_PHASE_RECOVERING):
            continue
        if guest.migration_target:
            where = f"{guest.name} was on its way from {guest.node} to {guest.migration_target}"
            outcomes.append(Wait(guest.name, f"{where}: which of them has it is being found out"))
            continue
        if guest.inherited and guest.ha and blocked:
            outcomes.append(Wait(guest.name, blocked))
            continue
        outcome = _outcome(guest, state, present, terms)
        if isinstance(outcome, Move):
            _give_back(present, guest)
            present[outcome.to_node] = promise(present[outcome.to_node], guest.request)
            terms = replace(terms, others=(*terms.others, replace(guest.request, node=outcome.to_node)))
        outcomes.append(outcome)
    return outcomes


def stale_copies(
    node: str, reports: Sequence[CopyReport], guests: Mapping[str, GuestView], floor: int = 0
) -> list[StaleCopy]:
    """Return what a node has although the state gives it to another node, or to none any more.

    A copy that was granted before the last recovery (a generation below `floor`) is not judged by a state that may be older: none of a
    guest that the state does not know, for it may be all that is left of it, and none while its guest was not taken in.
    """
    stale = []
    for report in reports:
        guest = guests.get(report.name)
        if guest is not None and guest.migration_target == node:
            continue  # it is being made ready there
        if report.generation < floor and (guest is None or report.uid != guest.uid or guest.inherited):
            continue
        if guest is None:
            stale.append(StaleCopy(report.name, report.running, f"{report.name} is no guest of this cluster any more"))
        elif guest.node != node and report.uid not in ("", guest.uid):
            reason = f"{report.name} was deleted, and the guest of that name is another one"
            stale.append(StaleCopy(report.name, report.running, reason))
        elif guest.node != node and report.generation <= guest.generation:
            reason = f"{report.name} was given to {guest.node or 'no node'} with generation {guest.generation}"
            stale.append(StaleCopy(report.name, report.running, f"{reason}; this copy has {report.generation}"))
    return stale


def _outcome(
    guest: GuestView,
    state: NodeState.ValueType,
    present: Mapping[str, NodeView],
    terms: Terms,
) -> Recovery:
    if not guest.ha:
        return Unknown(guest.name, f"{guest.node} is lost and {guest.name} is not under HA: nobody knows if it runs")
    if guest.disabled:
        return Unknown(guest.name, f"{guest.node} is lost and {guest.name} is out of use: it is given to no other node")
    if state == NODE_STATE_FENCING:
        reason = f"waiting for the proof that it does not run on {guest.node}"
        return Wait(guest.name, reason, event=Event.LOSE)
    others = dict(present)
    _give_back(others, guest)
    if guest.awaits_node:
        return _awaited(guest, state, others, terms)
    decision = place(guest.request, list(others.values()), terms)
    if not decision.node:
        return Wait(guest.name, f"{guest.node} was lost. {decision.reason}", decision, Event.PROVE)
    reason = f"{guest.node} was fenced; {decision.reason}"
    return Move(guest.name, guest.node, decision.node, guest.generation + 1, decision, reason)


def _awaited(guest: GuestView, state: NodeState.ValueType, others: Mapping[str, NodeView], terms: Terms) -> Move | Wait:
    """Return what to do with a guest that waits for its node: nothing, or give it back once the node is ready for it."""
    if state in Lost:
        return Wait(guest.name, f"{guest.node} went down in order, and {guest.name} waits for it", event=Event.FREEZE)
    decision = place(replace(guest.request, pinned=guest.node), list(others.values()), terms)
    if not decision.node:
        missing = "; ".join(why for v in decision.verdicts if v.node == guest.node for why in v.refusals)
        return Wait(guest.name, f"{guest.node} is back, and not ready for {guest.name} yet: {missing}", decision)
    reason = f"{guest.node} is back, and {guest.name} waited for it"
    return Move(guest.name, guest.node, guest.node, guest.generation + 1, decision, reason, thaw=True)


def _give_back(present: dict[str, NodeView], guest: GuestView) -> None:
    """Take the guest's own promise off its node, so that it does not stand in its own way."""
    if (node := present.get(guest.node)) is not None:
        present[guest.node] = withdraw(node, guest.request)
