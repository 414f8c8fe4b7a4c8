"""Domain XML: a guest as libvirt is told to run it. Pure: from values to text.

Invariant: a domain that is ours says so in its metadata; the XML is made for one run (transient domain) and never read
back as a definition. See https://libvirt.org/formatdomain.html.
"""

import platform
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gugus.agent.v1 import volume_pb2

from agent.compute.definitions import Definition
from agent.compute.hypervisor import AttachedDisk
from common.errors import invalid

NAMESPACE = "https://gugus.dev/xmlns/guest/1"
"""XML namespace of our element in a domain's metadata."""

DEFAULT_MACHINE = "q35"
PERIOD_US = 100_000
"""Length of a CPU scheduling period in which the quota is counted, in microseconds (the kernel's default)."""

TAP_NAME_CHARS = 15
"""Longest name of a Linux network interface (IFNAMSIZ less the final zero)."""

MAX_DISKS = 24
"""Drive letters a to z, less the seed's and one to spare."""

SERIAL_CHARS = 20
"""Longest serial number of a virtio disk (VIRTIO_BLK_ID_BYTES)."""

_BALLOON_PERIOD_S = "10"
_DISK_FORMATS = {volume_pb2.VOLUME_FORMAT_QCOW2: "qcow2", volume_pb2.VOLUME_FORMAT_RAW: "raw"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run of a guest adds to its definition. `caches` maps a disk's path to QEMU's cache mode."""

    generation: int
    mode: str
    domain_type: str
    seed: Path | None
    console: Path
    caches: Mapping[Path, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mark:
    """What the metadata of a domain of ours says."""

    uid: str
    generation: int
    mode: str


def build(definition: Definition, run: Run) -> str:
    """Return the XML of a domain. Raises INVALID_ARGUMENT for a spec that cannot be run."""
    spec = definition.spec
    check(definition)
    domain = ET.Element("domain", type=run.domain_type)
    _text(domain, "name", spec.name)
    if spec.uid:
        _text(domain, "uuid", spec.uid)
    metadata = ET.SubElement(domain, "metadata")
    ET.register_namespace("gugus", NAMESPACE)
    mark = {"uid": spec.uid, "generation": str(run.generation), "mode": run.mode}
    ET.SubElement(metadata, f"{{{NAMESPACE}}}guest", mark)
    _text(domain, "memory", str(spec.memory_bytes), unit="b")
    _text(domain, "vcpu", str(spec.cpus), placement="static")
    if spec.cpu_limit_milli:
        tune = ET.SubElement(domain, "cputune")
        _text(tune, "global_period", str(PERIOD_US))
        _text(tune, "global_quota", str(PERIOD_US * spec.cpu_limit_milli // 1000))
    _system(domain, spec.virtual_machine.machine or DEFAULT_MACHINE, run)
    devices = ET.SubElement(domain, "devices")
    for index, disk in enumerate(definition.disks):
        _disk(devices, disk, index, run.caches.get(disk.path, "writeback"))
    if run.seed is not None:
        _seed(devices, run.seed, len(definition.disks))
    for index, nic in enumerate(definition.nics):
        interface = ET.SubElement(devices, "interface", type="bridge")
        ET.SubElement(interface, "source", bridge=nic.bridge)
        ET.SubElement(interface, "mac", address=nic.spec.mac)
        ET.SubElement(interface, "target", dev=tap_name(spec.id, index))
        ET.SubElement(interface, "model", type="virtio")
    _fittings(devices, run.console)
    return ET.tostring(domain, encoding="unicode")


def check(definition: Definition) -> None:
    """Raise INVALID_ARGUMENT for a spec that this driver can never run."""
    spec = definition.spec
    if not 1 <= len(definition.disks) <= MAX_DISKS:
        what = f"a virtual machine has 1 to {MAX_DISKS} disks, this one {len(definition.disks)}."
        raise invalid("spec.disks", what, remedy="Give it a boot disk.")
    for index, disk in enumerate(definition.disks):
        if disk.format not in _DISK_FORMATS:
            what = f'volume "{disk.spec.volume}" is no disk but {volume_pb2.VolumeFormat.Name(disk.format)}.'
            raise invalid(f"spec.disks[{index}].volume", what, remedy="Virtual machines need QCOW2 or RAW volumes.")
    if spec.cpus < 1:
        raise invalid("spec.cpus", "a virtual machine needs at least 1 CPU.")


def tap_name(guest_id: int, index: int) -> str:
    """Return the host's name of a guest's network interface: unique, for ids are."""
    return f"gg{guest_id}-{index}"[:TAP_NAME_CHARS]


def read_mark(metadata_xml: str) -> Mark:
    """Read the element that `build` put in. Raises ValueError when it is not ours."""
    try:
        element = ET.fromstring(metadata_xml)  # noqa: S314  (libvirt's own output)
        return Mark(element.get("uid", ""), int(element.get("generation", "0")), element.get("mode", ""))
    except ET.ParseError as error:
        raise ValueError(f"not the metadata of a guest: {error}") from error


def _system(domain: ET.Element, machine: str, run: Run) -> None:
    system = ET.SubElement(domain, "os")
    _text(system, "type", "hvm", arch=platform.machine(), machine=machine)
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if run.domain_type == "kvm":
        ET.SubElement(domain, "cpu", mode="host-passthrough", check="none", migratable="on")
    elif run.domain_type == "qemu":
        ET.SubElement(domain, "cpu", mode="maximum", check="none")
    ET.SubElement(domain, "clock", offset="utc")
    _text(domain, "on_poweroff", "destroy")
    _text(domain, "on_reboot", "restart")
    _text(domain, "on_crash", "destroy")


def _disk(devices: ET.Element, disk: AttachedDisk, index: int, cache: str) -> None:
    element = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(element, "driver", name="qemu", type=_DISK_FORMATS[disk.format], cache=cache, discard="unmap")
    ET.SubElement(element, "source", file=str(disk.path))
    ET.SubElement(element, "target", dev=_drive(index), bus="virtio")
    _text(element, "serial", disk.spec.name[:SERIAL_CHARS])
    if disk.read_only:
        ET.SubElement(element, "readonly")
    if index == 0:
        ET.SubElement(element, "boot", order="1")


def _seed(devices: ET.Element, seed: Path, index: int) -> None:
    """The seed is a read-only virtio disk: cloud kernels have no driver for the CD-ROM drives of a PC."""
    element = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(element, "driver", name="qemu", type="raw")
    ET.SubElement(element, "source", file=str(seed))
    ET.SubElement(element, "target", dev=_drive(index), bus="virtio")
    ET.SubElement(element, "readonly")


def _fittings(devices: ET.Element, console: Path) -> None:
    serial = ET.SubElement(devices, "serial", type="pty")
    ET.SubElement(serial, "log", file=str(console), append="off")
    ET.SubElement(serial, "target", port="0")
    rng = ET.SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")
    balloon = ET.SubElement(devices, "memballoon", model="virtio")
    ET.SubElement(balloon, "stats", period=_BALLOON_PERIOD_S)
    ET.SubElement(devices, "controller", type="usb", model="none")
    video = ET.SubElement(devices, "video")
    ET.SubElement(video, "model", type="none")


def _drive(index: int) -> str:
    return f"vd{chr(ord('a') + index)}"


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
