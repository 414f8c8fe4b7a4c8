"""The state of a node as the acting manager decides it: when it is suspected, when fenced, when it counts again.

Invariant: a node is FENCED only when no HA guest that was given to it before can be running there. It rests on one
rule: *the acting manager renews only beats of nodes that are committed ONLINE, with no transition under way*. So
whoever sees a node in another state knows that nobody has renewed it since, also after a change of the manager.

    state    what happened                                            becomes
    JOINING  a beat                                                   ONLINE, raising the epoch
    ONLINE   three beats missing                                      SUSPECT
    SUSPECT  a beat, before the lease is over by anyone's clock       ONLINE
    SUSPECT  lease * drift passed since the last possible renewal     FENCING
    SUSPECT  its fence devices are to be used (`fence_plan`)          FENCING
    ONLINE, SUSPECT   somebody asks for it to be fenced               FENCING
    FENCING  safe_after_ns (lease, kill budget, margin) * drift passed
             since the last possible renewal                          FENCED
    ONLINE, SUSPECT, FENCING   a beat of another boot, or with a lapse
             report newer than the last accepted                      FENCED
    SUSPECT, FENCING   a fence device read back, or a person said,
             that it is off, and it was not heard since               FENCED
    FENCED   such a beat, no HA guest reported running, recovery
             has looked at each of its guests, no fence device is at
             work on it, and its host does not go down                ONLINE, raising the epoch

"Last possible renewal": this manager's last answer; without one its takeover, or earlier the moment when its replica
first showed the node other than ONLINE. A manager's death thus costs no second wait for a node already suspected.

FENCED lasts until recovery has taken its guests in hand: a host that is back within a second must not slip past it, or
its guests would stay without anybody having decided so.

SUSPECT decides nothing: the node keeps its guests when it is heard in time. It is not answered meanwhile (an answer
without a lease would end the lease), only once ONLINE is committed. FENCING is the point of no return: by then the
holder has ended its HA guests, or is about to, or its power is about to be cut. So nothing is lost by refusing; it is
answered `fenced`, so that an agent whose clock is wrong ends them too, and it comes back with a lapse report. A fence
device is used only once FENCING is committed: a node that is heard again while the device works cannot be ONLINE, with
new guests, when its power goes. The lease runs on beside the device; whichever proves the host dead first wins.

That a host was off proves that its boot is over, for ever. So an `Off` counts for the incarnation for which the device was
used and for no other: an answer of an earlier round that comes late says nothing of a host that has booted again. A
host that boots between the reading and the commit is another incarnation, which never had a lease. A beat of the same boot that was
heard after the reading refutes it: a device that answers for another host must not pass for proof.

A node proves that it starts from nothing by its incarnation, the pair (boot id, lapse number). The stored one is that
which last got the lease; it is replaced only when another gets it. A fenced node comes back only as another
incarnation. Coming back raises the manager's epoch in the same transaction: a command sent to it before, and still
under way, carries an older epoch than the new lease does, and is refused. Otherwise a late start could run a guest
that was given to another node meanwhile. For this, an answer's epoch is read from the same revision of the state as the
node's, and a command's from the same as the guest's that it was decided from, never later. Nodes without HA guests take
the same way, for their lapse is immediate.

A beat of an earlier boot that comes late would look like another incarnation. So a beat of another boot counts only
once it carries the acting manager's epoch: an agent makes the epoch of every answer durable, and the return of the
present incarnation raised it, so no earlier boot can know it. A new boot learns it from the answer to its first beat.
Within one boot lapse numbers only rise, and need no such proof. `beat` is the newest of the node's newest stream.
"""

from dataclasses import dataclass

from gugus.cluster.v1.node_pb2 import (
    NODE_STATE_FENCED,
    NODE_STATE_FENCING,
    NODE_STATE_JOINING,
    NODE_STATE_ONLINE,
    NODE_STATE_SUSPECT,
    NodeState,
)

from common.leases import HEARTBEAT_PERIOD_MS, NS_PER_MS, LeaseTimes, safe_after_ns

MISSED_BEATS = 3
"""Beats in a row that must be missing before a node is suspected: one may be lost, two may be late."""

SUSPECT_AFTER_NS = MISSED_BEATS * HEARTBEAT_PERIOD_MS * NS_PER_MS


