"""What happens to guests when their host boots: which are to run at all, and in which order they start.

A guest takes part from the boot of its host until it was started once; whoever starts it by hand takes it out of the order.
"""

from collections.abc import Callable, Iterable, Mapping

from gugus.cluster.v1.guest_pb2 import (
    BOOT_POLICY_ALWAYS,
    BOOT_POLICY_NEVER,
    GUEST_PHASE_CREATING,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STARTING,
    POWER_OFF,
    POWER_ON,
    POWER_PAUSED,
    Guest,
    Power,
)

LAST = 2**32
"""Place in the order of guests that have none: after all others."""

WANTED = frozenset({POWER_ON, POWER_PAUSED})
"""Powers of guests that are to be started."""


def booted(guest: Guest, boot_id: str) -> bool:
    """Return whether the guest's host booted since the guest was last looked at.

    One that was given to the host just now, or that nobody looked at yet, has nothing to do with the boot.
    """
    known = guest.status.boot_id
    return bool(known) and known != boot_id and guest.status.phase != GUEST_PHASE_CREATING


def power_after_boot(guest: Guest) -> Power.ValueType:
    """Return the power that the boot policy makes of what was asked for."""
    power, policy = guest.spec.power, guest.spec.boot.policy
    if policy == BOOT_POLICY_NEVER and power in WANTED:
        return POWER_OFF
    if policy == BOOT_POLICY_ALWAYS and power not in WANTED and not guest.spec.template:
        return POWER_ON
    return power


def note_boot(guest: Guest, boot_id: str, *, down: bool) -> None:
    """Write down that the guest's host booted, and what its boot policy makes of that. down: it does not run by now."""
    guest.status.boot_id = boot_id
    guest.spec.power = power_after_boot(guest)
    guest.status.booting = guest.spec.power in WANTED and not guest.spec.template and down
    guest.status.booting &= not guest.status.HasField("preempted")
    guest.status.failures = 0
    if guest.status.booting:  # it did not end by itself, its host did
        guest.status.phase, guest.status.reason = GUEST_PHASE_STARTING, f"{guest.status.node} booted"


def ran_for_s(guest: Guest, now_s: float) -> float:
    """Return for how long a running guest has been so by the state: it outlives the manager that saw it start.

    now_s: the wall clock, which may be another manager's than the one that wrote the start down. So this is for what may begin a little
    early or late, as the next guest of the order may.
    """
    return now_s - guest.status.started_at.ToNanoseconds() / 1e9 if guest.status.HasField("started_at") else 0.0


def waits_for(
    guest: Guest,
    others: Iterable[Guest],
    boot_id: str,
    running_for_s: Mapping[str, float],
    follows: Callable[[Guest], bool] = lambda _: False,
) -> str:
    """Return why a guest may not be started yet after the boot of its host, "" when it may.

    others: guests; those of other nodes do not matter. follows: whether another one starts after this guest wherever they are, which counts
    more than the order. running_for_s: for how many seconds guests have been running. A guest that failed
    holds up nobody, nor one that an operation works on, or that is being deleted.
    """
    if not guest.status.booting:
        return ""
    mine = _place(guest)
    for other in sorted(others, key=lambda o: (_place(o), o.meta.name)):
        if other.status.node != guest.status.node or _place(other) >= mine or not _counts(other, boot_id):
            continue
        if follows(other):
            continue
        name, order = other.meta.name, other.spec.boot.order
        if other.status.phase != GUEST_PHASE_RUNNING or booted(other, boot_id):
            return f"its host booted; first {name} is started (order {order})"
        delay_s = other.spec.boot.delay_s
        if running_for_s.get(name, 0.0) < delay_s:
            return f"its host booted; {name} (order {order}) is to have run for {delay_s} s"
    return ""


def _place(guest: Guest) -> int:
    return guest.spec.boot.order or LAST


def _counts(other: Guest, boot_id: str) -> bool:
    """Return whether others wait for this guest: it is on its way up, or runs."""
    status = other.status
    if other.meta.deleting or other.spec.template or status.HasField("lock") or status.HasField("preempted"):
        return False
    if booted(other, boot_id):  # its turn comes; what it was before the boot says nothing
        return power_after_boot(other) in WANTED
    if other.spec.power not in WANTED:
        return False
    return status.phase == GUEST_PHASE_RUNNING or (status.booting and not status.failures)
