"""Killing the recorded processes of HA guests, and seeing them dead; without an event loop, for the watchdog.

Invariant: what is recorded, and gone, is dead for good, whoever killed it. A QEMU does not come back by itself; a
container's monitor, which may reboot it, is recorded too, and is killed only when none of its inits is left.
"""

import time

from agent.compute.lxc.processes import end
from agent.compute.processes import ProcessRecord, kill_each
from agent.fencing.record import LeaseRecord

WAIT_S = 0.5
"""How long one attempt waits for them to be gone; the next tick tries again."""

POLL_S = 0.01


def kill(lease: LeaseRecord) -> bool:
    """SIGKILL the processes of a record and wait a moment; return whether all of them are dead for certain."""
    until = time.monotonic() + WAIT_S
    while _are_left(lease):
        if time.monotonic() >= until:
            return False
        time.sleep(POLL_S)
    return True


def _are_left(lease: LeaseRecord) -> bool:
    monitors = [_is_left(monitor) for monitor in lease.monitors.values()]
    return bool(kill_each(lease.processes)) or any(monitors)


def _is_left(monitor: ProcessRecord) -> bool:
    try:
        return end(monitor)
    except OSError:  # it cannot be told
        return True
