"""A QMP connection of our own to a QEMU, for what must not wait for libvirt. It blocks; see docs/interop/qmp-spec of QEMU."""

import json
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from agent.compute.kvm.qmp import failed
from agent.migration.departure import CONNECT_TIMEOUT_S, connect_unix

READ_BYTES = 65536


class Monitor:
    """One connection, which QEMU keeps for its only client. Raises OSError, also for an answer that is none.

    Used by one thread at a time, but for `close`, which another may call: then who waits in it gets an OSError.
    """

    def __init__(self, path: Path) -> None:
        self._socket = connect_unix(path)
        self._read = b""
        self._migration = ""
        try:
            self._heard(CONNECT_TIMEOUT_S)  # the greeting
            self.execute("qmp_capabilities")
            self._migration = self.execute("query-migrate").get("status", "")
        except BaseException:
            self.close()
            raise

    def execute(self, command: str) -> Any:
        """Give a command and return what QEMU answers. Raises GugusError QMP_FAILED with QEMU's words."""
        self._socket.sendall(json.dumps({"execute": command}).encode() + b"\n")
        while "event" in (answer := self._heard(CONNECT_TIMEOUT_S)):
            pass
        if "error" in answer:
            raise failed(command, str(answer["error"].get("desc", "")))
        return answer.get("return")

    def wait_migrated(self, timeout_s: float) -> bool:
        """Wait until all of a guest that comes in is in this QEMU; False when it is not in that time."""
        end = time.monotonic() + timeout_s
        while self._migration != "completed":
            try:
                self._heard(max(0.001, end - time.monotonic()))
            except TimeoutError:
                return False
        return True

    def close(self) -> None:
        """Close the connection."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _heard(self, timeout_s: float) -> dict[str, Any]:
        """Return what QEMU says next, an answer or an event."""
        self._socket.settimeout(timeout_s)
        while b"\n" not in self._read:
            piece = self._socket.recv(READ_BYTES)
            if not piece:
                raise ConnectionError("QEMU closed its monitor")
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        try:
            heard = json.loads(line)
        except ValueError as error:
            raise ConnectionError(f"QEMU's monitor said {line[:80]!r}") from error
        if not isinstance(heard, dict):
            raise ConnectionError(f"QEMU's monitor said {line[:80]!r}")
        if heard.get("event") == "MIGRATION":
            self._migration = heard["data"]["status"]
        return heard
