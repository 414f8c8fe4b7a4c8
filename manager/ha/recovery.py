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
from manager.scheduler import Decision, GuestRequest, NodeView, Terms, settle, withdraw

Lost = (NODE_STATE_FENCING, NODE_STATE_FENCED)
"""States in which a node's guests are lost."""

TAKEN_IN = (GUEST_PHASE_RECOVERING, GUEST_PHASE_UNKNOWN)
"""Phases of a lost node's guests that recovery has looked at; the others it has yet to."""


MOST_VERDICTS = 50
"""Nodes whose verdicts are kept with a decision, the best: of a thousand they would take more room than an object may have."""


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
    counted: bool = True
    """Its room on its node is among what is promised there: it did not give way to another guest (`manager.ha.preemption`)."""
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

    `nodes` carry the promises of all guests, these included. All that can be given a node are placed together, so that as few as
    possible stay without; those that do are in nobody's way, not even on a node of theirs that came back. The rules of `terms`
    count them, and the guests that are not lost. A guest of a node that is not in `node_states` any more was removed with it by a
    person: that is the proof. blocked: why guests from before a recovery may not be moved now, "" when they may.
    """
    waiting, outcomes = list[GuestView](), dict[str, Recovery]()
    ordered = sorted(guests, key=lambda g: (not g.power_on, -g.priority, g.name))
    for guest in ordered:
        state = node_states.get(guest.node, NODE_STATE_FENCED)
        if guest.deleting or not guest.node or not (state in Lost or guest.phase == GUEST_PHASE_RECOVERING):
            continue
        held = _held(guest, state, blocked)
        if held is None:
            waiting.append(guest)
        else:
            outcomes[guest.name] = held
    decisions = _decisions(waiting, nodes, terms or Terms())
    for guest in waiting:
        outcomes[guest.name] = _given(guest, decisions[guest.name])
    return [outcomes[guest.name] for guest in ordered if guest.name in outcomes]


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


def _held(guest: GuestView, state: NodeState.ValueType, blocked: str) -> Recovery | None:
    """Return why a guest is given to no other node now, None when it is to be."""
    if guest.migration_target:
        where = f"{guest.name} was on its way from {guest.node} to {guest.migration_target}"
        return Wait(guest.name, f"{where}: which of them has it is being found out")
    if guest.inherited and guest.ha and blocked:
        return Wait(guest.name, blocked)
    if not guest.ha:
        return Unknown(guest.name, f"{guest.node} is lost and {guest.name} is not under HA: nobody knows if it runs")
    if guest.disabled:
        return Unknown(guest.name, f"{guest.node} is lost and {guest.name} is out of use: it is given to no other node")
    if state == NODE_STATE_FENCING:
        reason = f"waiting for the proof that it does not run on {guest.node}"
        return Wait(guest.name, reason, event=Event.LOSE)
    if guest.awaits_node and state in Lost:
        return Wait(guest.name, f"{guest.node} went down in order, and {guest.name} waits for it", event=Event.FREEZE)
    return None


def _decisions(guests: Sequence[GuestView], nodes: Sequence[NodeView], terms: Terms) -> dict[str, Decision]:
    """Return where guests go that surely run nowhere: those that are to run first, whatever the others' priorities."""
    present = {node.name: node for node in nodes}
    for guest in guests:  # its own promise must not stand in its way on a node that came back
        if guest.counted and (node := present.get(guest.node)) is not None:
            present[guest.node] = withdraw(node, guest.request)
    requests = {guest.name: _request(guest) for guest in guests}
    fleet = terms.fleet(list(present.values()), placing=list(requests.values()))
    running, stopped = ([requests[g.name] for g in guests if g.power_on is on] for on in (True, False))
    return {**settle(fleet, running, MOST_VERDICTS), **settle(fleet, stopped, MOST_VERDICTS)}


def _request(guest: GuestView) -> GuestRequest:
    """Return what a guest wants; one that waits for its node wants no other."""
    request = replace(guest.request, priority=guest.priority)
    return replace(request, pinned=guest.node) if guest.awaits_node else request


def _given(guest: GuestView, decision: Decision) -> Recovery:
    if guest.awaits_node:
        return _thawed(guest, decision)
    if not decision.node:
        return Wait(guest.name, f"{guest.node} was lost. {decision.reason}", decision, Event.PROVE)
    reason = f"{guest.node} was fenced; {decision.reason}"
    return Move(guest.name, guest.node, decision.node, guest.generation + 1, decision, reason)


def _thawed(guest: GuestView, decision: Decision) -> Recovery:
    """Return what becomes of a guest whose node is back: it gets it once the node is ready for it."""
    if not decision.node:
        missing = "; ".join(why for v in decision.verdicts if v.node == guest.node for why in v.refusals)
        return Wait(guest.name, f"{guest.node} is back, and not ready for {guest.name} yet: {missing}", decision)
    reason = f"{guest.node} is back, and {guest.name} waited for it"
    return Move(guest.name, guest.node, guest.node, guest.generation + 1, decision, reason, thaw=True)
