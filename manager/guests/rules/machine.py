"""Hardware of virtual machines: machine type, firmware, screen, CD-ROMs, devices of the host, watchdog and small things."""

import re
from collections.abc import Iterator

from gugus.agent.v1.machine_pb2 import (
    FIRMWARE_KIND_UEFI,
    FirmwareKind,
    VirtualMachineSpec,
    WatchdogAction,
)
from gugus.agent.v1.resources_pb2 import DISK_BUS_IDE
from gugus.agent.v1.volume_pb2 import VOLUME_FORMAT_RAW, VOLUME_KIND_ISO
from gugus.cluster.v1.guest_pb2 import GuestSpec

from common import validate
from common.errors import GugusError, invalid
from manager.guests.known import Known, absent
from manager.guests.rules import check
from manager.guests.rules.disks import MAX_BOOT_ORDER

DISPLAYS = ("none", "std", "virtio", "qxl", "cirrus", "vmware", "ramfb")
AUDIOS = ("ich9", "ac97")
WATCHDOGS = ("i6300esb", "ib700")
SMBIOS_KEYS = ("manufacturer", "product", "version", "serial", "sku", "family")

MAX_CDROMS = 4
MAX_IDE = 3
"""IDE has four places, one of which is the first-boot disc's."""

MAX_SERIAL_PORTS = 3
MAX_HOST_DEVICES = 16
MIN_VIDEO_MIB, MAX_VIDEO_MIB = 4, 512
MAX_SMBIOS_CHARS = 64

_MACHINE = re.compile(r"(pc|q35|pc-i440fx|pc-q35)(-[0-9]{1,2}\.[0-9]{1,2})?")
_USB_ID = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}")
_USB_PORT = re.compile(r"[0-9]{1,3}-[0-9]{1,3}(\.[0-9]{1,3}){0,5}")
_PCI = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

AT = "spec.virtual_machine"


def faults(spec: GuestSpec, known: Known) -> Iterator[GugusError]:
    """Everything in `virtual_machine` that `cpu` and `memory` do not look at."""
    machine = spec.virtual_machine
    if machine.machine:
        yield from check.matching(f"{AT}.machine", machine.machine, _MACHINE, 'a machine type like "pc-q35-7.2"')
    yield from _ide(spec)
    yield from _firmware(machine)
    yield from _display(machine)
    yield from _cdroms(spec, known)
    yield from _usb(machine)
    yield from _pci(machine)
    yield from check.one_of(f"{AT}.watchdog.model", machine.watchdog.model, WATCHDOGS)
    yield from check.enum(f"{AT}.watchdog.action", machine.watchdog.action, WatchdogAction)
    if machine.watchdog.action and not machine.watchdog.model:
        yield invalid(f"{AT}.watchdog.action", f"needs a watchdog: model is one of {', '.join(WATCHDOGS)}.")
    yield from check.ranged(f"{AT}.serial_ports", machine.serial_ports, 1, MAX_SERIAL_PORTS)
    yield from _smbios(machine)
    if machine.vm_generation_id:
        yield from check.matching(f"{AT}.vm_generation_id", machine.vm_generation_id, _UUID, "a UUID in lower case")


def is_q35(machine: str) -> bool:
    """Return whether a machine type is a q35; the default is one."""
    return not machine or "q35" in machine


def _ide(spec: GuestSpec) -> Iterator[GugusError]:
    ide = [index for index, disk in enumerate(spec.disks) if disk.settings.bus == DISK_BUS_IDE]
    if is_q35(spec.virtual_machine.machine):
        for index in ide:
            text = "ide: the machine type q35 has no IDE; use sata, or a machine type pc-i440fx-..."
            yield invalid(f"spec.disks[{index}].settings.bus", text)
    elif len(ide) + len(spec.virtual_machine.cdroms) > MAX_IDE:
        text = f"{len(ide)} IDE disks and {len(spec.virtual_machine.cdroms)} CD-ROM drives; at most {MAX_IDE} together."
        yield invalid("spec.disks", text)


def _firmware(machine: VirtualMachineSpec) -> Iterator[GugusError]:
    firmware = machine.firmware
    yield from check.enum(f"{AT}.firmware.kind", firmware.kind, FirmwareKind)
    uefi = firmware.kind == FIRMWARE_KIND_UEFI
    if firmware.secure_boot and not uefi:
        yield invalid(f"{AT}.firmware.secure_boot", "needs UEFI firmware (--uefi).")
    if firmware.secure_boot and not is_q35(machine.machine):
        yield invalid(f"{AT}.firmware.secure_boot", f"true needs a machine type q35, not {machine.machine}.")
    if machine.boot_into_setup and not uefi:
        yield invalid(f"{AT}.boot_into_setup", "needs UEFI firmware (--uefi); a BIOS has no such setup.")


