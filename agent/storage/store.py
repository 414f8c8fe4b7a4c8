"""What all work on one pool's volumes shares: turns, readers, a place to make things at, and failures in the pool's words.

The parts of a pool in a folder (making, importing, changing, copying, snapshots, transfer) are functions of this.
"""

import asyncio
import contextlib
import errno
import os
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

from gugus.agent.v1 import volume_pb2

from agent.leases.claim import QEMU_LOCKED
from agent.storage.files import FileWork
from agent.storage.folders import Folders
from agent.storage.layout import Layout, snapshot_count, used_bytes, virtual_size
from agent.storage.record import VolumeRecord
from common import validate
from common.errors import GugusError, already_exists, internal, invalid, not_found, precondition, resource_exhausted
from common.logs import get_logger
from common.process import CommandFailed
from common.units import format_size

TIDY_TIMEOUT_S = 3.0
"""How long anybody waits for the removal of what was half made: an agent that stops does, and beats no more meanwhile."""

QEMU_FORMATS = {volume_pb2.VOLUME_FORMAT_QCOW2: "qcow2", volume_pb2.VOLUME_FORMAT_RAW: "raw"}
FORMATS = {name: number for number, name in QEMU_FORMATS.items()}

_NO_SPACE = ("no space left on device", "disk quota exceeded")
_log = get_logger("storage")


