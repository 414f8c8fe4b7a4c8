"""A device of the kernel: armed with a timeout that it really has, or not left running by anybody who knows no timeout."""

import array
import errno
import fcntl
from pathlib import Path

import pytest

from agent.watchdog.device import WDIOC_GETTIMEOUT, WDIOC_SETTIMEOUT, CharacterDevice


class Driver:
    """In the part of a driver of the kernel. least_s: it refuses shorter timeouts. own_s: what it has when opened."""

    def __init__(self, least_s: int, own_s: int = 60, *, tells: bool = True) -> None:
        self.least_s, self.timeout_s, self.tells = least_s, own_s, tells

    def ioctl(self, _fd: int, request: int, value: array.array, _mutate: bool = True) -> int:  # type: ignore[type-arg]
        if request == WDIOC_SETTIMEOUT:
            if value[0] < self.least_s:
                raise OSError(errno.EINVAL, "Invalid argument")
            self.timeout_s = value[0]
        elif request == WDIOC_GETTIMEOUT and not self.tells:
            raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")
        value[0] = self.timeout_s
        return 0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "watchdog").touch()
    return tmp_path / "watchdog"


def test_a_device_that_refuses_a_short_timeout_gets_its_shortest(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", Driver(least_s=6).ioctl)
    assert CharacterDevice(file).arm(4) == 6


def test_a_device_with_a_timeout_of_its_own_tells_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", Driver(least_s=30).ioctl)
    assert CharacterDevice(file).arm(4) == 60


def test_a_device_tells_whether_it_may_run(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some stop when a process that had armed them is killed; of those that cannot tell the worst is believed."""
    monkeypatch.setattr("agent.watchdog.device.SYSFS", file.parent)
    (file.parent / "0:0").mkdir()
    assert CharacterDevice(file).may_run
    (file.parent / "0:0/state").write_text("inactive\n")
    assert not CharacterDevice(file).may_run


def test_a_device_of_which_nobody_knows_when_it_fires_is_not_left_running(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", Driver(least_s=30, tells=False).ioctl)
    device = CharacterDevice(file)
    with pytest.raises(OSError, match="Inappropriate"):
        device.arm(4)
    assert file.read_bytes() == b"V"
