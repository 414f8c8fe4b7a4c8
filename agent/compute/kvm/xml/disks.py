"""Disks, CD-ROM drives and the seed of a virtual machine."""

import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from gugus.agent.v1 import machine_pb2, resources_pb2, volume_pb2

from agent.compute.definitions import Definition
from agent.compute.hypervisor import AttachedDisk
from agent.compute.kvm.xml import ownership
from agent.compute.kvm.xml.run import Run, alias, pc, text

MAX_DISKS = 24
"""Drive letters a to z, less the seed's and one to spare."""

SERIAL_CHARS = 20
"""Longest serial number of a virtio disk (VIRTIO_BLK_ID_BYTES)."""

FORMATS = {volume_pb2.VOLUME_FORMAT_QCOW2: "qcow2", volume_pb2.VOLUME_FORMAT_RAW: "raw"}
BUSES = {
    resources_pb2.DISK_BUS_UNSPECIFIED: "virtio",
    resources_pb2.DISK_BUS_VIRTIO: "virtio",
    resources_pb2.DISK_BUS_SCSI: "scsi",
    resources_pb2.DISK_BUS_SATA: "sata",
    resources_pb2.DISK_BUS_IDE: "ide",
}
DEFAULT_BURST_S = 1
_CACHES = {
    resources_pb2.DISK_CACHE_NONE: "none",
    resources_pb2.DISK_CACHE_WRITEBACK: "writeback",
    resources_pb2.DISK_CACHE_WRITETHROUGH: "writethrough",
    resources_pb2.DISK_CACHE_DIRECTSYNC: "directsync",
    resources_pb2.DISK_CACHE_UNSAFE: "unsafe",
}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_PREFIXES = {"virtio": "vd", "scsi": "sd", "sata": "sd", "ide": "hd"}
_SSD_RPM = "1"
"""libvirt's word for a disk that does not turn (the SCSI standard's)."""

FIRST_SCSI = 0
"""Index of the SCSI controller that disks without a thread of their own share."""


def bus_of(disk: AttachedDisk) -> str:
    """Return libvirt's name of a disk's bus."""
    return BUSES.get(disk.spec.settings.bus, "virtio")


def io_threads(definition: Definition) -> list[str]:
    """Return the names of the disks that have a thread of their own, in order: the first has thread 1."""
    return [d.spec.name for d in definition.disks if d.spec.settings.io_thread and bus_of(d) in ("virtio", "scsi")]


def add(devices: ET.Element, definition: Definition, run: Run) -> None:
    """Add the controllers and all drives."""
    threads = {name: number for number, name in enumerate(io_threads(definition), 1)}
    taken: set[str] = set()
    if any(bus_of(disk) == "scsi" and disk.spec.name not in threads for disk in definition.disks):
        devices.append(scsi_controller(FIRST_SCSI, 0))
    boot_orders = boot_order(definition)
    for disk in definition.disks:
        thread = threads.get(disk.spec.name, 0)
        if thread and bus_of(disk) == "scsi":
            devices.append(scsi_controller(thread, thread))
        cache = run.caches.get(disk.path, "writeback")
        target = free_target(bus_of(disk), taken)
        taken.add(target)
        devices.append(disk_element(disk, target, cache, thread, boot_orders.get(disk.spec.name, 0)))
    if run.seed is not None:
        _seed(devices, run.seed, taken)
    for drive in definition.spec.virtual_machine.cdroms:
        target = free_target("ide" if pc(definition) else "sata", taken)
        taken.add(target)
        devices.append(cdrom_element(drive, target, definition.files.discs.get(drive.name)))


def boot_order(definition: Definition) -> Mapping[str, int]:
    """Return which disks are booted from: those that say so, else the first one, after all other devices that do."""
    told = {d.spec.name: d.spec.settings.boot_order for d in definition.disks if d.spec.settings.boot_order}
    if told:
        return told
    others = [*(n.spec.settings.boot_order for n in definition.nics)]
    others += [c.boot_order for c in definition.spec.virtual_machine.cdroms]
    return {definition.disks[0].spec.name: max([0, *others]) + 1}


