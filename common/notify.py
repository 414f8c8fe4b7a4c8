"""Talks to systemd as sd_notify(3) does: ready, stopping, status, and the watchdog that proves the event loop turns."""

import asyncio
import os
import socket
from contextlib import suppress

PINGS_PER_TIMEOUT = 2
"""Pings in one watchdog timeout: half of it between two, as sd_watchdog_enabled(3) recommends."""


def ready(status_text: str = "") -> None:
    """Say that start-up is over."""
    _send("READY=1" + (f"\nSTATUS={_line(status_text)}" if status_text else ""))


def stopping() -> None:
    """Say that the daemon is about to end."""
    _send("STOPPING=1")


def extend_timeout(seconds: float) -> None:
    """Ask for so much time from now on to stop (or start): the unit's own limit counts no more."""
    _send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")


def status(text: str) -> None:
    """Set the one line that `systemctl status` shows."""
    _send(f"STATUS={_line(text)}")


def watchdog() -> None:
    """Prove once that the daemon lives."""
    _send("WATCHDOG=1")


async def watchdog_task() -> None:
    """Prove from the event loop, until cancelled, that it turns. Returns at once when systemd asked for no proof."""
    period_s = watchdog_period_s()
    while period_s is not None:
        watchdog()
        await asyncio.sleep(period_s)


def watchdog_period_s() -> float | None:
    """Return the seconds between two proofs, or None when systemd expects none from this process."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6 / PINGS_PER_TIMEOUT


def _line(text: str) -> str:
    return " ".join(text.split())


def _send(message: str) -> None:
    """Send one datagram. Best effort, for a daemon must not die of a lost word to its supervisor."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        sock.connect(address)
        sock.send(message.encode())
