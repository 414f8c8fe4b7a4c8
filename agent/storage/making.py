"""Making volumes: empty ones, linked clones of images and bases, root file systems from archives."""

import os
from pathlib import Path

from gugus.agent.v1 import volume_pb2

from agent.compute.idmap import IDMAP
from agent.storage import archive, qemu_img
from agent.storage.layout import virtual_size
from agent.storage.long_command import copy_folder
from agent.storage.pool import VolumeRequest
from agent.storage.record import VolumeRecord
from agent.storage.store import QEMU_FORMATS, VolumeStore, disk_format
from common import validate
from common.errors import invalid, precondition
from common.units import format_size

FILESYSTEM, ARCHIVE = volume_pb2.VOLUME_FORMAT_FILESYSTEM, volume_pb2.VOLUME_FORMAT_ARCHIVE


async def create(store: VolumeStore, request: VolumeRequest) -> volume_pb2.Volume:
    """Make a volume, empty or from an image or a base. Idempotent for an equal request."""
    validate.require("name", validate.name(request.name))
    async with store.reading(request.source), store.turns[request.name]:
        if (known := await store.known(request.name)) is not None:
            return await _same(store, known, request)
        record = VolumeRecord(
            name=request.name,
            format=request.format,
            file=store.layout.file_of(request.name, _makeable(request.format), imported=False),
            source=request.source,
            size_bytes=request.size_bytes,
            privileged=request.privileged,
        )
        async with store.room(request.size_bytes, request.name), store.work() as work, store.work() as beside:
            await _make(store, record, work)
            companion = store.layout.companion(request.source or request.name)
            if await store.files.look(companion.is_dir):
                await copy_folder(companion, beside)
            record = await store.files.work(store.layout.commit, work, record, beside)
        return await store.describe(record)


async def ensure(store: VolumeStore, request: VolumeRequest) -> volume_pb2.Volume:
    """Make an empty volume of exactly one size for a migration to write into. Idempotent for what is alike."""
    async with store.turns[request.name]:
        known = await store.known(request.name)
        if known is not None:
            volume = await store.describe(known)
            alike = (volume.format, volume.size_bytes, volume.backing) == (
                request.format,
                request.size_bytes,
                request.source,
            )
            if known.is_base or not alike or known.privileged != request.privileged:
                raise store.taken(request.name)
            return volume
    return await create(store, request)


async def _same(store: VolumeStore, known: VolumeRecord, request: VolumeRequest) -> volume_pb2.Volume:
    """Return a volume that an equal request made, grown since or not. Raises VOLUME_ALREADY_EXISTS for another one."""
    asked = (request.format, request.source, request.privileged)
    volume = await store.describe(known)
    sizes = (known.size_bytes, volume.size_bytes)
    if known.imported or (known.format, known.source, known.privileged) != asked or request.size_bytes not in sizes:
        raise store.taken(request.name)
    return volume


async def _make(store: VolumeStore, record: VolumeRecord, work: Path) -> None:
    if not record.source:
        await _make_empty(store, record, work)
        return
    parent = await store.find(record.source)
    if not parent.is_base:
        what = f'"{parent.name}" is a disk that a guest may write to; a clone of it would change under its reader.'
        raise invalid("source", what, remedy="Make volumes from imported images, from templates, or by a full copy.")
    if record.format != FILESYSTEM:
        await _clone_disk(store, record, parent, work)
    elif parent.format == FILESYSTEM:
        await _clone_folder(store, record, parent, work)
    else:
        await _unpack(store, record, parent, work)


async def _make_empty(store: VolumeStore, record: VolumeRecord, work: Path) -> None:
    if record.format == FILESYSTEM:
        await make_folder(store, record, work)
        return
    if record.size_bytes <= 0:
        raise invalid("size_bytes", "an empty disk needs a size.", remedy="For example 10GiB.")
    await qemu_img.create(work, QEMU_FORMATS[record.format], record.size_bytes)  # type: ignore[index]


async def _unpack(store: VolumeStore, record: VolumeRecord, parent: VolumeRecord, work: Path) -> None:
    if parent.format != ARCHIVE:
        what = f'"{parent.name}" is a disk image; a file system is made from an archive.'
        raise invalid("source", what, remedy="Import a tar archive of a root file system.")
    await make_folder(store, record, work)
    image = store.layout.path(parent)
    program = await store.files.look(archive.compression, image)
    with await store.files.look(lambda: image.open("rb")) as opened:
        await archive.unpack(opened, program or "", work, privileged=record.privileged)


async def make_folder(store: VolumeStore, record: VolumeRecord, work: Path) -> None:
    """Make an empty folder that belongs to the container's root and can take what it was given as its size."""
    _refuse_size(store, record)
    await store.files.work(store.folders.make, work)
    if record.size_bytes:
        await store.files.work(store.folders.limit, work, record.size_bytes)
    if not record.privileged:
        await archive.ensure_idmap()
        await store.files.look(os.chown, work, IDMAP.host_id(0), IDMAP.host_id(0))


async def _clone_folder(store: VolumeStore, record: VolumeRecord, parent: VolumeRecord, work: Path) -> None:
    if not store.folders.can_snapshot:
        raise precondition(
            "CLONE_UNSUPPORTED",
            f'pool "{store.pool}" keeps root file systems as plain folders, which cannot be cloned without copying them.',
            remedy="Ask for a full copy, or use a btrfs pool.",
        )
    if parent.privileged != record.privileged:
        raise invalid(
            "privileged", f'"{parent.name}" belongs to other user ids.', remedy="Ask for the base's own kind."
        )
    _refuse_size(store, record)
    await store.files.work(lambda: store.folders.snapshot(store.layout.path(parent), work, read_only=False))
    await store.files.work(store.folders.limit, work, record.size_bytes)


async def _clone_disk(store: VolumeStore, record: VolumeRecord, parent: VolumeRecord, work: Path) -> None:
    if parent.format not in QEMU_FORMATS:
        what = f'"{parent.name}" is no disk image; a disk is made from a disk image.'
        raise invalid("source", what, remedy="Ask for the format FILESYSTEM, or import a disk image.")
    if record.format != volume_pb2.VOLUME_FORMAT_QCOW2:
        raise invalid("format", "a clone reads from its image, which only qcow2 can.", remedy="Ask for QCOW2.")
    image, image_format = store.layout.path(parent), disk_format(parent)
    least = await store.files.look(virtual_size, image, parent)
    if record.size_bytes and record.size_bytes < least:
        what = f'{record.size_bytes} bytes are less than the {least} of the image "{parent.name}".'
        raise invalid("size_bytes", what, remedy=f"Ask for {format_size(least)} or more, or 0 for the same.")
    # Relative, so that it is right on every host; from the work folder it would not be found, hence two steps.
    await qemu_img.clone(work, image, image_format, record.size_bytes or least)
    await qemu_img.set_backing(work, f"../{parent.file}", image_format)


def _makeable(volume_format: int) -> int:
    if volume_format in (*QEMU_FORMATS, FILESYSTEM):
        return volume_format
    raise invalid("format", "a volume is made as QCOW2, RAW or FILESYSTEM.", remedy="Archives are imported.")


def _refuse_size(store: VolumeStore, record: VolumeRecord) -> None:
    """Raise INVALID_ARGUMENT for a size that the pool could not keep."""
    if record.size_bytes and not store.folders.can_limit:
        what = f'pool "{store.pool}" keeps root file systems as plain folders, which have no size limit.'
        raise invalid("size_bytes", what, remedy="Leave it 0, or use a btrfs pool.")
