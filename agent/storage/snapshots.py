"""Snapshots of one volume: qcow2's own for disks that nobody has open, subvolumes for root file systems.

The companion of a volume (UEFI variables, TPM) is kept with each: first it, then the content, so that a snapshot that is listed
is whole.
"""

import time
from dataclasses import replace

from gugus.agent.v1 import volume_pb2

from agent.storage import abilities, exchange, qemu_img
from agent.storage.long_command import copy_folder
from agent.storage.record import VolumeRecord
from agent.storage.store import VolumeStore
from common import validate
from common.errors import GugusError, not_found, precondition

QCOW2, FILESYSTEM = volume_pb2.VOLUME_FORMAT_QCOW2, volume_pb2.VOLUME_FORMAT_FILESYSTEM


def obstacle(store: VolumeStore, record: VolumeRecord) -> str:
    """Tell why a volume can never be snapshotted; "" when it can."""
    if record.is_base:
        return f'"{record.name}" is a base that is never written: there is nothing to go back to.'
    if record.format == FILESYSTEM:
        return "" if store.folders.can_snapshot else abilities.PLAIN_FOLDER
    return "" if record.format == QCOW2 else abilities.RAW_DISK


async def list_(store: VolumeStore, name: str) -> list[volume_pb2.VolumeSnapshot]:
    """Return the snapshots of a volume, oldest first."""
    return await _list(store, await store.find(name))


async def create(store: VolumeStore, name: str, snapshot: str) -> volume_pb2.VolumeSnapshot:
    """Snapshot a volume and its companion. Idempotent."""
    validate.require("snapshot", validate.name(snapshot))
    async with store.turns[name]:
        record = await store.find(name)
        if why := obstacle(store, record):
            raise unsupported(store, name, why)
        if (known := _named(await _list(store, record), snapshot)) is not None:
            return known
        async with store.room(0, name):
            await keep_companion(store, name, snapshot)
            if record.format == QCOW2:
                await qemu_img.snapshot(store.layout.path(record), "-c", snapshot)
            else:
                record = await _snapshot_folder(store, record, snapshot)
        made = _named(await _list(store, record), snapshot)
        if made is None:
            raise not_found("snapshot", snapshot)
        return made


async def revert(store: VolumeStore, name: str, snapshot: str) -> volume_pb2.Volume:
    """Make a volume and its companion what they were."""
    async with store.turns[name]:
        record = await store.writable(name)
        if _named(await _list(store, record), snapshot) is None:
            raise _missing(name, snapshot)
        async with store.room(0, name):
            if record.format == QCOW2:
                await qemu_img.snapshot(store.layout.path(record), "-a", snapshot)
            else:
                await _revert_folder(store, record, snapshot)
            await revert_companion(store, name, snapshot)
        return await store.describe(record)


async def delete(store: VolumeStore, name: str, snapshot: str) -> None:
    """Delete a snapshot, if it is there."""
    async with store.turns[name], store.room(0, name):
        record = await store.find(name)
        if record.format == QCOW2 and _named(await _list(store, record), snapshot) is not None:
            await qemu_img.snapshot(store.layout.path(record), "-d", snapshot)
        elif snapshot in record.snapshots:
            left = {key: value for key, value in record.snapshots.items() if key != snapshot}
            await store.files.work(store.layout.write, replace(record, snapshots=left))
            await store.discard(store.layout.snapshot(name, snapshot))
        await forget_companion(store, name, snapshot)


async def keep_companion(store: VolumeStore, name: str, snapshot: str) -> None:
    """Keep the companion as it is now, if there is one."""
    validate.require("snapshot", validate.name(snapshot))
    companion = store.layout.companion((await store.find(name)).name)
    kept = store.layout.companion(name, snapshot)
    async with store.room(0, name), store.work() as work:
        if await store.files.look(companion.is_dir):
            await copy_folder(companion, work)
            await store.discard(kept)
            await store.files.work(work.rename, kept)


async def revert_companion(store: VolumeStore, name: str, snapshot: str) -> None:
    """Make the companion what a snapshot kept, if it kept one."""
    validate.require("snapshot", validate.name(snapshot))
    companion = store.layout.companion((await store.find(name)).name)
    kept = store.layout.companion(name, snapshot)
    async with store.room(0, name), store.work() as work:
        if await store.files.look(kept.is_dir):
            await copy_folder(kept, work)
            await store.files.work(exchange.put, work, companion)


async def forget_companion(store: VolumeStore, name: str, snapshot: str) -> None:
    """Forget what a snapshot kept."""
    validate.require("snapshot", validate.name(snapshot))
    async with store.room(0, name):
        await store.discard(store.layout.companion((await store.find(name)).name, snapshot))


def unsupported(store: VolumeStore, name: str, why: str) -> GugusError:
    """Return the error for a volume that cannot be snapshotted."""
    return precondition(
        "SNAPSHOT_UNSUPPORTED",
        f'volume "{name}" of pool "{store.pool}" cannot be snapshotted: {why}',
        subject=store.subject(name),
    )


async def _list(store: VolumeStore, record: VolumeRecord) -> list[volume_pb2.VolumeSnapshot]:
    if record.format == QCOW2:
        known = (await qemu_img.info(store.layout.path(record), "qcow2")).snapshots
        told = [(item.name, float(item.created), item.state_bytes) for item in known]
    else:
        told = [(name, created, 0) for name, created in record.snapshots.items()]
    listed = []
    for name, created, state_bytes in sorted(told, key=lambda item: item[1]):
        snapshot = volume_pb2.VolumeSnapshot(name=name, state_bytes=state_bytes)
        snapshot.created_at.FromMilliseconds(round(created * 1000))
        listed.append(snapshot)
    return listed


def _named(listed: list[volume_pb2.VolumeSnapshot], name: str) -> volume_pb2.VolumeSnapshot | None:
    return next((snapshot for snapshot in listed if snapshot.name == name), None)


async def _snapshot_folder(store: VolumeStore, record: VolumeRecord, snapshot: str) -> VolumeRecord:
    kept = store.layout.snapshot(record.name, snapshot)
    await store.discard(kept)  # of a snapshot that was cut short
    path = store.layout.path(record)
    await store.files.work(lambda: store.folders.snapshot(path, kept, read_only=True))
    record = replace(record, snapshots={**record.snapshots, snapshot: round(time.time(), 3)})
    await store.files.work(store.layout.write, record)
    return record


async def _revert_folder(store: VolumeStore, record: VolumeRecord, snapshot: str) -> None:
    kept, path = store.layout.snapshot(record.name, snapshot), store.layout.path(record)
    async with store.work() as work:
        await store.files.work(lambda: store.folders.snapshot(kept, work, read_only=False))
        await store.files.work(store.folders.limit, work, record.size_bytes)
        await store.files.work(exchange.put, work, path)


def _missing(name: str, snapshot: str) -> GugusError:
    error = not_found("snapshot", snapshot, remedy=f'The volume "{name}" has no such snapshot.')
    error.metadata["volume"] = name
    return error
