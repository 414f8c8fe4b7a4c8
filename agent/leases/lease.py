"""The lease of a volume: a small file beside it, locked for as long as whoever writes to the volume lives.

In it is who has it: guest, generation, host. The lock is an open file description's (fcntl(2), F_OFD_SETLK), which NFSv4 and
cluster file systems carry to other hosts, and which the kernel gives back when the last process that has it open ends,
however it ends. So the lock proves that a writer lives, and the record says which, and which generations are over.

It is a program, too, that holds the leases of a container, which has no process of ours in it:

    python -E -s -S lease.py ORDER [COMMAND...]

takes them, leaves a process behind for each that holds it until the container has ended or the file is taken away (the disk was detached),
and becomes COMMAND, which starts it. Without a command it holds them for a container that runs. ORDER is an `Order` as JSON.

Invariant: nothing but the standard library is imported: this process stays, and a start waits for it.
"""

import errno
import fcntl
import json
import os
import select
import struct
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypedDict

RECORD_BYTES = 512
"""A sector of a disk: written as a whole or not at all."""

POLL_S = 0.01
HOLD_WAIT_S = 0.2
"""How long the program waits for a lease; the agent has waited before, and a start that waits may outlive the node's lease."""

LOOK_MS = 2000
"""So often a holder looks whether its file is still there."""

HELD, OUTDATED, UNUSABLE = 75, 76, 77
"""Exit codes of the program: another process has a lease, one is of a later generation, one cannot be used."""

_FLOCK = "hhqqi4x"
"""struct flock of 64-bit Linux (fcntl(2)): type, whence, start, length, pid."""

_BUSY = frozenset({errno.EAGAIN, errno.EACCES})
_NO_LOCKS = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
"""A file system that knows no locks: it proves nothing, and its pool's status says so."""


class Record(TypedDict):
    """What a lease says. host: name of the host; boot_id: that boot of it."""

    guest: str
    uid: str
    generation: int
    host: str
    boot_id: str


class Order(TypedDict):
    """What the program does. leases: files; root: the container's root folder.

    monitor: file into which the command writes the pid of the container's monitor; without a command, that pid as text.
    """

    leases: list[str]
    record: Record
    root: str
    monitor: str


class Refused(Exception):
    """A lease is not to be had; `record` is what it says, None when it says nothing."""

    def __init__(self, path: str, record: Record | None) -> None:
        super().__init__(path)
        self.path, self.record = path, record


class Held(Refused):
    """Another process has it: whoever writes to the volume lives."""


class Outdated(Refused):
    """It was given to a later generation of the guest."""


def take(path: str, record: Record, wait_s: float = 0.0, look: Callable[[Record | None], None] = lambda _: None) -> int:
    """Lock a lease and write down who has it; return the file's handle, which holds it. Raises Held, Outdated, OSError.

    wait_s: how long to wait for another process that may be ending. look: given what the lease said, before that is written over; it
    may raise. A record that cannot be read counts as none, and one that cannot be written (the disk is full) is left: what proves is
    the lock.
    """
    end = time.monotonic() + wait_s
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _lock(handle, path, end)
            if _is_at(handle, path):
                look(_admitted(handle, path, record))
                _write(handle, record)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # it was renamed or removed meanwhile


def is_held(path: str) -> bool:
    """Whether a process has a lease. Raises OSError; FileNotFoundError when there is none."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return is_locked(handle, 0, 0)
    finally:
        os.close(handle)


def is_locked(handle: int, start: int, length: int) -> bool:
    """Whether another open file description has a lock in a range of a file; length 0: to its end. Raises OSError."""
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    answer = fcntl.fcntl(handle, fcntl.F_OFD_GETLK, asked)
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


def lock(handle: int) -> bool:
    """Lock a whole file, as long as it is open; return whether nobody else has. Raises OSError."""
    try:
        fcntl.fcntl(handle, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno not in _BUSY | _NO_LOCKS:
            raise
        return error.errno in _NO_LOCKS
    return True


def read(path: str) -> Record | None:
    """Return what a lease says; None when it says nothing that is understood. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _read(handle)
    finally:
        os.close(handle)


