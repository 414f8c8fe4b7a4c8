"""Processes of guests: identified beyond doubt, killed for certain.

A pid alone may have been given to another process since. A process is identified by its pid and its start time, and is
signalled through a pidfd that was opened before the start time was compared: the pid cannot change hands in between.
"""

import asyncio
import os
import select
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.files import read_json, remove_durably, write_json

PROC = Path("/proc")
POLL_S = 0.01
"""How often a killed process is looked at until it is gone, in seconds."""

_START_TICKS_FIELD = 22
"""Field of /proc/PID/stat that holds the start time in clock ticks since boot (proc(5))."""


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One process for ever: `start_ticks` is field 22 of /proc/PID/stat, in clock ticks since boot."""

    pid: int
    start_ticks: int


def record_of(pid: int) -> ProcessRecord | None:
    """Identify the process that has `pid` now; None when there is none (a zombie is none: it runs nothing)."""
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except (OSError, ValueError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name, field 2, may hold spaces and parentheses; fields[0] is field 3
    if fields[0] in "ZX":
        return None
    return ProcessRecord(pid, int(fields[_START_TICKS_FIELD - 3]))


def is_alive(record: ProcessRecord) -> bool:
    """Whether exactly this process still exists."""
    return record_of(record.pid) == record


def command_line(pid: int) -> list[str]:
    """Return the arguments a process was started with; empty when it is gone."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


async def kill_all(records: Mapping[str, ProcessRecord], timeout_s: float) -> frozenset[str]:
    """SIGKILL each process and wait until they are gone; return the keys of those still there after `timeout_s`."""
    handles: dict[str, int] = {}
    try:
        for key, record in records.items():
            handle = _kill(record)
            if handle is not None:
                handles[key] = handle
        end = time.monotonic() + timeout_s
        left = frozenset(handles)
        while left := frozenset(key for key in left if not _has_ended(handles[key])):
            if time.monotonic() >= end:
                break
            await asyncio.sleep(POLL_S)
        return left
    finally:
        for handle in handles.values():
            os.close(handle)


def _kill(record: ProcessRecord) -> int | None:
    try:
        handle = os.pidfd_open(record.pid)
    except OSError:
        return None
    try:
        if record_of(record.pid) == record:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            return handle
    except OSError:  # it ended by itself
        os.close(handle)
        return None
    os.close(handle)
    return None


def _has_ended(handle: int) -> bool:
    poller = select.poll()
    poller.register(handle, select.POLLIN)  # a pidfd is readable once all threads have ended (pidfd_open(2))
    return bool(poller.poll(0))


class RecordStore:
    """Processes of guests by guest name, one file each, in a folder that does not outlive the boot (pids do not)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, name: str, record: ProcessRecord) -> None:
        """Remember the process of a guest. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._path(name), {"pid": record.pid, "start_ticks": record.start_ticks})

    def load(self, name: str) -> ProcessRecord | None:
        """Return the process of a guest; None when none is remembered or the file cannot be read."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            value = read_json(self._path(name))
            return ProcessRecord(int(value["pid"]), int(value["start_ticks"]))
        return None

    def remove(self, name: str) -> None:
        """Forget the process of a guest. Raises OSError."""
        if self._path(name).exists():
            remove_durably(self._path(name))

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"
