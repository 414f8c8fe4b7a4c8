"""Network interfaces of a virtual machine. Their rates are no part of it: see `agent.network.shaping`."""

import xml.etree.ElementTree as ET
from collections.abc import Collection

from gugus.agent.v1 import resources_pb2

from agent.compute.definitions import Definition
from agent.compute.hypervisor import AttachedNic
from agent.compute.kvm.xml.run import alias

TAP_NAME_CHARS = 15
"""Longest name of a Linux network interface (IFNAMSIZ less the final zero)."""

MAX_NICS = 32
MODELS = {
    resources_pb2.NIC_MODEL_UNSPECIFIED: "virtio",
    resources_pb2.NIC_MODEL_VIRTIO: "virtio",
    resources_pb2.NIC_MODEL_E1000: "e1000",
    resources_pb2.NIC_MODEL_E1000E: "e1000e",
    resources_pb2.NIC_MODEL_RTL8139: "rtl8139",
    resources_pb2.NIC_MODEL_VMXNET3: "vmxnet3",
}


def tap_name(guest_id: int, index: int) -> str:
    """Return the host's name of a guest's network interface: unique, for ids are."""
    return f"gg{guest_id}-{index}"[:TAP_NAME_CHARS]


def free_tap(guest_id: int, taken: Collection[str]) -> str:
    """Return the first name that is not taken."""
    return next(name for i in range(MAX_NICS + len(taken) + 1) if (name := tap_name(guest_id, i)) not in taken)


def add(devices: ET.Element, definition: Definition) -> None:
    """Add all interfaces."""
    for index, nic in enumerate(definition.nics):
        devices.append(nic_element(nic, tap_name(definition.spec.id, index)))


def nic_element(nic: AttachedNic, tap: str) -> ET.Element:
    """Return an interface."""
    settings = nic.spec.settings
    model = MODELS.get(settings.model, "virtio")
    interface = ET.Element("interface", type="bridge")
    ET.SubElement(interface, "source", bridge=nic.bridge)
    ET.SubElement(interface, "mac", address=nic.spec.mac)
    ET.SubElement(interface, "target", dev=tap)
    ET.SubElement(interface, "model", type=model)
    if settings.queues > 1 and model == "virtio":
        ET.SubElement(interface, "driver", queues=str(settings.queues))
    if settings.mtu:
        ET.SubElement(interface, "mtu", size=str(settings.mtu))
    ET.SubElement(interface, "link", state="down" if settings.link_down else "up")
    if settings.boot_order:
        ET.SubElement(interface, "boot", order=str(settings.boot_order))
    alias(interface, "nic", nic.spec.name)
    return interface