def is_outdated(claimed: Record, known: Record | None) -> bool:
    """Whether what a lease says is of a later generation of the same guest than the one that claims it."""
    return known is not None and known["uid"] == claimed["uid"] and known["generation"] > claimed["generation"]


def _lock(handle: int, path: str, end: float) -> None:
    while not lock(handle):
        if time.monotonic() >= end:
            raise Held(path, _read(handle))
        time.sleep(POLL_S)


def _is_at(handle: int, path: str) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    own = os.fstat(handle)
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)


def _admitted(handle: int, path: str, record: Record) -> Record | None:
    """Return what a lease says. Raises Outdated when it was given to a later generation of the same guest."""
    known = _read(handle)
    if is_outdated(record, known):
        raise Outdated(path, known)
    return known


def _write(handle: int, record: Record) -> None:
    if _read(handle) != record:
        with suppress(OSError):
            os.pwrite(handle, json.dumps(record).encode().ljust(RECORD_BYTES), 0)
            os.fdatasync(handle)


def _read(handle: int) -> Record | None:
    try:
        value = json.loads(os.pread(handle, RECORD_BYTES, 0))
        return {
            "guest": str(value["guest"]),
            "uid": str(value["uid"]),
            "generation": int(value["generation"]),
            "host": str(value["host"]),
            "boot_id": str(value["boot_id"]),
        }
    except (ValueError, KeyError, TypeError):
        return None


def main(words: Sequence[str]) -> int:
    """Take leases; the process that goes on as the command returns only when it cannot. Returns the exit code."""
    order: Order = json.loads(words[0])
    command = list(words[1:])
    try:
        leases = [(path, take(path, order["record"], HOLD_WAIT_S)) for path in order["leases"]]
        root = os.stat(order["root"])
    except Refused as error:
        sys.stderr.write(f"{error.path}: {error.record}\n")
        return HELD if isinstance(error, Held) else OUTDATED
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return UNUSABLE
    if command:
        with suppress(FileNotFoundError):
            os.unlink(order["monitor"])  # of the run before
    starter = os.pidfd_open(os.getpid()) if command else None
    for path, handle in leases:
        if not os.fork():
            for _, other in leases:
                if other != handle:
                    os.close(other)
            _hold(path, handle, order["monitor"], starter, root)
            return 0
    if command:
        os.execvp(command[0], command)  # noqa: S606  (an argument list of the agent)
    return 0


def _hold(path: str, handle: int, monitor: str, starter: int | None, root: os.stat_result) -> None:
    """Keep a lease as long as a container needs it."""
    os.setsid()
    _close_streams()
    if starter is not None:
        _wait(starter)
    found = _monitor(monitor, is_file=starter is not None)
    if found is None:
        return
    while not _wait(found, LOOK_MS):
        with suppress(OSError):  # a server that does not answer says nothing
            if not _is_at(handle, path):
                return
    while _has_processes(root):
        time.sleep(POLL_S)


def _close_streams() -> None:
    """Whoever started the command waits for the end of what it says."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)


def _monitor(told: str, *, is_file: bool) -> int | None:
    """Return the pidfd of the container's monitor; None when there is none (any more)."""
    try:
        if not is_file:
            return os.pidfd_open(int(told))
        with open(told, encoding="ascii") as file:
            return os.pidfd_open(int(file.read()))
    except (OSError, ValueError):
        return None


def _wait(pidfd: int, timeout_ms: int | None = None) -> bool:
    """Wait for the end of a process; return whether it has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_ms))


def _has_processes(root: os.stat_result) -> bool:
    """Whether anything runs whose root folder is the container's. What cannot be looked at has ended."""
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            with suppress(OSError):
                found = os.stat(f"/proc/{pid}/root")
                if (found.st_dev, found.st_ino) == (root.st_dev, root.st_ino):
                    return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
