"""Disks: where they are, what they are made from, how they are attached."""

import re
from collections.abc import Iterator

from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER
from gugus.agent.v1.resources_pb2 import (
    DISK_BUS_IDE,
    DISK_BUS_SATA,
    DISK_BUS_SCSI,
    DISK_BUS_UNSPECIFIED,
    DISK_BUS_VIRTIO,
    DiskBus,
    DiskCache,
    DiskDiscard,
    DiskSettings,
)
from gugus.agent.v1.volume_pb2 import (
    POOL_ABILITY_BLOCK,
    POOL_ABILITY_FILESYSTEM,
    POOL_ABILITY_QUOTA,
    VOLUME_FORMAT_ARCHIVE,
    VOLUME_FORMAT_FILESYSTEM,
    VOLUME_FORMAT_QCOW2,
    VOLUME_FORMAT_RAW,
    VOLUME_KIND_ISO,
)
from gugus.cluster.v1.guest_pb2 import DiskSpec, GuestSpec
from gugus.cluster.v1.pool_pb2 import Pool

from common import validate
from common.abilities import why_not
from common.errors import GugusError, invalid
from common.units import format_size
from manager.guests.known import Known, absent
from manager.guests.rules import check
from manager.guests.rules.resources import BURSTS, io_faults

MAX_DISKS = 32
MAX_BOOT_ORDER = 64
MIN_DISK_BYTES = 2**16
MAX_DISK_BYTES = 2**50
"""1 PiB: far above what pools hold, and below where qcow2's tables no more fit into memory."""

SECTOR_BYTES = 512

_SERIAL = re.compile(r"[A-Za-z0-9_-]{1,20}")
_WWN = re.compile(r"[0-9a-f]{16}")
_VM_ONLY = ("bus", "cache", "discard", "io_thread", "ssd", "serial", "boot_order", "wwn", "detect_zeroes")


def faults(spec: GuestSpec, known: Known) -> Iterator[GugusError]:
    """Everything in `disks`, and what has to be told apart among them."""
    if not 1 <= len(spec.disks) <= MAX_DISKS:
        yield invalid("spec.disks", f"has {len(spec.disks)} disks; 1 to {MAX_DISKS}, the first boots.")
    names: set[str] = set()
    serials: set[str] = set()
    for index, disk in enumerate(spec.disks):
        at = f"spec.disks[{index}]"
        if message := validate.name(disk.name):
            yield invalid(f"{at}.name", f"{message}.")
        if disk.name in names:
            yield invalid(f"{at}.name", f'"{disk.name}" is the name of another disk of this guest.')
        names.add(disk.name)
        if (serial := disk.settings.serial) and serial in serials:
            yield invalid(f"{at}.settings.serial", f'"{serial}" is the serial number of another disk of this guest.')
        serials.add(serial)
        yield from _size(at, disk, container=spec.kind == GUEST_KIND_CONTAINER)
        yield from _pool(at, spec, disk, known)
        yield from _settings(f"{at}.settings", disk.settings)
        if spec.kind == GUEST_KIND_CONTAINER:
            yield from _in_container(at, index, disk)
        elif disk.settings.mount_path:
            yield invalid(f"{at}.settings.mount_path", "only containers mount disks themselves.")
    yield from _boot_order(spec)


def _size(at: str, disk: DiskSpec, *, container: bool) -> Iterator[GugusError]:
    yield from check.ranged(f"{at}.size_bytes", disk.size_bytes, MIN_DISK_BYTES, MAX_DISK_BYTES, show=format_size)
    if disk.size_bytes % SECTOR_BYTES:
        yield invalid(f"{at}.size_bytes", f"{disk.size_bytes} is no multiple of {SECTOR_BYTES}.")
    if not (container or disk.size_bytes or disk.image or disk.base_volume):
        yield invalid(f"{at}.image", "is not set, and an empty disk needs size_bytes.")


def _pool(at: str, spec: GuestSpec, disk: DiskSpec, known: Known) -> Iterator[GugusError]:
    pool = known.pools.get(disk.pool)
    if pool is None:
        yield absent("pool", f"{at}.pool", disk.pool, known.pools)
        return
    if pool.meta.deleting:
        yield invalid(f"{at}.pool", f'"{disk.pool}" is being deleted.')
    container = spec.kind == GUEST_KIND_CONTAINER
    if not _holds(pool, POOL_ABILITY_FILESYSTEM if container else POOL_ABILITY_BLOCK):
        what = "file systems of containers" if container else "disks of virtual machines"
        yield invalid(f"{at}.pool", f'"{disk.pool}" cannot hold {what}; choose another pool.')
    elif container and disk.size_bytes and (why := _cannot_limit(pool)):
        yield invalid(f"{at}.size_bytes", f"{format_size(disk.size_bytes)}: {why}")
    if disk.image:
        yield from _image(at, spec, disk, known)


def _holds(pool: Pool, ability: int) -> bool:
    """Return whether a node says that the pool can do something, or none says what it can do at all."""
    told = [state.abilities for state in pool.status.nodes.values() if state.abilities]
    return not told or any(ability in abilities for abilities in told)


