"""A watchdog driver of the kernel, `gugus-watchdog` on it, and the test in the part of the agent."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from agent.compute.processes import ProcessRecord
from agent.fencing.record import STATUS_FILE_NAME, LeaseRecord
from agent.fencing.watchdog_client import WatchdogClient, WatchdogStatus
from agent.watchdog.device import MAGIC_CLOSE
from common.clock import boottime_ns
from common.leases import DEFAULT_NODE_LEASE_MS, HEARTBEAT_PERIOD_MS, NS_PER_MS

DEVICE = Path("/dev/watchdog")
SOFTDOG, HARDWARE = "softdog", "i6300esb"
"""The driver that needs no hardware, and the one for what QEMU emulates."""

POLL_S = 0.02
STEP_TIMEOUT_S = 10.0
"""The daemon starts within 3 s of the emulated machine, and acts within a tick."""

_STATE = Path("/sys/class/watchdog/watchdog0/state")
_FIRED = "softdog: Triggered"  # drivers/watchdog/softdog.c, with soft_noboot


@dataclass(frozen=True, slots=True)
class Guests:
    """HA guests of a lease record: with known processes, or of unknown outcome."""

    processes: Mapping[str, ProcessRecord] = field(default_factory=dict)
    starting: tuple[str, ...] = ()


class Driver:
    """The one watchdog driver that is loaded."""

    def __init__(self, name: str, *options: str) -> None:
        """Load it. Options are those of modprobe(8)."""
        self._name = name
        self._log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._log, 0, os.SEEK_END)
        self._fired = 0
        subprocess.run(["modprobe", name, *options], check=True, timeout=20)
        until(DEVICE.exists)

    @property
    def armed(self) -> bool:
        """Whether it counts down."""
        return _STATE.read_text().strip() == "active"

    @property
    def fired(self) -> bool:
        """Whether softdog, told not to reboot, would have."""
        with suppress(BlockingIOError):
            while True:
                self._fired += _FIRED in os.read(self._log, 8192).decode(errors="replace")
        return self._fired > 0

    def unload(self) -> None:
        """Disarm and unload it; one that cannot be disarmed is in use until it has fired."""
        with DEVICE.open("wb", buffering=0) as device:
            device.write(MAGIC_CLOSE)
        until(lambda: subprocess.run(["modprobe", "-r", self._name], timeout=20).returncode == 0)
        os.close(self._log)


class Daemon:
    """`gugus-watchdog`, started as its unit does."""

    def __init__(self, run_dir: Path) -> None:
        self.socket = run_dir / "watchdog.sock"
        self._status = run_dir / STATUS_FILE_NAME
        self._config = run_dir / "agent.yaml"
        settings = {"watchdog_device": str(DEVICE), "watchdog_socket": str(self.socket), "run_dir": str(run_dir)}
        self._config.write_text(yaml.safe_dump(settings))
        self.start()
        until(self._status.exists)

    def start(self) -> None:
        """Start it and return at once."""
        argv = [sys.executable, "-m", "agent.watchdog.main", "--config", str(self._config)]
        self.process = subprocess.Popen(argv)

    def kill(self) -> None:
        """SIGKILL it."""
        self.process.kill()
        self.process.wait(STEP_TIMEOUT_S)


class Agent:
    """What the agent does for the watchdog: tells it of each renewal, and of the HA guests that may be running."""

    def __init__(self, run_dir: Path, daemon: Daemon) -> None:
        self._client = WatchdogClient(run_dir, daemon.socket)

    @property
    def status(self) -> WatchdogStatus:
        """What the daemon says of the device."""
        return self._client.status()

    def renew(self, guests: Guests, lease_ms: int = DEFAULT_NODE_LEASE_MS) -> LeaseRecord:
        """Tell of a lease that was renewed just now; return what was told."""
        lease = LeaseRecord(boottime_ns() + lease_ms * NS_PER_MS, guests.processes, guests.starting)
        self._client.publish(lease)
        return lease

    def renew_for(self, seconds: float, guests: Guests, lease_ms: int = DEFAULT_NODE_LEASE_MS) -> LeaseRecord:
        """Renew as often as an agent does; return the last one."""
        end = time.monotonic() + seconds
        while True:
            lease = self.renew(guests, lease_ms)
            if time.monotonic() >= end:
                return lease
            time.sleep(HEARTBEAT_PERIOD_MS / 1000)


@contextmanager
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process in the part of a guest."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            yield process
        finally:
            process.kill()


def until(condition: Callable[[], bool], timeout_s: float = STEP_TIMEOUT_S) -> None:
    """Wait for it."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s:g} s"
        time.sleep(POLL_S)