class VolumeStore:
    """The volumes of one pool in a folder."""

    def __init__(self, pool: str, path: Path, folders: Folders) -> None:
        self.pool, self.base, self.folders = pool, path, folders
        self.layout = Layout(path, folders)
        self.files = FileWork(pool, path)
        self.turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.readers: Counter[str] = Counter()

    async def find(self, name: str) -> VolumeRecord:
        """Return a volume's record. Raises VOLUME_NOT_FOUND."""
        record = await self.files.look(self.layout.find, name) if not validate.name(name) else None
        if record is None:
            raise not_found("volume", name, remedy=f'Pool "{self.pool}" has no such volume.')
        return record

    async def known(self, name: str, *, field: str = "name") -> VolumeRecord | None:
        """Return the record of a volume that may exist. Raises INVALID_ARGUMENT for what is no name."""
        validate.require(field, validate.name(name))
        return await self.files.look(self.layout.find, name)

    async def writable(self, name: str) -> VolumeRecord:
        """Return the record of a volume that may be written to. Raises VOLUME_NOT_FOUND, VOLUME_IS_BASE."""
        record = await self.find(name)
        if record.is_base:
            raise self.is_base(name)
        return record

    async def describe(self, record: VolumeRecord) -> volume_pb2.Volume:
        """Return a volume as callers see it."""
        path = self.layout.path(record)
        volume = volume_pb2.Volume(
            pool=self.pool,
            name=record.name,
            format=record.format,  # type: ignore[arg-type]
            size_bytes=await self.files.look(virtual_size, path, record),
            used_bytes=await self.files.work(used_bytes, path),
            backing=record.backing,
            sha256=record.sha256,
            kind=record.kind,
            part_of=record.part_of,
            snapshot_count=await self.files.look(snapshot_count, path, record),
        )
        volume.created_at.FromMilliseconds(round(record.created * 1000))
        return volume

    async def users(self, name: str) -> list[str]:
        """Return the volumes that read from this one."""
        return [record.name for record in await self.files.work(self.layout.all) if record.backing == name]

    @contextlib.asynccontextmanager
    async def reading(self, name: str) -> AsyncIterator[None]:
        """Keep a source from being deleted; waits for a deletion under way. No name: nothing to keep."""
        if not name:
            yield
            return
        async with self.turns[name]:
            self.readers[name] += 1
        try:
            yield
        finally:
            self.readers[name] -= 1

    @contextlib.asynccontextmanager
    async def work(self) -> AsyncIterator[Path]:
        """Give a path to make something at; whatever is still there afterwards is removed."""
        work = await self.files.look(self.layout.work_file)
        try:
            yield work
        finally:
            with contextlib.suppress(GugusError):  # what takes longer goes on, or `clean` ends it one day
                await asyncio.shield(self.files.work(self.folders.remove, work, timeout_s=TIDY_TIMEOUT_S))

    async def discard(self, *paths: Path) -> None:
        """Remove what was moved away."""
        for path in paths:
            await self.files.work(self.folders.remove, path)

    @contextlib.asynccontextmanager
    async def room(self, wanted_bytes: int = 0, volume: str = "") -> AsyncIterator[None]:
        """Turn what means "disk full" into NO_SPACE with numbers, "locked" into VOLUME_BUSY, other failures into words."""
        try:
            yield
        except CommandFailed as error:
            if self.is_full(error):
                raise await self.no_space(wanted_bytes) from error
            if any(text in error.stderr_tail for text in QEMU_LOCKED):
                raise self.busy(volume) from error
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise await self.no_space(wanted_bytes) from error
            _log.error("pool failed", pool=self.pool, error=str(error))
            raise internal("POOL_FAILED", f'pool "{self.pool}" at {self.base}: {error}.') from error

    def is_full(self, error: CommandFailed) -> bool:
        """Whether a program failed because the file system is full."""
        return any(text in error.stderr_tail.lower() for text in _NO_SPACE)

    async def require_room(self, wanted_bytes: int, promised_bytes: int = 0) -> None:
        """Raise NO_SPACE when so much can never fit now: rather before hours of copying than after.

        promised_bytes: of the free room, what others will fill.
        """
        room = await self.files.look(os.statvfs, self.base)
        if room.f_bavail * room.f_frsize - promised_bytes < wanted_bytes:
            raise await self.no_space(wanted_bytes, promised_bytes)

    async def no_space(self, wanted_bytes: int, promised_bytes: int = 0) -> GugusError:
        """Return the error for a pool that is full."""
        room = await self.files.look(os.statvfs, self.base)
        free, size = format_size(room.f_bavail * room.f_frsize), format_size(room.f_blocks * room.f_frsize)
        wanted = f" for {format_size(wanted_bytes)}" if wanted_bytes else ""
        promised = f", of which uploads under way need {format_size(promised_bytes)}" if promised_bytes else ""
        return resource_exhausted(
            "NO_SPACE",
            f'pool "{self.pool}" has not enough room{wanted}: {free} of {size} are free at {self.base}{promised}.',
            remedy="Delete volumes or enlarge the file system, then try again.",
        )

    def taken(self, name: str) -> GugusError:
        """Return the error for a volume that was made otherwise than is asked for now."""
        return already_exists("volume", name, remedy="It was made in another way. Choose another name or delete it.")

    def busy(self, name: str) -> GugusError:
        """Return the error for a volume that a guest has open."""
        return precondition(
            "VOLUME_BUSY",
            f'volume "{name}" of pool "{self.pool}" is open in a running guest or another operation.',
            remedy="Stop the guest, or let the other operation end, and try again.",
            subject=self.subject(name),
        )

    def is_base(self, name: str) -> GugusError:
        """Return the error for a base that would be written to."""
        return precondition(
            "VOLUME_IS_BASE",
            f'volume "{name}" of pool "{self.pool}" is a base that others read from, and is never written.',
            remedy="Make a clone of it and use that.",
            subject=self.subject(name),
        )

    def subject(self, name: str) -> str:
        """Return what errors call a volume."""
        return f"pool/{self.pool}/volume/{name}"


def disk_format(record: VolumeRecord, field: str = "name") -> str:
    """Return QEMU's name of a disk's format. Raises INVALID_ARGUMENT for what is no disk."""
    name = QEMU_FORMATS.get(record.format)  # type: ignore[call-overload]
    if name is None:
        raise invalid(field, f'"{record.name}" is no disk of a virtual machine.', remedy="Name a qcow2 or raw volume.")
    return str(name)
