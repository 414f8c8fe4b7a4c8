"""The agent's end of the watchdog: each change of the lease record goes to `gugus-watchdog` as one datagram."""

import json
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.fencing import record


@dataclass(frozen=True, slots=True)
class WatchdogStatus:
    """Whether a device guards this host, and which, or why none does."""

    guarded: bool
    reason: str


class WatchdogClient:
    """Sends without ever blocking: the record's file says the same to a watchdog that starts later."""

    def __init__(self, run_dir: Path, address: Path) -> None:
        self._run_dir = run_dir
        self._address = str(address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def publish(self, lease: record.LeaseRecord) -> None:
        """Write the record, then tell the watchdog. Raises OSError when it cannot be written."""
        record.write(self._run_dir, lease)
        with suppress(OSError):  # not running, or busy: it reads the file
            self._socket.sendto(lease.to_bytes(), self._address)

    def status(self) -> WatchdogStatus:
        """Ask whether the watchdog runs and what it guards with."""
        try:
            self._socket.sendto(b"", self._address)
        except BlockingIOError:
            pass
        except OSError as error:
            return WatchdogStatus(False, f"gugus-watchdog does not run ({error.strerror}): systemctl start it")
        with suppress(OSError, ValueError, KeyError, TypeError):
            status = json.loads((self._run_dir / record.STATUS_FILE_NAME).read_bytes())
            return WatchdogStatus(bool(status["device"]), str(status["reason"]))
        return WatchdogStatus(False, "gugus-watchdog has not yet told which device it has")

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
