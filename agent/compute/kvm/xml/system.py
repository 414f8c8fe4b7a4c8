"""What surrounds the CPUs: machine type, firmware, SMBIOS, clock, and what becomes of the domain when the guest ends."""

import platform
import xml.etree.ElementTree as ET

from gugus.agent.v1 import machine_pb2, resources_pb2

from agent.compute.definitions import Definition
from agent.compute.kvm.xml.ownership import settle
from agent.compute.kvm.xml.run import Run, text

DEFAULT_MACHINE = "q35"
SETUP_TIMEOUT_MS = 10_000
"""How long the firmware waits for the key that opens its setup, which the driver presses meanwhile."""

SMBIOS_FIELDS = ("manufacturer", "product", "version", "serial", "sku", "family")


def add(domain: ET.Element, definition: Definition, run: Run) -> None:
    """Add <genid>, <os>, <sysinfo>, <features>, <clock> and what is done at each kind of end."""
    machine = definition.spec.virtual_machine
    if run.domain_type != "test":
        text(domain, "genid", machine.vm_generation_id or definition.spec.uid)
    _os(domain, machine, run)
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if run.firmware is not None and run.firmware.secure:
        ET.SubElement(features, "smm", state="on")
    ET.SubElement(domain, "clock", offset="localtime" if machine.local_time else "utc")
    text(domain, "on_poweroff", "destroy")
    text(domain, "on_reboot", reboot_action(definition))
    text(domain, "on_crash", "destroy")


def reboot_action(definition: Definition, *, pending: bool = False) -> str:
    """Return what libvirt does when the guest reboots: it may, unless it is to stop or to be started anew."""
    stop = definition.spec.policies.on_reboot == resources_pb2.END_POLICY_STOP
    return "destroy" if stop or pending else "restart"


def _os(domain: ET.Element, machine: machine_pb2.VirtualMachineSpec, run: Run) -> None:
    system = ET.SubElement(domain, "os")
    text(system, "type", "hvm", arch=platform.machine(), machine=machine.machine or DEFAULT_MACHINE)
    if run.firmware is not None:
        secure = "yes" if run.firmware.secure else "no"
        text(system, "loader", str(run.firmware.code), readonly="yes", type="pflash", secure=secure)
        variables = ET.SubElement(system, "nvram", type="file", template=str(run.firmware.template))
        settle(ET.SubElement(variables, "source", file=str(run.firmware.variables)))
    if machine.boot_into_setup:
        ET.SubElement(system, "bootmenu", enable="yes", timeout=str(SETUP_TIMEOUT_MS))
    told = {name: machine.smbios[name] for name in SMBIOS_FIELDS if name in machine.smbios}
    if told:
        ET.SubElement(system, "smbios", mode="sysinfo")
        table = ET.SubElement(ET.SubElement(domain, "sysinfo", type="smbios"), "system")
        for name, value in told.items():
            text(table, "entry", value, name=name)