@dataclass(frozen=True, slots=True)
class Beat:
    """The newest beat of a node: when this manager heard it, its boot, its lapse report's number (None without one),
    and the HA guests that it reports running. current: it carries the acting manager's epoch, or a higher one. leaving: it
    says that its host goes down in order, so a report in it proves that nothing runs there, and does not ask to be taken back."""

    heard_ns: int
    boot_id: str
    lapse_number: int | None = None
    running: tuple[str, ...] = ()
    current: bool = True
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Off:
    """The word of a fence device or a person that the host was off at `seen_ns`, after it was decided to fence this incarnation."""

    boot_id: str
    lapse_number: int
    seen_ns: int
    reason: str


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as stored, and what the acting manager remembers of it. Times are of this manager's clock.

    boot_id, lapse_number: the incarnation that last got the lease. takeover_ns: when this manager began to act.
    answered_ns: its last answer with a lease, None when it gave none. off_seen_ns: when its replica first showed the
    node other than ONLINE since it was last ONLINE, None while ONLINE or when unknown. pending: a transition was
    proposed and its outcome is not known yet. unrecovered: guests were given to it and recovery has not looked at them
    since it was lost. asked: why somebody wants it fenced. fire: why its fence devices are to be used now. held: why they
    are not. Each of them is "" when there is nothing to say. off: that it was seen off. under_fire: a fence device is at
    work on it, and may cut its power at any moment.
    """

    name: str
    state: NodeState.ValueType
    boot_id: str
    lapse_number: int
    takeover_ns: int
    answered_ns: int | None = None
    off_seen_ns: int | None = None
    beat: Beat | None = None
    pending: bool = False
    unrecovered: bool = False
    asked: str = ""
    fire: str = ""
    held: str = ""
    off: Off | None = None
    under_fire: bool = False


@dataclass(frozen=True, slots=True)
class NodeDecision:
    """What to commit of a node: state, reason and incarnation; `event` is the word for programs."""

    node: str
    state: NodeState.ValueType
    reason: str
    boot_id: str
    lapse_number: int
    event: str
    raise_epoch: bool = False


def renews(view: NodeView, now_ns: int, times: LeaseTimes) -> bool:
    """Return whether the newest beat may be answered with a lease right now."""
    del now_ns, times  # a committed state and nothing else gives the right; time only takes it, through `decide`
    if view.beat is None or view.pending or view.state != NODE_STATE_ONLINE:
        return False
    return not _another_incarnation(view, view.beat)


def decide(view: NodeView, now_ns: int, times: LeaseTimes) -> NodeDecision | None:
    """Return the transition that is due, None when the node stays as it is. Ask on a tick and at each news."""
    if view.pending:
        return None
    match view.state:
        case s if s == NODE_STATE_JOINING:
            return _online(view, "first beat", raise_epoch=True) if _heard(view, now_ns) else None
        case s if s == NODE_STATE_ONLINE:
            return _proof(view) or _asked(view) or _suspect(view, now_ns)
        case s if s == NODE_STATE_SUSPECT:
            return _proof(view) or _seen_off(view) or _asked(view) or _fencing_or_back(view, now_ns, times)
        case s if s == NODE_STATE_FENCING:
            return _proof(view) or _seen_off(view) or _fenced_by_time(view, now_ns, times)
        case s if s == NODE_STATE_FENCED:
            return _back(view, now_ns)
        case _:
            raise ValueError(f"node {view.name}: unknown state {view.state}")


def another_incarnation(boot_id: str, lapse_number: int, beat_boot_id: str, beat_lapse_number: int | None) -> bool:
    """Return whether a beat is of another incarnation than the stored one (the first two)."""
    newer_lapse = beat_lapse_number is not None and beat_lapse_number > lapse_number
    return beat_boot_id != boot_id or newer_lapse


def is_of(off: Off, boot_id: str, lapse_number: int) -> bool:
    """Return whether a word that a host was off is of the incarnation that last got the lease, and of no earlier one."""
    return (off.boot_id, off.lapse_number) == (boot_id, lapse_number)


def deadline(view: NodeView, times: LeaseTimes) -> int | None:
    """Return the moment at which `decide` may answer otherwise without another beat; None when only a beat matters."""
    if view.state == NODE_STATE_ONLINE:
        return _quiet_since_ns(view) + SUSPECT_AFTER_NS
    if view.state == NODE_STATE_SUSPECT:
        return lease_over_ns(last_renewal_ns(view), times)
    if view.state == NODE_STATE_FENCING:
        return safe_after_ns(last_renewal_ns(view), times)
    return None


def last_renewal_ns(view: NodeView) -> int:
    """Return a moment after which no manager has renewed this node's lease."""
    if view.answered_ns is not None:
        return view.answered_ns
    if view.state == NODE_STATE_ONLINE or view.off_seen_ns is None:
        return view.takeover_ns
    return min(view.takeover_ns, view.off_seen_ns)


def lease_over_ns(renewed_ns: int, times: LeaseTimes) -> int:
    """Return when a lease renewed last at `renewed_ns` has ended by its holder's clock, however slow that may be."""
    lease_ns = times.lease_ms * NS_PER_MS
    return renewed_ns + lease_ns + lease_ns * times.drift_ppm // 1_000_000


