"""Changes of volumes that are there: growing, freezing, renaming, deleting."""

import time
from dataclasses import replace
from pathlib import Path

from gugus.agent.v1 import volume_pb2

from agent.storage import qemu_img
from agent.storage.layout import virtual_size
from agent.storage.record import VolumeRecord
from agent.storage.store import QEMU_FORMATS, VolumeStore, disk_format
from common import validate
from common.errors import GugusError, invalid, precondition
from common.units import format_size

FILESYSTEM = volume_pb2.VOLUME_FORMAT_FILESYSTEM


async def delete(store: VolumeStore, name: str, *, orphan_age_s: int = 0) -> None:
    """Delete a volume and all that belongs to it, unless others read from it. Idempotent.

    orphan_age_s: if set, one that is younger, or that a process has open, is left.
    """
    validate.require("name", validate.name(name))
    async with store.turns[name], store.room(0, name):
        await _refuse_used(store, name)
        if orphan_age_s and (record := await store.known(name)) is not None:
            age_s = time.time() - record.created
            if age_s < orphan_age_s:
                what = f'volume "{name}" of pool "{store.pool}" was made {max(0, age_s):.0f} s ago.'
                raise precondition("VOLUME_TOO_YOUNG", what, remedy="Its owner may not be known yet; look again later.")
            await require_idle(store, record)
        await store.discard(*await store.files.work(store.layout.remove, name))


async def resize(store: VolumeStore, name: str, size_bytes: int, *, done_by_guest: bool = False) -> volume_pb2.Volume:
    """Let a volume grow, or write down that QEMU has let it."""
    async with store.turns[name]:
        record = await store.writable(name)
        path = store.layout.path(record)
        present = await store.files.look(virtual_size, path, record)
        if size_bytes < present or (record.format == FILESYSTEM and not size_bytes):
            what = (
                f'volume "{name}" has {format_size(present)} and would lose what is beyond {format_size(size_bytes)}.'
            )
            raise invalid("size_bytes", what, remedy="Volumes can only grow; copy the data into a smaller one.")
        if done_by_guest and record.format != FILESYSTEM and size_bytes > present:
            raise precondition(
                "NOT_RESIZED", f'volume "{name}" still has {present} bytes.', subject=store.subject(name)
            )
        async with store.room(size_bytes - present, name):
            if size_bytes > present and not done_by_guest:
                await _grow(store, record, path, size_bytes)
            record = replace(record, size_bytes=size_bytes)
            await store.files.work(store.layout.write, record)
        return await store.describe(record)


async def freeze(store: VolumeStore, name: str) -> volume_pb2.Volume:
    """Make a volume a base."""
    async with store.turns[name]:
        record = await store.find(name)
        if record.format not in (*QEMU_FORMATS, FILESYSTEM):
            raise invalid("name", f'"{name}" is no disk and no root file system.', remedy="Name a guest's disk.")
        if not record.is_base:
            async with store.room(0, name):
                await require_idle(store, record)
                record = replace(record, frozen=True)
                await store.files.work(store.layout.write, record)
        if record.format == FILESYSTEM:
            async with store.room(0, name):
                await store.files.work(store.folders.protect, store.layout.path(record))
        return await store.describe(record)


async def rename(store: VolumeStore, name: str, new_name: str) -> volume_pb2.Volume:
    """Give a volume another name."""
    validate.require("new_name", validate.name(new_name))
    first, second = sorted((name, new_name))
    if first == second:
        return await store.describe(await store.find(name))
    async with store.turns[first], store.turns[second], store.room(0, name):
        record, other = await store.known(name), await store.known(new_name)
        if record is None and other is not None:
            return await store.describe(other)  # an earlier call has done it
        if record is None:
            return await store.describe(await store.find(name))
        if other is not None:
            raise store.taken(new_name)
        await _refuse_used(store, name)
        kept = await store.files.look(store.layout.companions_of_snapshots, name)
        if record.snapshots or kept:
            raise has_snapshots(store, name, "their place goes by its name")
        await require_idle(store, record)
        return await store.describe(await store.files.work(store.layout.rename, record, new_name))


async def require_idle(store: VolumeStore, record: VolumeRecord) -> None:
    """Fail as locked when a process writes to a disk (the caller's `room` makes it VOLUME_BUSY)."""
    if record.format in QEMU_FORMATS:
        await qemu_img.info(store.layout.path(record), disk_format(record), shared=False)


def has_snapshots(store: VolumeStore, name: str, why: str) -> GugusError:
    """Return the error for what cannot be done to a volume that has snapshots."""
    return precondition(
        "VOLUME_HAS_SNAPSHOTS",
        f'volume "{name}" of pool "{store.pool}" has snapshots, and {why}.',
        remedy="Delete its snapshots first, or make a full copy.",
        subject=store.subject(name),
    )


async def _grow(store: VolumeStore, record: VolumeRecord, path: Path, size_bytes: int) -> None:
    if record.format == FILESYSTEM:
        if not store.folders.can_limit:
            what = f'pool "{store.pool}" keeps root file systems as plain folders, which have no size.'
            raise invalid("size_bytes", what, remedy="Use a btrfs pool.")
        await store.files.work(store.folders.limit, path, size_bytes)
        return
    await qemu_img.resize(path, disk_format(record), size_bytes)


async def _refuse_used(store: VolumeStore, name: str) -> None:
    users = await store.users(name)
    if users or store.readers[name]:
        who = (
            f"these were cloned from it: {', '.join(users)}"
            if users
            else "a volume is being made from it, or it is read"
        )
        raise precondition(
            "VOLUME_IN_USE",
            f'volume "{name}" of pool "{store.pool}" is in use: {who}.',
            remedy="Delete those first, or flatten them." if users else "Try again when that is done.",
            subject=store.subject(name),
            metadata={"volumes": ",".join(users)} if users else {},
        )
