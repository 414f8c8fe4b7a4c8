"""What nodes say of guests: by their beats, or when they are asked because the last beat may be older than what is stored."""

from dataclasses import dataclass

from gugus.agent.v1 import guest_pb2 as agent_pb2
from gugus.agent.v1.guest_pb2 import (
    GUEST_END_UNSPECIFIED,
    GUEST_STATE_STOPPED,
    GUEST_STATE_UNSPECIFIED,
    GuestEnd,
    GuestState,
)
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_HIBERNATED,
    GUEST_PHASE_PAUSED,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STOPPED,
    Guest,
)
from gugus.cluster.v1.heartbeat_pb2 import GuestReport
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node

from common.errors import GugusError
from manager.controllers.context import Context
from manager.controllers.guest_step import ALIVE_PHASES, ALIVE_STATES
from manager.ha.node_machine import another_incarnation

SETTLED_PHASES = frozenset({GUEST_PHASE_RUNNING, GUEST_PHASE_STOPPED, GUEST_PHASE_PAUSED, GUEST_PHASE_HIBERNATED})


@dataclass(frozen=True, slots=True)
class Seen:
    """What a node's agent says of a guest: its state, and how its last run ended."""

    state: GuestState.ValueType
    ended: GuestEnd.ValueType = GUEST_END_UNSPECIFIED


class GuestNews:
    """What is known of guests beyond the state."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def heard_as(self, node: Node) -> bool:
        """Return whether this manager has heard the node, and as the incarnation that holds the lease.

        What another one says of guests is no news of theirs: the node is about to be fenced, and they to be recovered.
        """
        beat = self._context.beats.of(node.meta.name).beat
        return beat is not None and not another_incarnation(
            node.status.boot_id,
            node.status.lapse_number,
            beat.boot_id,
            beat.lapse.number if beat.HasField("lapse") else None,
        )

    def report(self, guest: Guest, node: Node | None) -> GuestReport | None:
        """Return what the newest beat of a node says of a guest, None when it says nothing."""
        return self._context.beats.of(node.meta.name).guests.get(guest.meta.name) if node else None

    async def observe(self, guest: Guest, node: Node | None) -> Seen:
        """Return what the node's agent says of the guest; asks it when the last beat does not agree with the stored phase."""
        if node is None or node.status.state != NODE_STATE_ONLINE:
            return Seen(GUEST_STATE_UNSPECIFIED)
        report = self.report(guest, node)
        if report is not None and is_of(report.uid, report.generation, guest) and agrees(guest, report):
            return Seen(report.state, report.ended)
        try:
            answer = await self.ask(guest, node)
        except GugusError as error:
            if error.reason == "GUEST_NOT_FOUND":
                return Seen(GUEST_STATE_STOPPED)
            raise
        # A copy of an older generation, or of a deleted guest of this name, is not this assignment's: the start, which is idempotent,
        # brings the one to it and takes the other away.
        if not is_of(answer.spec.uid, answer.generation, guest):
            return Seen(GUEST_STATE_STOPPED)
        return Seen(answer.state, answer.ended)

    async def ask(self, guest: Guest, node: Node) -> agent_pb2.Guest:
        """Return what the node's agent says of a guest right now. Raises GUEST_NOT_FOUND."""
        request = agent_pb2.InspectGuestRequest(name=guest.meta.name)
        return await self._context.tell(node, lambda agent, _: agent.guests.InspectGuest(request))

    def unconfirmed(self, guest: Guest, node: Node | None) -> bool:
        """Return whether no beat has yet told what is stored: a guest that ends before one did is told of by none."""
        if node is None or node.status.state != NODE_STATE_ONLINE or guest.status.phase not in SETTLED_PHASES:
            return False
        report = self.report(guest, node)
        if report is None:  # a node need not know a guest that never ran there
            return guest.status.phase in ALIVE_PHASES
        return not agrees(guest, report)

    def held(self, guest: Guest, node: Node | None) -> bool | None:
        """Return whether the newest beat of the node says that it holds the guest under HA; None when it does not say."""
        report = self.report(guest, node)
        return report.ha if report is not None and is_of(report.uid, report.generation, guest) else None


def is_of(uid: str, generation: int, guest: Guest) -> bool:
    """Return whether a node speaks of this guest and its present assignment. A node may know no UUID: of a copy without a definition."""
    return uid in ("", guest.meta.uid) and generation == guest.meta.generation


def agrees(guest: Guest, report: GuestReport) -> bool:
    """Return whether a beat says what the state says already; a beat may be older than the last command."""
    if guest.status.phase not in SETTLED_PHASES:
        return False
    alive = report.state in ALIVE_STATES
    if alive != (guest.status.phase in ALIVE_PHASES):
        return False
    return not alive or report.state == guest.status.observed
