"""Full copies of volumes, also from another pool of the host, and linked clones made independent."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

from gugus.agent.v1 import volume_pb2

from agent.storage import archive, qemu_img
from agent.storage.changing import has_snapshots
from agent.storage.layout import snapshot_count, used_bytes, virtual_size
from agent.storage.long_command import copy_folder, run_long
from agent.storage.pool import CopyRequest, Progress, VolumeView
from agent.storage.record import VolumeRecord
from agent.storage.store import QEMU_FORMATS, VolumeStore
from common.errors import invalid, not_found, precondition
from common.units import format_size

FILESYSTEM, ARCHIVE = volume_pb2.VOLUME_FORMAT_FILESYSTEM, volume_pb2.VOLUME_FORMAT_ARCHIVE
QCOW2 = volume_pb2.VOLUME_FORMAT_QCOW2


@contextlib.asynccontextmanager
async def view(store: VolumeStore, name: str, snapshot: str = "") -> AsyncIterator[VolumeView]:
    """Hold a volume of this pool for reading."""
    async with store.reading(name):
        record = await store.find(name)
        path, inner = store.layout.path(record), ""
        if snapshot and record.format == QCOW2:
            inner = snapshot
            known = {item.name for item in (await qemu_img.info(path, "qcow2")).snapshots}
        else:
            known = set(record.snapshots)
        if snapshot and snapshot not in known:
            raise not_found("snapshot", snapshot, remedy=f'The volume "{name}" has no such snapshot.')
        if snapshot and not inner:
            path = store.layout.snapshot(name, snapshot)
        yield VolumeView(
            name=name,
            path=path,
            format=record.format,  # type: ignore[arg-type]
            size_bytes=await store.files.look(virtual_size, store.layout.path(record), record),
            used_bytes=await store.files.work(used_bytes, path),
            companion=store.layout.companion(name, snapshot),
            snapshot=inner,
            privileged=record.privileged,
            fixed=record.is_base and not record.backing,
        )


async def copy(store: VolumeStore, request: CopyRequest, progress: Progress) -> volume_pb2.Volume:
    """Make an independent copy. Idempotent for an equal request."""
    name, own = request.name, request.source.spec.name == store.pool
    if own and name == request.source_volume:
        raise invalid("name", f'"{name}" is the volume to be copied.', remedy="Choose another name for the copy.")
    async with request.source.view(request.source_volume, request.source_snapshot) as source, store.turns[name]:
        known = await store.known(name)
        target_format = request.format or source.format
        if request.as_image and source.format == FILESYSTEM:
            target_format = ARCHIVE  # what containers are made from on every pool
        if known is not None:
            if (known.copied_from, known.format, known.imported) != (request.origin, target_format, request.as_image):
                raise store.taken(name)
            return await store.describe(known)
        _check_formats(source.format, target_format)
        record = VolumeRecord(
            name=name,
            format=target_format,
            file=store.layout.file_of(name, target_format, imported=request.as_image),
            imported=request.as_image,
            copied_from=request.origin,
            size_bytes=source.size_bytes if target_format in (*QEMU_FORMATS, FILESYSTEM) else 0,
            privileged=source.privileged,
        )
        async with store.room(source.used_bytes, request.source_volume), store.work() as work, store.work() as beside:
            await _fill(store, source, record, work, progress, request.bytes_per_s, same_pool=own)
            if await store.files.look(source.companion.is_dir):
                await copy_folder(source.companion, beside)
            record = await store.files.work(store.layout.commit, work, record, beside)
        progress(100, "copied")
        return await store.describe(record)


async def flatten(
    store: VolumeStore, name: str, progress: Progress, *, done_by_guest: bool = False
) -> volume_pb2.Volume:
    """Make a linked clone independent, or write down that a block job has."""
    async with store.turns[name]:
        record = await store.find(name)
        if not record.backing:
            return await store.describe(record)
        path = store.layout.path(record)
        if done_by_guest:
            if (await qemu_img.info(path, "qcow2")).backing:
                what = f'volume "{name}" still reads from "{record.backing}".'
                raise precondition("NOT_FLAT", what, subject=store.subject(name))
        else:
            if record.is_base:
                raise store.is_base(name)
            if await store.files.look(snapshot_count, path, record):
                raise has_snapshots(store, name, f'what they did not change is only in "{record.backing}"')
            async with store.room(0, name):
                await qemu_img.drop_backing(path, _percent(progress, "copying what it reads from its base"))
        record = replace(record, independent=True)
        async with store.room(0, name):
            await store.files.work(store.layout.write, record)
        return await store.describe(record)


async def _fill(
    store: VolumeStore,
    source: VolumeView,
    record: VolumeRecord,
    work: Path,
    progress: Progress,
    bytes_per_s: int,
    *,
    same_pool: bool,
) -> None:
    """Put the content at `work`."""
    if source.format in QEMU_FORMATS:
        formats = (QEMU_FORMATS[source.format], QEMU_FORMATS[record.format])  # type: ignore[index]
        told = _percent(progress, f"copying {source.name}")
        await qemu_img.convert(
            source.path, formats[0], work, formats[1], told, snapshot=source.snapshot, bytes_per_s=bytes_per_s
        )
    elif record.format == ARCHIVE and source.format == FILESYSTEM:
        progress(0, f"packing the files of {source.name}")
        with await store.files.look(lambda: work.open("wb")) as file:
            await archive.pack(source.path, file, privileged=source.privileged)
    elif source.format != FILESYSTEM:
        await store.require_room(source.used_bytes)
        await run_long(["cp", "--sparse=auto", "--reflink=auto", "--", str(source.path), str(work)])
    elif same_pool and store.folders.can_snapshot:
        await store.files.work(lambda: store.folders.snapshot(source.path, work, read_only=False))
        await store.files.work(store.folders.limit, work, record.size_bytes)
    else:
        if record.size_bytes and not store.folders.can_limit:
            raise precondition(
                "QUOTA_UNSUPPORTED",
                f'"{source.name}" has a size limit of {format_size(record.size_bytes)}, which pool "{store.pool}" cannot keep.',
                remedy="Copy it into a btrfs pool.",
            )
        await store.require_room(source.used_bytes)
        await store.files.work(store.folders.make, work)
        if record.size_bytes:
            await store.files.work(store.folders.limit, work, record.size_bytes)
        progress(0, f"copying the files of {source.name}")
        await copy_folder(source.path, work, bytes_per_s)


def _check_formats(source: int, target: int) -> None:
    if (
        source == target
        or (source in QEMU_FORMATS and target in QEMU_FORMATS)
        or (source, target) == (FILESYSTEM, ARCHIVE)
    ):
        return
    raise invalid("format", "the copy would be of another nature than its source.", remedy="Leave the format 0.")


def _percent(progress: Progress, words: str) -> Callable[[int], None]:
    return lambda percent: progress(min(percent, 99), words)
