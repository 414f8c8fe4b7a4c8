"""Everything beside disks and interfaces: ports, consoles, passed-through devices, watchdog, random numbers, TPM, sound."""

import xml.etree.ElementTree as ET
from collections.abc import Mapping

from gugus.agent.v1 import machine_pb2

from agent.compute.definitions import Definition
from agent.compute.kvm.xml import display, memory
from agent.compute.kvm.xml.run import Run, alias, pc, text

SPARE_PORTS = 8
"""PCI Express ports that a q35 machine has free, so that disks and interfaces can be plugged in while it runs."""

GUEST_AGENT_CHANNEL = "org.qemu.guest_agent.0"
WATCHDOG_ACTIONS = {
    machine_pb2.WATCHDOG_ACTION_UNSPECIFIED: "reset",
    machine_pb2.WATCHDOG_ACTION_RESET: "reset",
    machine_pb2.WATCHDOG_ACTION_SHUTDOWN: "shutdown",
    machine_pb2.WATCHDOG_ACTION_POWEROFF: "poweroff",
    machine_pb2.WATCHDOG_ACTION_PAUSE: "pause",
    machine_pb2.WATCHDOG_ACTION_NONE: "none",
}


def add(devices: ET.Element, definition: Definition, run: Run) -> None:
    """Add all of them."""
    machine = definition.spec.virtual_machine
    _consoles(devices, machine, run)
    if machine.guest_agent:
        channel = ET.SubElement(devices, "channel", type="unix")
        ET.SubElement(channel, "target", type="virtio", name=GUEST_AGENT_CHANNEL)
    if not machine.no_rng:
        rng = ET.SubElement(devices, "rng", model="virtio")
        text(rng, "backend", "/dev/urandom", model="random")
    if machine.watchdog.model:
        ET.SubElement(
            devices, "watchdog", model=machine.watchdog.model, action=WATCHDOG_ACTIONS[machine.watchdog.action]
        )
    if run.domain_type != "test":
        ET.SubElement(devices, "panic", model="isa")
    if machine.tpm:
        tpm = ET.SubElement(devices, "tpm", model="tpm-crb")
        ET.SubElement(tpm, "backend", type="emulator", version="2.0", persistent_state="yes")
    memory.add_balloon(devices, definition)
    _host_devices(devices, machine, run)
    display.add(devices, definition)
    _ports(devices, definition)


def _consoles(devices: ET.Element, machine: machine_pb2.VirtualMachineSpec, run: Run) -> None:
    serial = ET.SubElement(devices, "serial", type="pty")
    ET.SubElement(serial, "log", file=str(run.console), append="off")
    ET.SubElement(serial, "target", port="0")
    for port in range(1, machine.serial_ports + 1):
        ET.SubElement(ET.SubElement(devices, "serial", type="pty"), "target", port=str(port))
    if machine.virtio_console:
        ET.SubElement(ET.SubElement(devices, "console", type="pty"), "target", type="serial", port="0")
        ET.SubElement(ET.SubElement(devices, "console", type="pty"), "target", type="virtio", port="1")


def _host_devices(devices: ET.Element, machine: machine_pb2.VirtualMachineSpec, run: Run) -> None:
    for usb in machine.usb_devices:
        devices.append(usb_element(usb, run.usb_places))
    for pci in machine.pci_devices:
        devices.append(pci_element(pci))


def usb_name(usb: machine_pb2.UsbDevice) -> str:
    """Return the name that a USB device has as an alias."""
    return (usb.id or usb.port).replace(":", "-").replace(".", "_")


def pci_name(pci: machine_pb2.PciDevice) -> str:
    """Return the name that a PCI device has as an alias."""
    return pci.address.replace(":", "-").replace(".", "_")


def usb_element(usb: machine_pb2.UsbDevice, places: Mapping[str, tuple[int, int]]) -> ET.Element:
    """Return a USB device of the host, by what it is or by its present place (bus and number, by port)."""
    device = ET.Element("hostdev", mode="subsystem", type="usb", managed="yes")
    source = ET.SubElement(device, "source")
    if usb.id:
        vendor, _, product = usb.id.partition(":")
        ET.SubElement(source, "vendor", id=f"0x{vendor}")
        ET.SubElement(source, "product", id=f"0x{product}")
    else:
        bus, number = places[usb.port]
        ET.SubElement(source, "address", bus=str(bus), device=str(number))
    alias(device, "usb", usb_name(usb))
    return device


def pci_element(pci: machine_pb2.PciDevice) -> ET.Element:
    """Return a PCI device of the host."""
    domain, bus, rest = pci.address.split(":")
    slot, _, function = rest.partition(".")
    device = ET.Element("hostdev", mode="subsystem", type="pci", managed="yes")
    source = ET.SubElement(device, "source")
    place = {"domain": f"0x{domain}", "bus": f"0x{bus}", "slot": f"0x{slot}", "function": f"0x{function}"}
    ET.SubElement(source, "address", place)
    if pci.no_rom:
        ET.SubElement(device, "rom", enabled="no")
    alias(device, "pci", pci_name(pci))
    return device


def _ports(devices: ET.Element, definition: Definition) -> None:
    """Add PCI Express ports to plug into: as many as are taken at the start, and some."""
    if pc(definition) or definition.spec.virtual_machine.no_hotplug:
        return
    taken = sum(1 for each in devices if each.tag in ("disk", "interface", "hostdev", "rng", "memballoon", "channel"))
    ET.SubElement(devices, "controller", type="pci", model="pcie-root")
    for _ in range(taken + SPARE_PORTS):
        ET.SubElement(devices, "controller", type="pci", model="pcie-root-port")
