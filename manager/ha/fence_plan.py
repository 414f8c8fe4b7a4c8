"""When the fence devices of a node are used, in which order, and what proves that they worked.

Invariant: a node is off only when every device of one level was told to cut its power and each was read back `off` after all of them had
said that they did. A time-out, an error, and an answer that is not understood are failures.

A fence device is a short cut: the node's lease ends beside it and proves the same some seconds later (`node_machine`). So a device is
held back whenever using it might do more harm than those seconds: while no guest waits for it, while other hosts reach the node, when so
many hosts are silent at once that the network is the likelier culprit, and for a node whose power was cut again and again. A person who
asks for it overrules all of these. Only the manager that acts asks, which a majority of the managers made it: the side without a majority
fences nobody.

    the node's devices, in levels:   level 1: ipmi            level 2: pdu-a AND pdu-b
    a pass:   off of all devices of a level, side by side; status of all of them; next level when one failed
    passes:   again, after a pause that doubles, for as long as the node is FENCING
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from gugus.cluster.v1.node_pb2 import (
    NODE_STATE_FENCED,
    NODE_STATE_FENCING,
    NODE_STATE_ONLINE,
    NODE_STATE_SUSPECT,
    NodeState,
)

from common.leases import HEARTBEAT_PERIOD_MS, NS_PER_MS
from manager.ha.node_machine import SUSPECT_AFTER_NS, Off

S = 1_000 * NS_PER_MS

SILENT_NS = HEARTBEAT_PERIOD_MS * NS_PER_MS * 3 // 2
"""Silence from which a host counts as one of those that may have been lost together, and from which others are asked whether they
reach it: one beat is surely overdue. Hosts that are lost at one moment are suspected up to a beat apart."""

OPINION_FRESH_NS = 2 * S
"""For so long other hosts' answers count; they are asked anew at half of it."""

CAP_PERCENT = 25
"""Share of the hosts that may be lost at once, and be fenced by devices still; at least one host."""

LOST_WINDOW_NS = 120 * S
"""A host that was fenced and is not back counts among those lost at once for so long."""

MAX_CUTS = 5
FLAP_WINDOW_NS = 600 * S
"""A node's devices are used so often within this window."""

RETURN_WINDOW_NS = 300 * S
RETURN_PATIENCE_NS = 1 * S
MOST_PATIENCE_NS = 3 * S
"""Each time that a suspected node was heard again after all, within this window, makes its devices wait so much longer, up to this."""

PAUSE_NS = 2 * S
MOST_PAUSE_NS = 30 * S
"""Before the second pass over all levels, doubled after each further one, up to this."""

Levels = tuple[tuple[str, ...], ...]


# When they are used.


@dataclass(frozen=True, slots=True)
class Limits:
    """What the cluster's settings say of the use of fence devices."""

    cap_percent: int = CAP_PERCENT
    max_cuts: int = MAX_CUTS


@dataclass(frozen=True, slots=True)
class Opinion:
    """What other hosts said when they were asked, at `asked_ns`, whether they reach a node; those without an answer are in neither."""

    asked_ns: int
    reached_by: tuple[str, ...] = ()
    missed_by: tuple[str, ...] = ()
    seen_writing_by: tuple[str, ...] = ()
    """Of those that missed it, who sees its beat in a shared pool go on."""
    seen_still_by: tuple[str, ...] = ()
    """And who sees it stand still; the others have no shared pool with it, or none that answers."""


@dataclass(frozen=True, slots=True)
class FenceView:
    """A node as the decision about its fence devices sees it. Times are of this manager's clock.

    quiet_ns: for how long it was not heard. off_seen_ns: when it was first seen other than ONLINE. fired_ns: when its devices were
    used. returned_ns: when it was suspected and heard again after all. asked_by: who wants it fenced, "" when nobody does.
    guests: how many guests under HA are given to it and are to run.
    """

    node: str
    state: NodeState.ValueType
    quiet_ns: int
    levels: Levels = ()
    opinion: Opinion | None = None
    off_seen_ns: int | None = None
    fired_ns: tuple[int, ...] = ()
    returned_ns: tuple[int, ...] = ()
    asked_by: str = ""
    guests: int = 1