def _cannot_limit(pool: Pool) -> str:
    """Return why a pool gives file systems no size, "" when some node's can, or none says what it can do."""
    told = [state for state in pool.status.nodes.values() if state.formats]
    why = [why_not(state, VOLUME_FORMAT_FILESYSTEM, POOL_ABILITY_QUOTA) for state in told]
    return why[0] if why and all(why) else ""


def _image(at: str, spec: GuestSpec, disk: DiskSpec, known: Known) -> Iterator[GugusError]:
    image = known.image(disk.pool, disk.image)
    if image is None:
        yield absent(
            "image", f"{at}.image", disk.image, [i.volume.name for i in known.images.values() if i.pool == disk.pool]
        )
        return
    if image.meta.deleting:
        yield invalid(f"{at}.image", f'"{disk.image}" is being deleted.')
    container = spec.kind == GUEST_KIND_CONTAINER
    wanted = (VOLUME_FORMAT_ARCHIVE,) if container else (VOLUME_FORMAT_QCOW2, VOLUME_FORMAT_RAW)
    if image.volume.format not in wanted:
        has = "an archive of a root file system" if container else "a disk image"
        yield invalid(f"{at}.image", f'"{disk.image}" is not {has}, which this kind of guest needs.')
    elif image.volume.kind == VOLUME_KIND_ISO:
        yield invalid(
            f"{at}.image", f'"{disk.image}" is an ISO image; it goes into a CD-ROM drive (virtual_machine.cdroms).'
        )
    elif disk.size_bytes and not container and disk.size_bytes < image.volume.size_bytes:
        least = format_size(image.volume.size_bytes)
        yield invalid(f"{at}.size_bytes", f"{format_size(disk.size_bytes)} is less than the image's {least}.")


def _settings(at: str, settings: DiskSettings) -> Iterator[GugusError]:
    yield from check.enum(f"{at}.bus", settings.bus, DiskBus)
    yield from check.enum(f"{at}.cache", settings.cache, DiskCache)
    yield from check.enum(f"{at}.discard", settings.discard, DiskDiscard)
    bus = DiskBus.Name(settings.bus).removeprefix("DISK_BUS_").lower() if settings.bus in DiskBus.values() else "?"
    if settings.io_thread and settings.bus not in (DISK_BUS_UNSPECIFIED, DISK_BUS_VIRTIO, DISK_BUS_SCSI):
        yield invalid(f"{at}.io_thread", f"a disk on {bus} cannot have one; only on virtio and scsi.")
    if settings.ssd and settings.bus not in (DISK_BUS_SCSI, DISK_BUS_SATA, DISK_BUS_IDE):
        yield invalid(f"{at}.ssd", "a virtio disk cannot say so; only on scsi, sata and ide.")
    if settings.serial:
        yield from check.matching(f"{at}.serial", settings.serial, _SERIAL, '1 to 20 letters, digits, "-" and "_"')
    if settings.wwn:
        yield from check.matching(f"{at}.wwn", settings.wwn, _WWN, "16 digits of hexadecimal, in small letters")
        if settings.bus not in (DISK_BUS_SCSI, DISK_BUS_SATA, DISK_BUS_IDE):
            yield invalid(f"{at}.wwn", "a virtio disk has none; only disks on scsi, sata and ide.")
    yield from check.ranged(f"{at}.boot_order", settings.boot_order, 1, MAX_BOOT_ORDER)
    yield from io_faults(f"{at}.limits", settings.limits)


def _in_container(at: str, index: int, disk: DiskSpec) -> Iterator[GugusError]:
    settings = disk.settings
    for name in _VM_ONLY:
        if getattr(settings, name):
            yield invalid(f"{at}.settings.{name}", "only disks of virtual machines have it.")
    for name in BURSTS:
        if getattr(settings.limits, name):
            yield invalid(f"{at}.settings.limits.{name}", "the kernel allows containers no bursts.")
    if index == 0:
        if settings.mount_path:
            yield invalid(f"{at}.settings.mount_path", "the first disk is the root file system, it needs no path.")
        if settings.read_only:
            yield invalid(f"{at}.settings.read_only", "say container.read_only_root of a root file system.")
    elif not settings.mount_path:
        yield invalid(
            f"{at}.settings.mount_path", "is not set; say where the container is to mount it, like /srv/data."
        )
    else:
        yield from check.path(f"{at}.settings.mount_path", settings.mount_path)


def _boot_order(spec: GuestSpec) -> Iterator[GugusError]:
    """No two devices have the same place in the boot order."""
    places: dict[int, str] = {}
    devices = [(f"spec.disks[{i}].settings", disk.settings.boot_order) for i, disk in enumerate(spec.disks)]
    devices += [(f"spec.nics[{i}].settings", nic.settings.boot_order) for i, nic in enumerate(spec.nics)]
    devices += [
        (f"spec.virtual_machine.cdroms[{i}]", cd.boot_order) for i, cd in enumerate(spec.virtual_machine.cdroms)
    ]
    for at, place in devices:
        if place and place in places:
            yield invalid(f"{at}.boot_order", f"{place} is the place of {places[place]}, too.")
        places.setdefault(place, at)
