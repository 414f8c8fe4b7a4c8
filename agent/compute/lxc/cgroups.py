"""A running container's cgroup, written: limits, and the freezer. Everything blocks for microseconds.

Invariant: only files of a folder that liblxc made for a container are touched, opened from that folder without following
links. What fails is told with its reason; the value before stays.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from agent.compute.lxc.limits import Device, Limit
from agent.compute.lxc.processes import PAYLOAD, UNIFIED, folders_by_controller
from common.logs import get_logger

FREEZE_TIMEOUT_S = 5.0
"""How long a container's processes may take to stand still; one that is in the middle of slow I/O ends that first."""

_POLL_S = 0.005
_ROOT = Path("/sys/fs/cgroup")

log = get_logger("lxc")


def unified() -> bool:
    """Whether this host has cgroup v2 only (Debian's default), not the v1 hierarchies."""
    return (_ROOT / "cgroup.controllers").exists()


def accounts_swap() -> bool:
    """Whether the kernel limits swap: a file that is missing would keep a container from starting."""
    if unified():
        return Path("/proc/swaps").exists() and any(_ROOT.glob("*/memory.swap.max"))
    return (_ROOT / "memory/memory.memsw.limit_in_bytes").exists()


class Cgroup:
    """The cgroup of one running container, found by its init. Raises OSError when there is none."""

    def __init__(self, init_pid: int, name: str) -> None:
        self._folders: Mapping[str, Path] = folders_by_controller(init_pid, name)
        if not self._folders:
            raise OSError(f"process {init_pid} is in no cgroup")

    def set(self, limits: Iterable[Limit]) -> dict[str, str]:
        """Write limits; return what could not be set, file -> reason. Values that are there already are not written.

        Some can only be raised, or lowered, after another (memory, and memory with swap): what fails is tried again last.
        """
        failed = [limit for limit in limits if self._try(limit)]
        return {limit.file: problem for limit in failed if (problem := self._try(limit))}

    def freeze(self) -> bool:
        """Hold all processes; return whether they stand still in time."""
        return self._hold("FROZEN", "1", lambda: self.frozen)

    def thaw(self) -> bool:
        """Let all processes go on; return whether they do in time."""
        return self._hold("THAWED", "0", lambda: not self.frozen)

    @property
    def frozen(self) -> bool:
        """Whether the processes are held. Raises OSError."""
        if (folder := self._folders.get("freezer")) is not None:
            return (folder / "freezer.state").read_text().strip() == "FROZEN"
        return "frozen 1" in (self._folders[UNIFIED] / "cgroup.events").read_text()

    def _hold(self, v1: str, v2: str, done: Callable[[], bool]) -> bool:
        if (folder := self._folders.get("freezer")) is not None:
            _write(folder, "freezer.state", v1)
        else:
            _write(self._folders[UNIFIED], "cgroup.freeze", v2)
        end = time.monotonic() + FREEZE_TIMEOUT_S
        while not done():
            if time.monotonic() > end:
                return False
            time.sleep(_POLL_S)
        return True

    def _try(self, limit: Limit) -> str:
        folder = self._folders.get(limit.controller) or self._folders.get(UNIFIED)
        if folder is None:
            return f"the kernel has no cgroup controller {limit.controller}"
        value = limit.value or self._of_parent(folder, limit.file)
        try:
            if not _holds(folder, limit.file, value):
                _write(folder, limit.file, value)
        except FileNotFoundError:
            return f"this host's kernel has no {limit.file} for containers"
        except OSError as error:
            return f"{limit.file}: {error.strerror}"
        return ""

    def _of_parent(self, folder: Path, file: str) -> str:
        """The value that means no limit of its own where the kernel has no word for that: cpuset.cpus of cgroup v1."""
        try:
            return "" if folder == self._folders.get(UNIFIED) else (folder.parent / file).read_text().strip()
        except OSError:
            return ""


def device_of(path: Path) -> Device | None:
    """Return the disk of the host that a file lies on, as I/O limits name it; None when it lies on none (a network).

    Limits are set on whole disks: a partition counts as its disk. Raises OSError.
    """
    number = os.stat(path).st_dev
    if os.major(number) == 0 and (source := _source_of(number)) is not None:  # btrfs: each subvolume has its own number
        number = os.stat(source).st_rdev
    block = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if os.major(number) == 0 or not block.exists():
        return None
    if (block / "partition").exists():
        major, minor = (block.resolve().parent / "dev").read_text().split(":")
        return int(major), int(minor)
    return os.major(number), os.minor(number)


def _source_of(number: int) -> str | None:
    wanted = f"{os.major(number)}:{os.minor(number)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        source = tail.split()[1]
        if head.split()[2] == wanted and source.startswith("/dev/") and os.path.exists(source):
            return source
    return None


def _holds(folder: Path, file: str, value: str) -> bool:
    if " " in value:  # values by device, and quotas: cheap to write again, hard to compare
        return False
    return (folder / file).read_text().strip() == value


def _write(folder: Path, file: str, value: str) -> None:
    if PAYLOAD not in str(folder):
        raise OSError(f"{folder} is no container's cgroup")
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        handle = os.open(file, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=opened)
        try:
            os.write(handle, (value or "\n").encode())
        finally:
            os.close(handle)
    finally:
        os.close(opened)