@dataclass(frozen=True, slots=True)
class Fire:
    """Use the node's devices now."""

    reason: str


@dataclass(frozen=True, slots=True)
class HoldBack:
    """Leave it to the lease for now."""

    reason: str


def decide_fire(view: FenceView, cluster: Sequence[FenceView], now_ns: int, limits: Limits) -> Fire | HoldBack | None:
    """Return whether a node's devices are to be used; None when nothing is to be decided. cluster: all nodes, this one included."""
    if not view.levels:
        return None
    if view.asked_by:
        return Fire(f"{view.asked_by} asked for it: its power is cut") if view.state != NODE_STATE_FENCED else None
    if view.state != NODE_STATE_SUSPECT or view.quiet_ns < SUSPECT_AFTER_NS:
        return None
    held = (
        _needless(view)
        or _impatient(view, now_ns)
        or _other_hosts_say(view, now_ns)
        or _too_many(view, cluster, now_ns, limits)
        or _flaps(view, now_ns, limits)
    )
    if held:
        return HoldBack(f"its fence devices are not used: {held}")
    opinion = view.opinion
    who = f", and {_names(opinion.missed_by)} did not reach it" if opinion else ""
    who += ", nor see it write to shared storage" if opinion and opinion.seen_still_by else ""
    return Fire(f"no heartbeat for {view.quiet_ns / S:.1f} s{who}: its power is cut")


def opinion_due(view: FenceView, now_ns: int) -> bool:
    """Return whether other hosts are to be asked now whether they reach a node."""
    if not view.levels or view.quiet_ns < SILENT_NS or view.state not in (NODE_STATE_ONLINE, NODE_STATE_SUSPECT):
        return False
    return view.opinion is None or now_ns - view.opinion.asked_ns >= OPINION_FRESH_NS // 2


