"""What one run of a virtual machine adds to its definition, and the small helpers that all of the XML is made with."""

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.compute.definitions import Definition


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """UEFI: QEMU's read-only code, and the guest's own variables with what they are made from at first."""

    code: Path
    template: Path
    variables: Path
    secure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything about a run that is found out on the host. `caches` maps a disk's path to QEMU's cache mode."""

    generation: int
    mode: str
    domain_type: str
    seed: Path | None
    console: Path
    caches: Mapping[Path, str] = field(default_factory=dict)
    firmware: Firmware | None = None
    cgroup_v2: bool = False
    usb_places: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Bus and device numbers of the USB devices that are named by port."""

    @property
    def kvm(self) -> bool:
        """Whether the host's processor runs the guest."""
        return self.domain_type == "kvm"


def text(parent: ET.Element, tag: str, words: str, **attributes: str) -> ET.Element:
    """Add an element with text in it."""
    element = ET.SubElement(parent, tag, attributes)
    element.text = words
    return element


def alias(parent: ET.Element, kind: str, name: str) -> None:
    """Give a device a name that stays: libvirt keeps aliases that begin with "ua-"."""
    ET.SubElement(parent, "alias", name=alias_of(kind, name))


def alias_of(kind: str, name: str) -> str:
    """Return the alias of a device of ours; kind: "disk", "nic", "cd", "port"."""
    return f"ua-{kind}-{name}"


def pc(definition: Definition) -> bool:
    """Whether the machine is of the old kind (i440fx): IDE, PCI slots, no PCI Express."""
    machine = definition.spec.virtual_machine.machine
    return machine in ("pc", "i440fx") or machine.startswith("pc-i440fx")


def to_text(element: ET.Element) -> str:
    """Return an element as libvirt reads it."""
    return ET.tostring(element, encoding="unicode")
