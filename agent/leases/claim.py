"""What a start claims of shared disks: their leases, in the agent's words, and QEMU's own locks on images.

A virtual machine needs no process of ours: QEMU locks the images that it has open (block/file-posix.c), drops these locks where a
migration ends and takes them where it goes on. A lease is locked during its start alone, so that two hosts begin one after the
other, and keeps the generation.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from agent.compute.definitions import Definition
from agent.fencing.record import kernel_boot_id
from agent.leases import lease
from agent.leases.lease import Order, Record
from agent.leases.refusals import in_use, outdated
from common.errors import GugusError, precondition
from common.executors import BoundedPool
from common.logs import get_logger
from common.process import run

WAIT_S = 1.0
"""How long a start waits for whoever has a disk: what has just been killed lets go within some 20 ms."""

LIMIT_S = 10.0
"""How long the storage may take to answer: a second server of it may be taking over."""

QEMU_LOCKED = ('Failed to get "', "Failed to get shared", "Is another process using the image")
"""What QEMU says of an image that another process has locked (block/file-posix.c, raw_check_lock_bytes)."""

_QEMU_WRITES, _QEMU_FORBIDS_WRITES = 101, 201
"""Bytes of an image that QEMU locks when it writes to it, and when nobody else may (RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE
in block/file-posix.c, each and BLK_PERM_WRITE's bit)."""

_log = get_logger("leases")


@dataclass(frozen=True, slots=True)
class Claim:
    """The disks of a guest that other hosts reach and it writes to: name of the disk, its lease, its data; and who claims them."""

    disks: tuple[tuple[str, Path, Path], ...]
    record: Record

    def order(self, root: Path, monitor: str) -> str:
        """Return the order for the program that holds the leases."""
        leases = [str(path) for _, path, _ in self.disks]
        return json.dumps(Order(leases=leases, record=self.record, root=str(root), monitor=monitor))


def claim_of(definition: Definition, generation: int) -> Claim:
    """Return what a start of a guest claims."""
    spec = definition.spec
    disks = tuple((disk.spec.name, disk.lease, disk.path) for disk in definition.disks if disk.lease is not None)
    record = Record(
        guest=spec.name, uid=spec.uid, generation=generation, host=socket.gethostname(), boot_id=kernel_boot_id()
    )
    return Claim(disks, record)


def command(order: str, words: list[str]) -> list[str]:
    """Return the command that holds leases and becomes another."""
    return [sys.executable, "-E", "-s", "-S", lease.__file__, order, *words]


class Claims:
    """Claims of one driver. Methods raise DISK_IN_USE, STALE_GENERATION, LEASE_UNUSABLE, CALL_STUCK."""

    def __init__(self) -> None:
        self._pool = BoundedPool("leases", 2, LIMIT_S)

    @asynccontextmanager
    async def during(self, claim: Claim) -> AsyncIterator[None]:
        """Hold the leases of a machine while QEMU is started, which locks its images itself."""
        hold = _Hold()
        try:
            if claim.disks:
                await self._pool.run(_take, claim, hold)
            yield
        finally:
            hold.release()

    async def check(self, claim: Claim) -> None:
        """Refuse, in words, what the program that holds the leases of a container would refuse."""
        if claim.disks:
            await self._pool.run(_check, claim)

    async def note(self, claim: Claim) -> None:
        """Write down who has the disks of a machine that came while it ran. Never raises: its locks hold all the same."""
        try:
            await self.check(claim)
        except GugusError as error:
            _log.warning("lease not written", guest=claim.record["guest"], error=str(error))

    async def hold(self, claim: Claim, root: Path, monitor: int) -> None:
        """Hold the leases of a container that runs and whose holder is gone, or that was started before there were any."""
        for disk in await self._pool.run(_free, claim) if claim.disks else ():
            order = Claim((disk,), claim.record).order(root, str(monitor))
            try:
                await run(command(order, []), timeout_s=LIMIT_S)
            except GugusError as error:
                _log.error("disk of a running guest is not held", guest=claim.record["guest"], error=str(error))
            else:
                _log.info("disk of a running guest is held again", guest=claim.record["guest"], disk=disk[0])


class _Hold:
    """Handles of leases; one that comes after the release, from a call that was given up, is closed at once."""

    def __init__(self) -> None:
        self._handles: list[int] = []
        self._over = False
        self._turn = threading.Lock()

    def add(self, handle: int) -> None:
        with self._turn:
            self._handles.append(handle)
        if self._over:
            self.release()

    def release(self) -> None:
        with self._turn:
            self._over = True
            while self._handles:
                os.close(self._handles.pop())


def _take(claim: Claim, hold: _Hold) -> None:
    for name, path, data in claim.disks:
        hold.add(_taken(claim, name, path, partial(_refuse_locked, claim, name, data)))


def _check(claim: Claim) -> None:
    for name, path, _ in claim.disks:
        os.close(_taken(claim, name, path))


def _free(claim: Claim) -> list[tuple[str, Path, Path]]:
    """Return the disks whose leases nobody has."""
    free = []
    for disk in claim.disks:
        try:
            if not lease.is_held(str(disk[1])):
                free.append(disk)
        except FileNotFoundError:
            free.append(disk)
        except OSError as error:
            _log.warning("lease cannot be looked at", disk=disk[0], error=str(error))
    return free


def _taken(claim: Claim, name: str, path: Path, look: Callable[[Record | None], None] = lambda _: None) -> int:
    """Take a lease, in the agent's words."""
    try:
        return lease.take(str(path), claim.record, WAIT_S, look)
    except lease.Held as error:
        raise in_use(claim.record, name, error.record) from error
    except lease.Outdated as error:
        raise outdated(claim.record, name, error.record) from error
    except OSError as error:
        raise precondition(
            "LEASE_UNUSABLE",
            f'the lease of disk "{name}" of guest "{claim.record["guest"]}" cannot be used: {error}.',
            remedy="The file system of its pool has to be writable, have room, and carry locks (NFS: version 4, not `nolock`).",
            subject=f"guest/{claim.record['guest']}",
        ) from error


def _refuse_locked(claim: Claim, name: str, data: Path, known: Record | None) -> None:
    """Refuse an image that QEMU writes to elsewhere, or that is being read as it stands (a copy, an export)."""
    end = time.monotonic() + WAIT_S
    handle = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while any(lease.is_locked(handle, byte, 1) for byte in (_QEMU_WRITES, _QEMU_FORBIDS_WRITES)):
            if time.monotonic() >= end:
                raise in_use(claim.record, name, known)
            time.sleep(lease.POLL_S)
    finally:
        os.close(handle)
