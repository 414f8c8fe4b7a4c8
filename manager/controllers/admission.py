"""Admission control: whether what is asked for leaves enough room to restart guests after a loss (settings `spare`).

The room of every guest counts, running or not, and a place is kept for each one under HA. So a request is looked at when it makes a guest,
makes one larger, or puts one under HA; a start takes no room that was not the guest's already. What gives guests that were on a place
again (recovery, the way back of those that gave way) is never held up: that is what the room is kept for.
"""

from collections.abc import Collection

from gugus.cluster.v1.event_pb2 import SEVERITY_WARNING
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.task_pb2 import Task

from common.errors import GugusError, precondition
from manager.controllers import spare
from manager.controllers.context import Context
from manager.controllers.placing import decide, stored
from manager.events import record
from manager.scheduler import what_if
from manager.scheduler.spare_room import asked_in_words, in_words
from manager.scheduler.views import guest_request
from manager.store import Txn
from manager.tasks import remark
from planner.fleet import needs_of
from planner.settings import SparePolicy
from planner.types import GuestRequest

MOST_WAITING = 100
"""Guests without a node yet whose room counts as taken: those that were admitted a moment ago."""

TOO_LITTLE = "SPARE_ROOM_SHORT"
"""Reason of events that tell of a request that left too little room."""


def admit(context: Context, before: Guest | None, after: Guest, node: str) -> str:
    """Return what a guest, new or changed, leaves too little room for on its node, "" when nothing; raise SPARE_ROOM if that is refused.

    To be called under `Context.admission`. before: the guest as it is; None for a new one. node: that it is on, or would be given; ""
    for none.
    """
    if before is not None and not _takes_more(guest_request(before), guest_request(after)):
        return ""
    text = spare.leaves_short(context.store, context.spare, after, node, waiting=MOST_WAITING)
    if text and refuses(context):
        raise _refused(
            context, f"guest/{after.meta.name}", text, "make it smaller, or take less important guests out of HA"
        )
    return text


def admit_new(context: Context, guest: Guest) -> str:
    """As `admit`, of a new guest that the scheduler would give a node."""
    return admit(context, None, guest, decide(context, guest).node)


def leave(context: Context, node: str, *, force: bool) -> str:
    """Return what a node's leaving leaves too little room for, "" when nothing; raise SPARE_ROOM if that is refused and not forced."""
    text = short_without(context, [node])
    if text and not force and refuses(context):
        raise _refused(
            context, f"node/{node}", text, "drain it with --force, or put it into maintenance if it comes back"
        )
    return text


def short_without(context: Context, nodes: Collection[str]) -> str:
    """Return what would not be safe any more while nodes are emptied, in words; "" when nothing, or no spare room is asked for."""
    room = spare.look(context.store, context.spare)
    if room is None:
        return ""
    return in_words(what_if.short_without(stored(context), nodes, room.short()))


def refuses(context: Context) -> bool:
    """Return whether what leaves too little room is refused, and not only told."""
    return spare.settings_of(context.store).spare.policy is SparePolicy.REFUSE


def _takes_more(before: GuestRequest, after: GuestRequest) -> bool:
    """Return whether a changed guest takes more room, or a place is to be kept for it that was not before."""
    larger = any(new > old for old, new in zip(needs_of(before), needs_of(after), strict=True))
    return larger or (after.restarted and not before.restarted)


def tell(txn: Txn, about: str, text: str, task: Task | None = None) -> None:
    """Have an event, and the log of a task, say what a request left too little room for; nothing when there is nothing."""
    if not text:
        return
    sentence = f"too little room is left to survive every loss that the settings ask for: {text}"
    record(txn, about, TOO_LITTLE, f"{about.partition('/')[2]}: {sentence}.", SEVERITY_WARNING)
    if task is not None:
        remark(task, f"warning: {sentence}")


def _refused(context: Context, subject: str, text: str, way_out: str) -> GugusError:
    kind, _, name = subject.partition("/")
    asked = asked_in_words(spare.settings_of(context.store))
    return precondition(
        "SPARE_ROOM",
        f"{kind} {name}: too little room would be left to survive the loss of {asked}: {text}.",
        remedy=f"Add a node, {way_out}; or have it done all the same: `gugus cluster set spare.policy=warn`.",
        subject=subject,
    )