def cap(nodes: int, limits: Limits) -> int:
    """Return how many of so many hosts may be lost at once for devices to be used still."""
    return max(1, nodes * limits.cap_percent // 100)


def lost_together(cluster: Sequence[FenceView], now_ns: int) -> list[str]:
    """Return the nodes that are silent, suspected or being fenced now, or were fenced a short while ago and are not back."""
    return [view.node for view in cluster if _lost(view, now_ns)]


def _lost(view: FenceView, now_ns: int) -> bool:
    match view.state:
        case s if s == NODE_STATE_ONLINE:
            return view.quiet_ns >= SILENT_NS
        case s if s in (NODE_STATE_SUSPECT, NODE_STATE_FENCING):
            return True
        case s if s == NODE_STATE_FENCED:
            return view.off_seen_ns is not None and now_ns - view.off_seen_ns < LOST_WINDOW_NS
        case _:
            return False


def _needless(view: FenceView) -> str:
    return "" if view.guests else "no guest under HA is to run there, so nothing waits for the proof"


def _impatient(view: FenceView, now_ns: int) -> str:
    returns = sum(1 for at_ns in view.returned_ns if now_ns - at_ns < RETURN_WINDOW_NS)
    patience_ns = min(returns * RETURN_PATIENCE_NS, MOST_PATIENCE_NS)
    if view.quiet_ns >= SUSPECT_AFTER_NS + patience_ns:
        return ""
    return (
        f"it was suspected and heard again {returns} times of late, so {patience_ns / S:g} s more are waited for a beat"
    )


def _other_hosts_say(view: FenceView, now_ns: int) -> str:
    opinion = view.opinion
    if opinion is None or now_ns - opinion.asked_ns > OPINION_FRESH_NS:
        return "no other host has said yet whether it reaches it"
    if opinion.reached_by:
        return f"{_names(opinion.reached_by)} reached it, so it has power; its lease decides"
    if opinion.seen_writing_by:
        who = _names(opinion.seen_writing_by)
        return f"{who} sees it write to shared storage, so it runs, and is cut off from the network; its lease decides"
    return "" if opinion.missed_by else "no other host answers whether it reaches it; its lease decides"


def _too_many(view: FenceView, cluster: Sequence[FenceView], now_ns: int, limits: Limits) -> str:
    lost, most = lost_together(cluster, now_ns), cap(len(cluster), limits)
    if len({view.node, *lost}) <= most:
        return ""
    return (
        f"{len(lost)} of {len(cluster)} hosts are lost at once ({_names(lost)}), and a device is used for at most {most}: "
        "it may be the network; their leases decide"
    )


def _flaps(view: FenceView, now_ns: int, limits: Limits) -> str:
    fired = sum(1 for at_ns in view.fired_ns if now_ns - at_ns < FLAP_WINDOW_NS)
    if fired < limits.max_cuts:
        return ""
    return f"its power was cut {fired} times within {FLAP_WINDOW_NS // S // 60} minutes; its lease decides"


_NAMED = 5


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


# How they are used.


class Action(StrEnum):
    """What a device is asked for, by the word of the fence-agents."""

    OFF = "off"
    STATUS = "status"
    ON = "on"


class Outcome(StrEnum):
    """What came of it."""

    DONE = "done"
    """`off` or `on` was carried out, as the device says."""
    IS_OFF = "off"
    IS_ON = "on"
    FAILED = "failed"
    """An error, a time-out, or an answer that is not understood."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One request to one device."""

    device: str
    action: Action


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a shot, and why in words when it failed."""

    shot: Shot
    outcome: Outcome
    words: str = ""


@dataclass(frozen=True, slots=True)
class Round:
    """Cutting the power of one incarnation of a node. `fired` says which shots are due side by side, `took` takes their answers.

    level: which is tried now. passes: how often all levels failed. used: devices that were told to cut the power, which must be
    told to give it back. off: the proof, once there is one. failures: why the levels of this pass failed.
    """

    node: str
    boot_id: str
    lapse_number: int
    levels: Levels
    level: int = 0
    action: Action = Action.OFF
    passes: int = 0
    not_before_ns: int = 0
    used: tuple[str, ...] = ()
    off: Off | None = None
    failures: tuple[str, ...] = field(default=())

    def shots(self) -> tuple[Shot, ...]:
        """Return the shots that are due now, or at `not_before_ns`; none once there is a proof."""
        return () if self.off else tuple(Shot(device, self.action) for device in self.levels[self.level])

    def fired(self) -> "Round":
        """Note, before it is done, that the shots are fired."""
        return replace(self, used=tuple(dict.fromkeys([*self.used, *self.levels[self.level]])))

    def took(self, answers: Sequence[Answer], began_ns: int, now_ns: int) -> "Round":
        """Take the answers to all shots, which were fired at `began_ns`.

        The proof's moment is when the statuses were asked for, not when they came.
        """
        failed = [answer for answer in answers if not succeeded(answer)]
        missing = set(self.shots()) - {answer.shot for answer in answers}
        if failed or missing:
            return self._next(failed, now_ns)
        if self.action is Action.OFF:
            return replace(self, action=Action.STATUS)
        devices = " and ".join(self.levels[self.level])
        reason = f"the power is off: read back from {devices}"
        return replace(self, off=Off(self.boot_id, self.lapse_number, began_ns, reason), failures=())

    def _next(self, failed: Sequence[Answer], now_ns: int) -> "Round":
        words = [f"{a.shot.device}: {a.shot.action} {_failure(a)}" for a in failed]
        failures = (*self.failures, *words)
        if self.level + 1 < len(self.levels):
            return replace(self, level=self.level + 1, action=Action.OFF, failures=failures)
        pause_ns = min(PAUSE_NS << min(self.passes, 10), MOST_PAUSE_NS)
        return replace(
            self,
            level=0,
            action=Action.OFF,
            passes=self.passes + 1,
            not_before_ns=now_ns + pause_ns,
            failures=failures[-len(words) - len(self.levels) :],
        )


def succeeded(answer: Answer) -> bool:
    """Return whether a shot reached what it was for: `off` and `on` when they were done, `status` only when it reads off."""
    return answer.outcome is (Outcome.IS_OFF if answer.shot.action is Action.STATUS else Outcome.DONE)


def _failure(answer: Answer) -> str:
    if answer.outcome is Outcome.IS_ON:
        return "says that the power is on"
    return f"failed: {answer.words or 'it does not say why'}"
