"""What comes next for a host of a rolling reboot, and what came of all of them. Pure; whose turn it is says `manager.ha.rolling`.

Whoever asks writes each step down together with what it begins. What ends a rolling reboot is raised as GugusError.
"""

from collections.abc import Collection
from dataclasses import dataclass

from gugus.agent.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_FAILED, TASK_STATE_SUCCEEDED, TaskState
from gugus.cluster.v1.node_pb2 import (
    NODE_STATE_ONLINE,
    REBOOT_STEP_DONE,
    REBOOT_STEP_DRAIN,
    REBOOT_STEP_FAILED,
    REBOOT_STEP_REBOOT,
    REBOOT_STEP_RESTORE,
    REBOOT_STEP_SKIPPED,
    REBOOT_STEP_UNSPECIFIED,
    Node,
    NodeReboot,
    RebootStep,
    RollingReboot,
)

from common.errors import GugusError, deadline_exceeded, precondition
from manager.ha import rolling
from manager.scheduler import what_if
from manager.scheduler.what_if import Stored

_ENDED = (TASK_STATE_SUCCEEDED, TASK_STATE_FAILED, TASK_STATE_CANCELLED)

_WORDS = {
    REBOOT_STEP_UNSPECIFIED: "is left as it was",
    REBOOT_STEP_DRAIN: "is being emptied",
    REBOOT_STEP_REBOOT: "is to reboot",
    REBOOT_STEP_RESTORE: "is back and gets its guests",
    REBOOT_STEP_DONE: "is done",
    REBOOT_STEP_SKIPPED: "is left out",
    REBOOT_STEP_FAILED: "failed",
}


@dataclass(frozen=True, slots=True)
class Work:
    """The emptying of a host, or the way back of its guests, as far as it is. error, remedy: of one that failed."""

    state: TaskState.ValueType
    error: str = ""
    remedy: str = ""

    @property
    def over(self) -> bool:
        """Whether it has ended, however it did."""
        return self.state in _ENDED


def in_words(one: NodeReboot) -> str:
    """Return how far a host is."""
    return f"{one.node} {_WORDS[one.step]}" + (f": {one.reason}" if one.reason else "")


def majority_without(names: Collection[str], ready: Collection[str], name: str) -> str:
    """Return why the managers would lose their majority were one to go down for a while; "" when they would not.

    names: the voters; ready: those that are reached and have nearly all of the log.
    """
    good = (set(names) - {name}) & set(ready)
    if len(good) > len(names) // 2:
        return ""
    return f"of {len(names)} managers {len(good)} would be left that can be counted on, which is no majority"


def skipped(node: Node | None, *, if_required: bool) -> str:
    """Return why a host is left out; "" when it is not."""
    wants_none = if_required and node is not None and not node.status.facts.reboot_required
    return "its packages want no reboot" if wants_none else ""


def require_spare(name: str, node: Node | None, notes: RollingReboot, no_majority: str, stored: Stored) -> None:
    """Raise GugusError when the cluster cannot do without a host now. no_majority: `majority_without`, "" for one without a manager."""
    if node is None or node.status.state != NODE_STATE_ONLINE:
        why = node.status.reason if node else "it was removed"
        raise precondition(
            "NODE_NOT_ONLINE",
            f"{name} is not online: {why}.",
            remedy="Bring it back, or leave it out, and ask again.",
        )
    if no_majority:
        remedy = "Bring the other managers back, or have three voters (`gugus cluster promote`)."
        raise _cannot_spare(name, no_majority, remedy)
    down = [other.node for other in notes.nodes if other.step in rolling.UNDER_WAY]
    plan = what_if.empty(stored, [*down, name])
    if plan.unplaced:
        each = "; ".join(f"{guest.guest}: {guest.reason}" for guest in plan.unplaced)
        raise _cannot_spare(name, f"the others have no place for {each}", "Make room, or stop what can wait.")
    if short := what_if.refused_without(stored, [*down, name]):
        raise _cannot_spare(
            name, f"spare room would be missing: {short}", "Make room, or ask for less of it (cluster settings)."
        )


def after_drain(
    name: str, drain: Work | None, left: Collection[str], *, cancelled: bool
) -> RebootStep.ValueType | None:
    """Return the step after a host's emptying, None while it goes on. left: guests that run there still. Raises GUESTS_LEFT."""
    if drain is not None and not drain.over:
        return None
    if cancelled and drain is not None and drain.state == TASK_STATE_CANCELLED:
        return REBOOT_STEP_UNSPECIFIED
    if drain is None or drain.state == TASK_STATE_CANCELLED or (drain.state == TASK_STATE_FAILED and left):
        why = drain.error if drain is not None and drain.error else "it was cancelled"
        raise precondition(
            "GUESTS_LEFT",
            f"{name} could not be emptied: {why}",
            remedy="Mend what is in the way and ask again; `gugus node maintenance off` ends its maintenance.",
        )
    return REBOOT_STEP_REBOOT


def awaited(one: NodeReboot, node: Node | None, *, follows: bool) -> str:
    """Return what is awaited of a host that is to reboot; "" once it is back and well. follows: its manager, if any, has caught up."""
    why = rolling.not_well(one, node) if node is not None else "it was removed"
    return why or ("" if follows else "its manager has not caught up yet")


def require_in_time(one: NodeReboot, why: str, waited_ms: float, back_within_ms: int) -> None:
    """Raise NOT_BACK when a host was waited for too long. back_within_ms: 0 for the default."""
    within_ms = back_within_ms or rolling.DEFAULT_BACK_WITHIN_MS
    if waited_ms > within_ms:
        raise deadline_exceeded(
            "NOT_BACK",
            f"{one.node} is not back {within_ms / 1000:g} s after it was to reboot: {why}.",
            remedy="Look at that host; it stays in maintenance. Ask again to go on.",
        )


def after_restore(name: str, restore: Work | None) -> RebootStep.ValueType | None:
    """Return the step after the way back of a host's guests, None while it goes on. Raises GUESTS_LEFT."""
    if restore is not None and not restore.over:
        return None
    if restore is not None and restore.state == TASK_STATE_FAILED:
        raise precondition("GUESTS_LEFT", f"{name} was rebooted, but {restore.error}", remedy=restore.remedy)
    return REBOOT_STEP_DONE


def outcome(notes: RollingReboot, *, cancelled: bool) -> TaskState.ValueType | None:
    """Return how a rolling reboot has ended; None when it has not."""
    if any(one.step in rolling.UNDER_WAY for one in notes.nodes):
        return None
    if cancelled:
        return TASK_STATE_CANCELLED
    if _failed(notes) is not None:
        return TASK_STATE_FAILED
    return TASK_STATE_SUCCEEDED if all(one.step in rolling.OVER for one in notes.nodes) else None


def told(notes: RollingReboot, state: TaskState.ValueType) -> str:
    """Return what came of a rolling reboot that ended so."""
    done = [one.node for one in notes.nodes if one.step == REBOOT_STEP_DONE]
    text = f"rebooted {', '.join(done) or 'no host'}"
    failed = _failed(notes)
    if state == TASK_STATE_FAILED and failed is not None:
        return f"stopped at {failed.node} ({text}): {failed.reason}"
    return f"cancelled; {text}" if state == TASK_STATE_CANCELLED else text


def _failed(notes: RollingReboot) -> NodeReboot | None:
    return next((one for one in notes.nodes if one.step == REBOOT_STEP_FAILED), None)


def _cannot_spare(node: str, why: str, remedy: str) -> GugusError:
    return precondition("CANNOT_SPARE", f"the cluster cannot do without {node} now: {why}.", remedy=remedy)
