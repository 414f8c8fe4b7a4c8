"""A guest that comes in, as its QEMU and the connection of the two libvirts tell of it: before libvirt has told of it itself."""

import socket
import threading
import time
from pathlib import Path

from agent.compute.kvm.control import Control
from agent.compute.kvm.monitor import Monitor
from agent.migration.departure import connect_unix
from common.errors import GugusError
from common.logs import get_logger

LIBVIRT_SOCKETS = (Path("/run/libvirt/libvirt-sock"), Path("/run/libvirt/virtqemud-sock"))
"""The local socket of a libvirtd, or of a virtqemud where there is none."""

REACH_S = 0.02
"""So often a QEMU that does not listen yet is tried."""

LAG_S = 0.02
"""The source's libvirt says that it is through within milliseconds of the memory's end; after that libvirt itself is asked."""

POLL_S = 0.25
"""So often libvirt is asked when QEMU cannot be."""

_log = get_logger("kvm.incoming")


class Incoming:
    """path: where its QEMU will listen to a monitor of ours. Methods block; `wait` is for one thread, `close` for any."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._monitor: Monitor | None = None
        self._over = False
        self._through = threading.Event()

    def connect_libvirt(self) -> socket.socket:
        """Connect the source's libvirt to ours. Raises OSError."""
        path = next((path for path in LIBVIRT_SOCKETS if path.exists()), LIBVIRT_SOCKETS[0])
        return Control(connect_unix(path), self._through)

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is complete and the source's libvirt has let go of it; False: not in that time, or it cannot be told here."""
        end = time.monotonic() + timeout_s
        while not self._over and (left := end - time.monotonic()) > 0:
            monitor = self._monitor
            try:
                if monitor is None:
                    self._reach()
                elif monitor.wait_migrated(left):
                    return self._through.wait(LAG_S)
            except OSError as error:
                if not self._over:
                    _log.warning("the monitor of a guest that comes in ended", path=str(self._path), reason=str(error))
                self.close()
        time.sleep(max(0.0, min(POLL_S, end - time.monotonic())))
        return False

    def go_on(self) -> None:
        """Let the CPUs run. What goes wrong here is put right by libvirt, a moment later."""
        if self._monitor is None:
            return
        try:
            self._monitor.execute("cont")
        except (OSError, GugusError) as error:
            _log.warning("QEMU did not go on at our word", reason=str(error))

    def close(self) -> None:
        """Leave the monitor."""
        self._over = True
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        self._path.unlink(missing_ok=True)

    def _reach(self) -> None:
        """Have the connection to QEMU; nobody else is to have one then."""
        try:
            self._monitor = Monitor(self._path)
            self._path.unlink(missing_ok=True)
        except (OSError, GugusError):
            time.sleep(REACH_S)
