"""`gugus-watchdog`: hears the agent's lease record on a socket, feeds the device, kills at lease end.

It imports nothing big, locks its memory and does everything in one thread, for it must run when the host is in trouble;
another one only writes log lines, which may hang.
"""

import argparse
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from agent.fencing import record
from agent.fencing.sidelog import SideLog
from agent.watchdog import core
from agent.watchdog.device import Device, open_device
from agent.watchdog.kill import kill
from agent.watchdog.settings import Settings, load
from common import logs, notify
from common.leases import NS_PER_MS

DEFAULT_CONFIG = Path("/etc/gugus/agent.yaml")
MCL_CURRENT, MCL_FUTURE = 1, 2  # mlockall(2)
SOCKET_MODE_MASK = 0o177

THREAD_STACK_BYTES = 512 * 1024
"""Stack of the thread that writes the log: it is locked in memory as a whole."""

LAST_TIMEOUTS = 2
"""Times that the device is given another timeout at the end: a longer one, and the usual one if it made too much of it."""

LAST_WORDS_S = 0.5
"""How long the end of this process waits for its log to be written."""

_log = SideLog("watchdog")


class Watchdog:
    """The process: socket, device and clock around the core."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._device, why = open_device(settings.watchdog_device)
        self._armed = self._device is not None and self._device.may_run and self._left_armed()
        self._core = core.WatchdogCore(
            device=self._device is not None,
            can_disarm=self._device is None or self._device.can_disarm,
            inherited=self._armed,
        )
        self._useless: Device | None = None
        self._failed = ""
        self._why = self._device.description if self._device else why
        self._said: object = None
        self._socket = _listen(settings.watchdog_socket)
        self._stopping = False
        self._tell_status()

    def run(self) -> None:
        """Guard until told to stop."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        self._read_file()
        self._step()
        notify.ready(f"guards with {self._why}" if self._device else f"no device: {self._why}")
        _log.info("watchdog ready", device=self._why, guarding=self._core.guarding)
        while not self._stopping:
            select.select([self._socket], [], [], core.TICK_S)
            self._hear()
            self._step()
            notify.watchdog()
        self._end()

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _step(self) -> None:
        """Do what the core says now. Before a kill the record is read again: it may have been renewed unheard.

        The kill comes before the device, for guests that are dead need no reset.
        """
        actions = self._core.tick(_now_ns())
        if actions.kill:
            self._read_file()
            actions = self._core.tick(_now_ns())
        if actions.kill:
            self._kill(actions.kill)
            actions = self._core.tick(_now_ns())
        if self._device is not None:
            self._apply(self._device, actions)
        elif self._useless is not None:
            with contextlib.suppress(OSError):
                self._useless.feed()

    def _kill(self, lease: record.LeaseRecord) -> None:
        dead = kill(lease)
        self._core.killed(lease, dead=dead)
        if (lease, dead) != self._said:
            _log.warning("the lease is over: killed HA guests", guests=sorted(lease.processes), dead=dead)
        self._said = (lease, dead)

    def _apply(self, device: Device, actions: core.Actions) -> None:
        try:
            if actions.arm_s and not self._arm(device, actions.arm_s):
                return
            if actions.feed:
                device.feed()
                self._core.fed(_now_ns())
            if actions.disarm:
                self._note_armed(False)  # before: a process after this one must not take a stopped device for armed
                device.disarm()
                self._core.disarmed()
                _log.info("disarmed: no HA guest runs")
            if self._failed:
                self._failed = ""
                self._tell_status()
        except OSError as error:
            self._fail(error)

    def _leave(self, device: Device) -> None:
        """Leave the device to the process that comes next: stopped, or with time for it to come."""
        for _ in range(LAST_TIMEOUTS):
            actions = self._core.stop(_now_ns())
            if not actions.arm_s or actions.disarm:
                break
            with contextlib.suppress(OSError):  # it keeps the timeout that it has
                self._core.armed(actions.arm_s, device.arm(actions.arm_s), _now_ns())
        self._apply(device, self._core.stop(_now_ns()))

    def _arm(self, device: Device, asked_s: int) -> bool:
        """Arm the device, or give it up when it cannot fire soon enough; return whether it is armed."""
        try:
            timeout_s = device.arm(asked_s)
        except OSError:
            self._core.armed(asked_s, 0, _now_ns())  # the next tick tries again
            raise
        if timeout_s > core.MAX_TIMEOUT_S:
            self._give_up(device, f"{device.description} cannot fire within {core.MAX_TIMEOUT_S} s, only {timeout_s} s")
            return False
        self._core.armed(asked_s, timeout_s, _now_ns())
        self._note_armed(True)
        _log.info("armed", device=device.description, timeout_s=timeout_s, guarding=self._core.guarding)
        if late_ms := self._core.late_ns // NS_PER_MS:
            _log.error("the device cannot fire in time for this lease", late_ms=late_ms, timeout_s=timeout_s)
        return True

    def _give_up(self, device: Device, why: str) -> None:
        """Do without a device that is of no use. One that cannot be stopped is fed for ever."""
        if device.can_disarm:
            device.disarm()
        else:
            self._useless = device
        lease, self._core = self._core.lease, core.WatchdogCore()
        self._core.heard(lease)
        self._device, self._why, self._armed = None, why, False
        self._tell_status()
        _log.error("no watchdog", reason=why)

    def _fail(self, error: OSError) -> None:
        """Stay as it is: an armed device that cannot be fed fires, which is what is right."""
        if self._failed != str(error):
            self._tell_status(str(error))
            _log.error("watchdog device failed", device=self._why, error=str(error))
        self._failed = str(error)

    def _hear(self) -> None:
        """Take in every waiting datagram; the last one holds. An empty one only asks whether this process runs."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._take(self._socket.recv(record.MAX_BYTES))

    def _read_file(self) -> None:
        """Take in what the agent wrote. A file that is damaged or of another boot tells nothing."""
        try:
            lease = record.read(self._settings.run_dir)
        except (OSError, ValueError) as error:
            _log.error("the lease record cannot be read; the last lease holds", error=str(error))
            return
        if lease is not None:
            self._core.heard(lease)

    def _take(self, data: bytes) -> None:
        if not data:
            return
        try:
            self._core.heard(record.LeaseRecord.from_bytes(data))
        except ValueError as error:
            _log.error("not understood; the last lease holds", error=str(error))

    def _note_armed(self, armed: bool) -> None:
        """Leave word for the process after this one, should this one be killed."""
        if armed != self._armed:
            self._armed = armed
            self._tell_status()

    def _left_armed(self) -> bool:
        """Whether a process before this one, in this boot, left the device armed."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            status = json.loads((self._settings.run_dir / record.STATUS_FILE_NAME).read_bytes())
            return status["armed"] is True and status["boot"] == record.kernel_boot_id()
        return False

    def _tell_status(self, failure: str = "") -> None:
        status = {
            "device": self._device is not None and not failure,
            "reason": f"{self._why}: {failure}" if failure else self._why,
            "armed": self._armed,
            "boot": record.kernel_boot_id(),
        }
        with contextlib.suppress(OSError):
            record.replace_file(self._settings.run_dir / record.STATUS_FILE_NAME, json.dumps(status).encode())

    def _end(self) -> None:
        notify.stopping()
        if self._device is not None:
            self._leave(self._device)
            if self._core.guarding:
                _log.warning("stops while HA guests may run: the device stays armed and fires unless it is fed")
        self._settings.watchdog_socket.unlink(missing_ok=True)
        _log.drain(LAST_WORDS_S)


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="gugus-watchdog", description="Guards the host's node lease.")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="the agent's configuration file")
    arguments = parser.parse_args(argv)
    logs.setup("gugus-watchdog")
    threading.stack_size(THREAD_STACK_BYTES)
    try:
        settings = load(arguments.config)
        settings.run_dir.mkdir(parents=True, exist_ok=True)
        _lock_memory()
        Watchdog(settings).run()
    except (OSError, ValueError) as error:
        print(f"gugus-watchdog: {error}", file=sys.stderr)
        sys.exit(1)


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _listen(path: Path) -> socket.socket:
    """Return a datagram socket at `path`, for this user alone; one that an earlier process left is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    before = os.umask(SOCKET_MODE_MASK)
    try:
        listening.bind(str(path))
    finally:
        os.umask(before)
    listening.setblocking(False)
    return listening


def _lock_memory() -> None:
    """Keep this process out of swap. Not allowed for ordinary users: then it works without."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(MCL_CURRENT | MCL_FUTURE) != 0:
        _log.info("memory not locked", reason=os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    main()
