"""Devices of the host that guests are given: whether they are there, and whether they can be given away alone.

A PCI device goes with its whole IOMMU group, or not at all: its neighbours could reach the guest's memory through it
(Linux, Documentation/driver-api/vfio.rst).
"""

from collections.abc import Collection
from pathlib import Path

from gugus.agent.v1 import machine_pb2

from common.errors import GugusError, precondition, several

SYS = Path("/sys")
BRIDGE_CLASS = "0x0604"
"""PCI-to-PCI bridges stay with the host: VFIO takes no part of them."""

HARMLESS_DRIVERS = frozenset({"vfio-pci", "pci-stub"})
"""Drivers that do nothing with a device: a neighbour that has one is no danger."""


def check(machine: machine_pb2.VirtualMachineSpec, sys: Path = SYS) -> dict[str, tuple[int, int]]:
    """Return the places of USB devices by port. Raises PCI_DEVICE_MISSING, IOMMU_MISSING, IOMMU_GROUP, USB_DEVICE_MISSING."""
    given = {device.address for device in machine.pci_devices}
    errors = [error for address in sorted(given) if (error := _pci_problem(address, given, sys)) is not None]
    places: dict[str, tuple[int, int]] = {}
    present = usb_devices(sys)
    for usb in machine.usb_devices:
        if usb.port in present:
            places[usb.port] = present[usb.port][1]
        elif usb.port or usb.id not in {ids for ids, _ in present.values()}:
            errors.append(_usb_missing(usb, {port: ids for port, (ids, _) in present.items()}))
    if errors:
        raise several(errors)
    return places


def group_of(address: str, sys: Path = SYS) -> list[str] | None:
    """Return the devices of a PCI device's IOMMU group, bridges apart, in order; None without an IOMMU."""
    folder = sys / "bus/pci/devices" / address / "iommu_group/devices"
    if not folder.is_dir():
        return None
    return sorted(entry.name for entry in folder.iterdir() if not _is_bridge(sys / "bus/pci/devices" / entry.name))


def has_iommu(sys: Path = SYS) -> bool:
    """Whether the host has an IOMMU in use."""
    folder = sys / "kernel/iommu_groups"
    return folder.is_dir() and any(folder.iterdir())


def usb_devices(sys: Path = SYS) -> dict[str, tuple[str, tuple[int, int]]]:
    """Return the USB devices of the host by port: vendor and product, and bus and device number."""
    found: dict[str, tuple[str, tuple[int, int]]] = {}
    folder = sys / "bus/usb/devices"
    for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
        try:
            ids = f"{_word(entry / 'idVendor')}:{_word(entry / 'idProduct')}"
            found[entry.name] = (ids, (int(_word(entry / "busnum")), int(_word(entry / "devnum"))))
        except (OSError, ValueError):  # an interface of a device, or one that was just pulled out
            continue
    return found


def _pci_problem(address: str, given: Collection[str], sys: Path) -> GugusError | None:
    if not (sys / "bus/pci/devices" / address).exists():
        return precondition(
            "PCI_DEVICE_MISSING",
            f"this node has no PCI device {address}.",
            remedy="`lspci -D` lists what it has.",
            subject=address,
        )
    group = group_of(address, sys)
    if group is None:
        return precondition(
            "IOMMU_MISSING",
            f"PCI device {address} cannot be given to a guest: this node has no IOMMU in use.",
            remedy="Switch VT-d or AMD-Vi on in the firmware, and boot with intel_iommu=on where the kernel needs it.",
            subject=address,
        )
    others = [other for other in group if other not in given and _driver(other, sys) not in HARMLESS_DRIVERS]
    if not others:
        return None
    named = ", ".join(f"{other} ({_driver(other, sys) or 'no driver'})" for other in others)
    return precondition(
        "IOMMU_GROUP",
        f"PCI device {address} cannot be given to a guest alone: its IOMMU group has {named}, too.",
        remedy="Give the guest all devices of the group, bind the others to vfio-pci, or use another slot.",
        subject=address,
    )


def _usb_missing(usb: machine_pb2.UsbDevice, present: dict[str, str]) -> GugusError:
    there = ", ".join(f"{ids} at {port}" for port, ids in present.items()) or "none"
    return precondition(
        "USB_DEVICE_MISSING",
        f"this node has no USB device {usb.id or usb.port}; it has: {there}.",
        remedy="Plug it in, or correct the guest's usb_devices.",
        subject=usb.id or usb.port,
    )


def _is_bridge(device: Path) -> bool:
    try:
        return _word(device / "class").startswith(BRIDGE_CLASS)
    except OSError:
        return False


def _driver(address: str, sys: Path) -> str:
    link = sys / "bus/pci/devices" / address / "driver"
    return link.resolve().name if link.exists() else ""


def _word(path: Path) -> str:
    return path.read_text().strip()
