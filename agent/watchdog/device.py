"""The watchdog device: a character device of Linux, or the lab's pipe that stands for one, behind one small interface.

Source of the ioctls and the magic close: Documentation/watchdog/watchdog-api.rst and linux/watchdog.h.
"""

import array
import errno
import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from agent.watchdog.core import MAX_TIMEOUT_S

WDIOC_KEEPALIVE = 0x80045705
WDIOC_SETTIMEOUT = 0xC0045706
WDIOC_GETTIMEOUT = 0x80045707
MAGIC_CLOSE = b"V"
SYSFS = Path("/sys/dev/char")
OLD_NUMBER = (10, 130)
"""/dev/watchdog itself: a second way to the first device, under which sysfs tells nothing of it (watchdog_dev.c)."""

FIRST_DEVICE = Path("/sys/class/watchdog/watchdog0")


class Device(Protocol):
    """A device that resets the host when it is armed and not fed. Methods raise OSError."""

    @property
    def description(self) -> str:
        """What it is, in words."""

    @property
    def can_disarm(self) -> bool:
        """Whether `disarm` stops it."""

    @property
    def may_run(self) -> bool:
        """Whether it may be counting down. Some stop when a process that had armed it is killed."""

    def arm(self, timeout_s: int) -> int:
        """Start it; return the timeout that it really has, in seconds."""

    def feed(self) -> None:
        """Start its countdown again."""

    def disarm(self) -> None:
        """Stop it."""

    def leave(self) -> None:
        """Close it without stopping it."""


class CharacterDevice:
    """A device of the kernel. It is opened when armed, for opening starts it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        major, minor = os.major(path.stat().st_rdev), os.minor(path.stat().st_rdev)
        self._sysfs = FIRST_DEVICE if (major, minor) == OLD_NUMBER else SYSFS / f"{major}:{minor}"
        self.can_disarm = self._attribute("nowayout") != "1"
        self.description = f"{path} ({self._attribute('identity') or 'unknown kind'})"

    @property
    def may_run(self) -> bool:
        """See Device."""
        return self._attribute("state") != "inactive"

    def arm(self, timeout_s: int) -> int:
        """Open it and set its timeout; drivers round to what their hardware can do, and refuse what is too short.

        Opened, it runs: with the least timeout that it takes, or else with the one that it has of its own.
        """
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        for seconds in range(timeout_s, MAX_TIMEOUT_S + 1):
            try:
                return self._ask(WDIOC_SETTIMEOUT, seconds)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    break
        try:
            return self._ask(WDIOC_GETTIMEOUT)
        except OSError:
            self.disarm()  # nobody knows when it fires
            raise

    def feed(self) -> None:
        """See Device."""
        fcntl.ioctl(self._fd, WDIOC_KEEPALIVE, 0)

    def disarm(self) -> None:
        """Close it with the magic character."""
        os.write(self._fd, MAGIC_CLOSE)
        self.leave()

    def leave(self) -> None:
        """See Device."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _ask(self, request: int, seconds: int = 0) -> int:
        value = array.array("i", [seconds])
        fcntl.ioctl(self._fd, request, value, True)
        return value[0]

    def _attribute(self, name: str) -> str:
        with suppress(OSError):
            return (self._sysfs / name).read_text().strip()
        return ""


class PipeDevice:
    """The lab's stand-in for hardware: text lines into a named pipe whose other end counts down."""

    can_disarm = True
    may_run = True

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # ENXIO: nobody counts at the other end
        self.description = f"{path} (the lab's watchdog)"

    def arm(self, timeout_s: int) -> int:
        """See Device."""
        self._write(f"timeout {timeout_s}\n".encode())
        return timeout_s

    def feed(self) -> None:
        """See Device."""
        self._write(b"feed\n")

    def disarm(self) -> None:
        """See Device."""
        self._write(MAGIC_CLOSE + b"\n")

    def leave(self) -> None:
        """See Device."""
        os.close(self._fd)

    def _write(self, line: bytes) -> None:
        os.write(self._fd, line)


def open_device(path: str) -> tuple[Device | None, str]:
    """Return the device at `path`, or None and why there is none. Arms nothing."""
    if not path:
        return None, "none is configured (watchdog_device)"
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISFIFO(mode):
            return PipeDevice(Path(path)), ""
        if stat.S_ISCHR(mode):
            return CharacterDevice(Path(path)), ""
    except FileNotFoundError:
        return None, f"{path} does not exist: load the driver of the host's watchdog, or softdog"
    except OSError as error:
        return None, f"{path} cannot be used: {error.strerror}"
    return None, f"{path} is not a watchdog device"