def _display(machine: VirtualMachineSpec) -> Iterator[GugusError]:
    display = machine.display
    yield from check.one_of(f"{AT}.display.model", display.model, DISPLAYS)
    yield from check.ranged(f"{AT}.display.memory_mib", display.memory_mib, MIN_VIDEO_MIB, MAX_VIDEO_MIB)
    screen = display.model not in ("", "none")
    for name in ("memory_mib", "spice"):
        if getattr(display, name) and not screen:
            yield invalid(f"{AT}.display.{name}", f"needs a screen: model is one of {', '.join(DISPLAYS[1:])}.")
    yield from check.one_of(f"{AT}.audio", machine.audio, AUDIOS)
    if machine.audio and not display.spice:
        yield invalid(f"{AT}.audio", f'"{machine.audio}" is heard through SPICE; set display.spice.')


def _cdroms(spec: GuestSpec, known: Known) -> Iterator[GugusError]:
    cdroms = spec.virtual_machine.cdroms
    yield from check.at_most(f"{AT}.cdroms", len(cdroms), MAX_CDROMS, "drives")
    names = {disk.name for disk in spec.disks}
    for index, cdrom in enumerate(cdroms):
        at = f"{AT}.cdroms[{index}]"
        if message := validate.name(cdrom.name):
            yield invalid(f"{at}.name", f"{message}.")
        if cdrom.name in names:
            yield invalid(f"{at}.name", f'"{cdrom.name}" is the name of another disk or drive of this guest.')
        names.add(cdrom.name)
        yield from check.ranged(f"{at}.boot_order", cdrom.boot_order, 1, MAX_BOOT_ORDER)
        if bool(cdrom.pool) != bool(cdrom.image):
            missing = "image" if cdrom.pool else "pool"
            yield invalid(f"{at}.{missing}", "is not set; a disc is an image in a pool, an empty drive has neither.")
        elif cdrom.pool not in known.pools and cdrom.pool:
            yield absent("pool", f"{at}.pool", cdrom.pool, known.pools)
        elif cdrom.pool:
            yield from _disc(at, cdrom.pool, cdrom.image, known)


def _disc(at: str, pool: str, name: str, known: Known) -> Iterator[GugusError]:
    image = known.image(pool, name)
    if image is None:
        isos = [i.volume.name for i in known.images.values() if i.pool == pool and i.volume.format == VOLUME_FORMAT_RAW]
        yield absent("image", f"{at}.image", name, isos)
    elif image.meta.deleting:
        yield invalid(f"{at}.image", f'"{name}" is being deleted.')
    elif image.volume.kind != VOLUME_KIND_ISO and image.volume.format != VOLUME_FORMAT_RAW:
        yield invalid(f"{at}.image", f'"{name}" is no ISO image, which a CD-ROM drive needs.')


def _usb(machine: VirtualMachineSpec) -> Iterator[GugusError]:
    yield from check.at_most(f"{AT}.usb_devices", len(machine.usb_devices), MAX_HOST_DEVICES, "devices")
    seen: set[str] = set()
    for index, device in enumerate(machine.usb_devices):
        at = f"{AT}.usb_devices[{index}]"
        if bool(device.id) == bool(device.port):
            yield invalid(f"{at}.id", "say either id or port of a USB device.")
        elif device.id:
            yield from check.matching(f"{at}.id", device.id, _USB_ID, 'vendor and product like "046d:c52b"')
        else:
            yield from check.matching(f"{at}.port", device.port, _USB_PORT, 'bus and port like "1-2.3"')
        if (what := device.id or device.port) in seen:
            yield invalid(f"{at}.{'id' if device.id else 'port'}", f'"{what}" is given twice.')
        seen.add(what)


def _pci(machine: VirtualMachineSpec) -> Iterator[GugusError]:
    yield from check.at_most(f"{AT}.pci_devices", len(machine.pci_devices), MAX_HOST_DEVICES, "devices")
    seen: set[str] = set()
    for index, device in enumerate(machine.pci_devices):
        at = f"{AT}.pci_devices[{index}]"
        yield from check.matching(f"{at}.address", device.address, _PCI, 'a PCI address like "0000:01:00.0"')
        if device.address in seen:
            yield invalid(f"{at}.address", f'"{device.address}" is given twice.')
        seen.add(device.address)
        if device.pcie and not is_q35(machine.machine):
            yield invalid(f"{at}.pcie", f"true needs a machine type q35, not {machine.machine}.")
    gpus = [index for index, device in enumerate(machine.pci_devices) if device.primary_gpu]
    for index in gpus[1:]:
        yield invalid(
            f"{AT}.pci_devices[{index}].primary_gpu", f"pci_devices[{gpus[0]}] is the guest's screen already."
        )


def _smbios(machine: VirtualMachineSpec) -> Iterator[GugusError]:
    for key, value in sorted(machine.smbios.items()):
        yield from check.one_of(f"{AT}.smbios[{key[:20]}]", key or "?", SMBIOS_KEYS)
        if len(value) > MAX_SMBIOS_CHARS or not value.isprintable():
            text = f"{check.shown(value)} is not at most {MAX_SMBIOS_CHARS} printable characters."
            yield invalid(f"{AT}.smbios[{key[:20]}]", text)
