"""A guest that fails: what is decided, and the words in which its account says how it goes on. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_STARTING, Guest

from manager.ha import account
from manager.ha.guest_machine import Action, Event
from manager.scheduler import Decision, NodeView, Terms, place
from manager.scheduler.load import LoadOf, no_load
from manager.scheduler.views import guest_request


def elsewhere(guest: Guest, rooms: Sequence[NodeView], terms: Terms, load_of: LoadOf = no_load) -> Decision:
    """Return which node would be tried next: one that the guest has not failed on. rooms: nodes as if the guest were on none."""
    not_again = frozenset({*guest.status.ha.failed_nodes, guest.status.node})
    return place(replace(guest_request(guest, load_of=load_of), excluded=not_again), rooms, terms)


def fail(guest: Guest, event: Event, why: str, decision: Decision) -> Action | None:
    """Let a guest fail (FAIL), or its relocation (STAY). decision: what `elsewhere` said.

    Returns what is to be done; None when HA has nothing to do with it.
    """
    action = account.happen(guest, event, why, elsewhere=bool(decision.node))
    ha = guest.status.ha
    restarts, relocations = account.limits(guest)
    if action is Action.RELOCATE:
        ha.reason = f"{why} It is given to {decision.node}."
    elif action is Action.RESTART:
        ha.reason += f" Restart {ha.restarts} of {restarts} on {guest.status.node}."
    elif action is Action.GIVE_UP:
        tried = ", ".join(ha.failed_nodes) or "no node"
        most = f"at most {restarts} restarts on a node, {relocations} other nodes"
        name = guest.meta.name
        ha.reason += (
            f" Given up after {tried} ({most}). Mend what is wrong, then `gugus guest start {name}`; "
            f"`gugus guest stop {name}` takes it out of error without."
        )
    return action


def keep_waiting(guest: Guest, why: str) -> bool:
    """Let a guest wait whose start is refused because something else has its disk. why: what its node says. Returns whether that is news.

    Its former host may live though it was said to be off, or the disk is being copied: that says nothing of the guest or of its node, so
    nothing is counted.
    """
    before = (guest.status.phase, guest.status.reason)
    guest.status.phase = GUEST_PHASE_STARTING
    guest.status.reason = f"waits to be started on {guest.status.node}: {why}"
    return (guest.status.phase, guest.status.reason) != before