def _proof(view: NodeView) -> NodeDecision | None:
    beat = view.beat
    if beat is None or not _proves(view, beat):
        return None
    if beat.boot_id != view.boot_id:
        return _stay_as(view, NODE_STATE_FENCED, "NODE_FENCED", "the host was off: it came back with another boot id")
    return _stay_as(
        view,
        NODE_STATE_FENCED,
        "NODE_FENCED",
        f"its agent says that the lease ended and all HA guests there are dead (lapse {beat.lapse_number})",
    )


def _seen_off(view: NodeView) -> NodeDecision | None:
    off = view.off
    if off is None or not is_of(off, view.boot_id, view.lapse_number):
        return None
    if view.beat is not None and view.beat.boot_id == off.boot_id and view.beat.heard_ns > off.seen_ns:
        return None
    return _stay_as(view, NODE_STATE_FENCED, "NODE_FENCED", off.reason)


def _asked(view: NodeView) -> NodeDecision | None:
    return _stay_as(view, NODE_STATE_FENCING, "NODE_FENCING", view.asked) if view.asked else None


def _suspect(view: NodeView, now_ns: int) -> NodeDecision | None:
    quiet_ns = now_ns - _quiet_since_ns(view)
    if quiet_ns < SUSPECT_AFTER_NS:
        return None
    return _stay_as(view, NODE_STATE_SUSPECT, "NODE_SUSPECT", f"no heartbeat for {_seconds(quiet_ns)}")


def _fencing_or_back(view: NodeView, now_ns: int, times: LeaseTimes) -> NodeDecision | None:
    renewed_ns = last_renewal_ns(view)
    if now_ns >= lease_over_ns(renewed_ns, times):
        wait_ns = safe_after_ns(renewed_ns, times) - now_ns
        reason = f"its lease has ended; surely without HA guests in {_seconds(max(0, wait_ns))}"
        reason += f"; {view.held}" if view.held else ""
        return _stay_as(view, NODE_STATE_FENCING, "NODE_FENCING", reason)
    if view.fire:
        return _stay_as(view, NODE_STATE_FENCING, "NODE_FENCING", view.fire)
    if view.beat is None or not _heard(view, now_ns) or _another_incarnation(view, view.beat):
        return (
            None  # another incarnation never had this lease: it comes back by way of FENCED, or its beat is a late one
        )
    return _online(view, "heard again before its lease ended")


def _fenced_by_time(view: NodeView, now_ns: int, times: LeaseTimes) -> NodeDecision | None:
    renewed_ns = last_renewal_ns(view)
    if now_ns < safe_after_ns(renewed_ns, times):
        return None
    reason = f"not renewed for {_seconds(now_ns - renewed_ns)}: lease, kill budget and margin have passed"
    return _stay_as(view, NODE_STATE_FENCED, "NODE_FENCED", reason)


def _back(view: NodeView, now_ns: int) -> NodeDecision | None:
    beat = view.beat
    if beat is None or not _heard(view, now_ns) or not _proves(view, beat) or beat.running:
        return None
    if view.unrecovered or view.under_fire or beat.leaving:
        return None
    how = "another boot" if beat.boot_id != view.boot_id else f"lapse {beat.lapse_number}"
    return _online(view, f"back after fencing, with {how}", raise_epoch=True)


def _online(view: NodeView, reason: str, *, raise_epoch: bool = False) -> NodeDecision:
    if view.beat is None:
        raise ValueError(f"node {view.name}: ONLINE without a beat")
    lapse = max(view.lapse_number, view.beat.lapse_number or 0)
    return NodeDecision(view.name, NODE_STATE_ONLINE, reason, view.beat.boot_id, lapse, "NODE_ONLINE", raise_epoch)


def _stay_as(view: NodeView, state: NodeState.ValueType, event: str, reason: str) -> NodeDecision:
    return NodeDecision(view.name, state, reason, view.boot_id, view.lapse_number, event)


def _another_incarnation(view: NodeView, beat: Beat) -> bool:
    return another_incarnation(view.boot_id, view.lapse_number, beat.boot_id, beat.lapse_number)


def _proves(view: NodeView, beat: Beat) -> bool:
    return _another_incarnation(view, beat) and (beat.current or beat.boot_id == view.boot_id)


def _heard(view: NodeView, now_ns: int) -> bool:
    return view.beat is not None and now_ns - view.beat.heard_ns < SUSPECT_AFTER_NS


def _quiet_since_ns(view: NodeView) -> int:
    return max(view.takeover_ns, view.beat.heard_ns if view.beat else view.takeover_ns)


def _seconds(ns: int) -> str:
    return f"{ns / 1e9:.1f} s"
