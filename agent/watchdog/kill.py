"""Killing the recorded processes of HA guests, and seeing them dead; without an event loop, for the watchdog."""

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress

from agent.compute.processes import ProcessRecord, is_alive
from agent.watchdog.core import KillOutcome

WAIT_S = 0.5
"""How long one attempt waits for them to be gone; the next tick tries again."""

POLL_S = 0.01


def kill(processes: Mapping[str, ProcessRecord]) -> KillOutcome:
    """SIGKILL processes and wait a moment until they are gone."""
    sent = [_kill(record) for record in processes.values()]
    end = time.monotonic() + WAIT_S
    while any(is_alive(record) for record in processes.values()):
        if time.monotonic() >= end:
            return KillOutcome.ALIVE
        time.sleep(POLL_S)
    return KillOutcome.PROVEN if all(sent) else KillOutcome.GONE


def _kill(record: ProcessRecord) -> bool:
    """Signal one process, beyond doubt the recorded one: the pidfd is opened before its start time is compared."""
    with suppress(OSError):
        handle = os.pidfd_open(record.pid)
        try:
            if is_alive(record):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                return True
        finally:
            os.close(handle)
    return False
