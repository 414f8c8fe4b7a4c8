"""Screen, sound and pointing device. Served through UNIX sockets that libvirt makes: no port of the host is opened."""

import xml.etree.ElementTree as ET

from agent.compute.definitions import Definition

MODELS = {
    "std": "vga",
    "virtio": "virtio",
    "qxl": "qxl",
    "cirrus": "cirrus",
    "vmware": "vmvga",
    "ramfb": "ramfb",
}
"""Our names of screens, and libvirt's."""

NONE = "none"
SOUNDS = ("ich9", "ac97")
_KIB_PER_MIB = 1024
_WITH_MEMORY = frozenset({"vga", "qxl", "vmvga", "cirrus"})


def add(devices: ET.Element, definition: Definition) -> None:
    """Add the screen with what serves it, the sound device, and the USB controller if anything is on it."""
    machine = definition.spec.virtual_machine
    model = MODELS.get(machine.display.model)
    usb = bool(machine.usb_devices) or model is not None
    ET.SubElement(devices, "controller", type="usb", model="qemu-xhci" if usb else "none")
    video = ET.SubElement(devices, "video")
    if model is None or any(device.primary_gpu for device in machine.pci_devices):
        ET.SubElement(video, "model", type=NONE)
    else:
        screen = ET.SubElement(video, "model", type=model, primary="yes")
        if machine.display.memory_mib and model in _WITH_MEMORY:
            screen.set("vgamem" if model == "qxl" else "vram", str(machine.display.memory_mib * _KIB_PER_MIB))
        ET.SubElement(devices, "input", type="tablet", bus="usb")
        for kind in ("vnc", *(("spice",) if machine.display.spice else ())):
            ET.SubElement(ET.SubElement(devices, "graphics", type=kind), "listen", type="socket")
    if machine.audio in SOUNDS:
        ET.SubElement(devices, "sound", model=machine.audio)
        spice = model is not None and machine.display.spice
        ET.SubElement(devices, "audio", id="1", type="spice" if spice else NONE)
