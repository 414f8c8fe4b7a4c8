"""A QMP connection of our own to a QEMU, for what must not wait for libvirt. It blocks; see docs/interop/qmp-spec of QEMU."""

import json
from pathlib import Path
from typing import Any

from agent.compute.kvm.qmp import failed
from agent.migration.departure import connect_unix


class Monitor:
    """One connection, which QEMU keeps for its only client. Raises OSError, also for an answer that is none."""

    def __init__(self, path: Path) -> None:
        self._socket = connect_unix(path)
        self._lines = self._socket.makefile("rb")
        try:
            self._heard()  # the greeting
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def execute(self, command: str) -> Any:
        """Give a command and return what QEMU answers. Raises GugusError QMP_FAILED with QEMU's words."""
        self._socket.sendall(json.dumps({"execute": command}).encode() + b"\n")
        while "event" in (answer := self._heard()):
            pass
        if "error" in answer:
            raise failed(command, str(answer["error"].get("desc", "")))
        return answer.get("return")

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()
        self._socket.close()

    def _heard(self) -> dict[str, Any]:
        line = self._lines.readline()
        try:
            heard = json.loads(line)
        except ValueError as error:
            raise ConnectionError(f"QEMU's monitor said {line[:80]!r}") from error
        if not isinstance(heard, dict):
            raise ConnectionError(f"QEMU's monitor said {line[:80]!r}")
        return heard
