"""Processes of guests: identified beyond doubt, killed for certain.

A pid alone may have been given to another process since. A process is identified by its pid and its start time, and is
signalled through a pidfd that was opened before the start time was compared: the pid cannot change hands in between.

Invariant: a process counts as gone only when the kernel says so (ENOENT, ESRCH) and none of its threads is left: one
that hangs in the kernel on a dead disk still has I/O in flight after its first thread has ended. Whatever else goes
wrong, such as a lack of file descriptors, is an error and proves nothing.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.files import read_json, remove_durably, write_json

PROC = Path("/proc")
_EXITING = 0x4
"""PF_EXITING of linux/sched.h."""

POLL_S = 0.01
"""How often a killed process is looked at until it is gone, in seconds."""


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One process for ever: `start_ticks` is field 22 of /proc/PID/stat, in clock ticks since boot."""

    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class Stat:
    """What is used of /proc/PID/stat (proc(5)): name, state, parent's pid, flags, number of threads, start in clock ticks.

    Unlike a command line it is read without waiting for the memory of the process, which may hang on a disk.
    """

    name: bytes
    state: str
    parent: int
    flags: int
    threads: int
    start_ticks: int

    @property
    def ended(self) -> bool:
        """Whether nothing of the process runs any more: it waits for its parent (a zombie), and has no other thread."""
        return self.state in "ZX" and self.threads <= 1

    @property
    def still(self) -> bool:
        """Whether it executes nothing of its own: it is stopped, or it ends and never returns to user space (PF_EXITING)."""
        return self.state in "TtZX" or bool(self.flags & _EXITING)


def stat_of(pid: int) -> Stat | None:
    """Look at the process that has `pid` now; None when there is none. Raises OSError when that cannot be told."""
    return _stat(PROC / str(pid))


def record_of(pid: int) -> ProcessRecord | None:
    """Identify the process that has `pid` now; None when there is none. Raises OSError when that cannot be told."""
    stat = stat_of(pid)
    return None if stat is None or stat.ended else ProcessRecord(pid, stat.start_ticks)


def is_alive(record: ProcessRecord) -> bool:
    """Whether anything of exactly this process still exists. Raises OSError when that cannot be told."""
    return record_of(record.pid) == record


def command_line(pid: int) -> list[str]:
    """Return the arguments a process was started with; empty when it is gone. Raises OSError when it cannot be told.

    A process whose first thread has ended is told by those that are left.
    """
    if words := _arguments(PROC / str(pid)):
        return words
    stat = stat_of(pid)
    if stat is None or stat.state != "Z" or stat.ended:  # threads of the kernel have none, either
        return []
    return next((words for thread in threads_of(pid) if (words := _arguments(thread))), [])


def threads_of(pid: int) -> Iterator[Path]:
    """Yield the folder of each thread of a process in /proc. Raises OSError."""
    try:
        yield from sorted((PROC / str(pid) / "task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return


def send(record: ProcessRecord, number: int) -> bool:
    """Signal exactly this process; return whether it was there. Raises OSError when that cannot be told."""
    try:
        handle = os.pidfd_open(record.pid)
    except OSError:
        if is_alive(record):
            raise
        return False
    try:
        if not is_alive(record):
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:  # it ended by itself
        return False
    finally:
        os.close(handle)
    return True


def stands_still(record: ProcessRecord) -> bool:
    """Whether a process that was sent SIGSTOP or SIGKILL has obeyed, with all its threads: until then it may fork. Raises OSError."""
    stats = (_stat(thread) for thread in threads_of(record.pid))
    return all(stat is None or stat.still for stat in stats)


def kill_each(records: Mapping[str, ProcessRecord]) -> dict[str, str]:
    """SIGKILL each process that is there; return the keys of those, with why it may still be. Never raises."""
    left = {}
    for key, record in records.items():
        try:
            if send(record, signal.SIGKILL):
                left[key] = f"process {record.pid} was killed and does not go (stuck in the kernel)"
        except OSError as error:
            left[key] = f"process {record.pid} cannot be looked at ({error.strerror})"
    return left


async def kill_all(records: Mapping[str, ProcessRecord], timeout_s: float) -> dict[str, str]:
    """SIGKILL processes until they are gone; return the keys of those not proven gone after `timeout_s`, and why.

    Needs two file descriptors, however many processes there are. Never raises.
    """
    end = time.monotonic() + timeout_s
    left = kill_each(records)
    while left and time.monotonic() < end:
        await asyncio.sleep(POLL_S)
        left = kill_each({key: records[key] for key in left})
    return left


class RecordStore:
    """Processes of guests by guest name, one file each, in a folder that does not outlive the boot (pids do not)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._noted: dict[str, ProcessRecord] = {}

    def save(self, name: str, record: ProcessRecord) -> None:
        """Remember the process of a guest. Raises OSError."""
        self.note(name, record)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._path(name), {"pid": record.pid, "start_ticks": record.start_ticks})

    def note(self, name: str, record: ProcessRecord) -> None:
        """Remember it in memory alone: a process that is dying may soon be found by nothing but its record."""
        self._noted[name] = record

    def load(self, name: str) -> ProcessRecord | None:
        """Return the process of a guest; None when none is remembered, or what is there is no record. Raises OSError."""
        if name in self._noted:
            return self._noted[name]
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            value = read_json(self._path(name))
            return ProcessRecord(int(value["pid"]), int(value["start_ticks"]))
        return None

    def remove(self, name: str) -> None:
        """Forget the process of a guest. Raises OSError."""
        self._noted.pop(name, None)
        if self._path(name).exists():
            remove_durably(self._path(name))

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def _stat(folder: Path) -> Stat | None:
    try:
        text = (folder / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    head, _, tail = text.rpartition(b")")  # the name, field 2, may hold any bytes
    fields = tail.split()  # from field 3 on
    return Stat(
        head.partition(b"(")[2], fields[0].decode(), int(fields[1]), int(fields[6]), int(fields[17]), int(fields[19])
    )


def _arguments(folder: Path) -> list[str]:
    try:
        text = (folder / "cmdline").read_bytes().decode(errors="replace").rstrip("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.split("\0") if text else []