def disk_element(disk: AttachedDisk, target: str, cache: str, thread: int, boot: int) -> ET.Element:
    """Return a disk. thread: its I/O thread, 0 for none; a SCSI disk with one is on the controller of that number."""
    settings, bus = disk.spec.settings, bus_of(disk)
    element = ET.Element("disk", type="file", device="disk")
    discard = "ignore" if settings.discard == resources_pb2.DISK_DISCARD_IGNORE else "unmap"
    driver = ET.SubElement(element, "driver", name="qemu", type=FORMATS[disk.format])
    driver.attrib |= {"cache": _CACHES.get(settings.cache, cache), "discard": discard}
    if settings.detect_zeroes:
        driver.set("detect_zeroes", "on" if discard == "ignore" else "unmap")
    if thread and bus == "virtio":
        driver.set("iothread", str(thread))
    source = ET.SubElement(element, "source", file=str(disk.path))
    where = ET.SubElement(element, "target", dev=target, bus=bus)
    if settings.ssd and bus != "virtio":
        where.set("rotation_rate", _SSD_RPM)
    limits(element, settings.limits)
    if disk.read_only or settings.read_only:
        ET.SubElement(element, "readonly")
    else:
        ownership.settle(source)
    text(element, "serial", (settings.serial or disk.spec.name)[:SERIAL_CHARS])
    if settings.wwn:
        text(element, "wwn", settings.wwn)
    if boot:
        ET.SubElement(element, "boot", order=str(boot))
    alias(element, "disk", disk.spec.name)
    if thread and bus == "scsi":
        ET.SubElement(element, "address", type="drive", controller=str(thread), bus="0", target="0", unit="0")
    return element


def cdrom_element(drive: machine_pb2.CdromSpec, target: str, disc: Path | None) -> ET.Element:
    """Return a CD-ROM drive, with a disc in it or empty."""
    element = ET.Element("disk", type="file", device="cdrom")
    ET.SubElement(element, "driver", name="qemu", type="raw")
    if disc is not None:
        ET.SubElement(element, "source", file=str(disc))
    ET.SubElement(element, "target", dev=target, bus="ide" if target.startswith("hd") else "sata")
    ET.SubElement(element, "readonly")
    if drive.boot_order:
        ET.SubElement(element, "boot", order=str(drive.boot_order))
    alias(element, "cd", drive.name)
    return element


def scsi_controller(index: int, thread: int) -> ET.Element:
    """Return a virtio-scsi controller, with an I/O thread or (0) without."""
    controller = ET.Element("controller", type="scsi", index=str(index), model="virtio-scsi")
    if thread:
        ET.SubElement(controller, "driver", iothread=str(thread))
    return controller


def limits(element: ET.Element, wanted: resources_pb2.IoLimits) -> None:
    """Add the limits of a disk, if it has any."""
    numbers = tuning(wanted)
    if any(numbers.values()):
        tune = ET.SubElement(element, "iotune")
        for name, value in numbers.items():
            if value:
                text(tune, name, str(value))


def tuning(wanted: resources_pb2.IoLimits) -> dict[str, int]:
    """Return limits by libvirt's names, both of its XML and of virDomainSetBlockIoTune; 0 is none."""
    values = dict(_limits(wanted))
    for name in [name for name in values if name.endswith("_max")]:
        values[f"{name}_length"] = (wanted.burst_s or DEFAULT_BURST_S) if values[name] else 0
    return values


def _limits(wanted: resources_pb2.IoLimits) -> Iterator[tuple[str, int]]:
    for ours, libvirts in (("bytes_per_s", "bytes_sec"), ("iops", "iops_sec")):
        for way in ("read", "write"):
            limit = getattr(wanted, f"{way}_{ours}")
            yield f"{way}_{libvirts}", limit
            burst = getattr(wanted, f"{way}_burst_{ours}")
            yield f"{way}_{libvirts}_max", burst if limit else 0  # QEMU refuses a burst above no limit


def _seed(devices: ET.Element, seed: Path, taken: Collection[str]) -> None:
    """The seed is a read-only virtio disk: cloud kernels have no driver for the CD-ROM drives of a PC."""
    element = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(element, "driver", name="qemu", type="raw")
    ET.SubElement(element, "source", file=str(seed))
    ET.SubElement(element, "target", dev=free_target("virtio", taken, last=True), bus="virtio")
    ET.SubElement(element, "readonly")
    alias(element, "seed", "0")


def free_target(bus: str, taken: Collection[str], *, last: bool = False) -> str:
    """Return a drive name of a bus that is not taken: the first one, or the last."""
    prefix = _PREFIXES[bus]
    letters = reversed(_LETTERS) if last else iter(_LETTERS)
    return next(f"{prefix}{letter}" for letter in letters if f"{prefix}{letter}" not in taken)
