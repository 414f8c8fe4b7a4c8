"""What a running domain has, read from its live XML: devices by alias, places to connect to."""

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Device:
    """A device of ours: its alias, what libvirt calls it (a drive or a tap; may be ""), its source, its whole XML."""

    alias: str
    target: str
    source: str
    element: ET.Element


@dataclass(frozen=True, slots=True)
class Live:
    """A running domain's devices by alias, and what more is asked for."""

    devices: dict[str, Device]
    targets: frozenset[str]
    """All names of drives and taps that are taken."""

    dimm_bytes: int
    """Memory in modules that were plugged in."""

    io_threads: frozenset[int]
    controllers: frozenset[tuple[str, int]]
    """Kinds and indices of its controllers."""

    def named(self, kind: str) -> dict[str, Device]:
        """Return devices of one kind ("disk", "nic", "cd", "usb", "pci") by their name in the spec."""
        prefix = f"ua-{kind}-"
        return {a.removeprefix(prefix): device for a, device in self.devices.items() if a.startswith(prefix)}


def read(xml: str) -> Live:
    """Read a domain's live XML."""
    domain = ET.fromstring(xml)  # noqa: S314  (libvirt's own output)
    devices, targets = dict[str, Device](), set[str]()
    for element in domain.findall("devices/*"):
        target = _attribute(element, "target", "dev")
        if target:
            targets.add(target)
        alias = _attribute(element, "alias", "name")
        if alias:
            source = _attribute(element, "source", "file") or _attribute(element, "source", "bridge")
            devices[alias] = Device(alias, target, source, element)
    sizes = [int(size.text or 0) * 1024 for size in domain.findall("devices/memory/target/size")]
    threads = {int(each.get("id", "0")) for each in domain.findall("iothreadids/iothread")}
    controllers = {(c.get("type", ""), int(c.get("index", "0"))) for c in domain.findall("devices/controller")}
    return Live(devices, frozenset(targets), sum(sizes), frozenset(threads), frozenset(controllers))


def displays(xml: str) -> dict[str, Path]:
    """Return the sockets that serve a running domain's screen, by protocol ("vnc", "spice")."""
    found = {}
    for graphics in ET.fromstring(xml).findall("devices/graphics"):  # noqa: S314  (libvirt's own output)
        socket = _attribute(graphics, "listen", "socket") or graphics.get("socket", "")
        if socket:
            found[graphics.get("type", "")] = Path(socket)
    return found


def ptys(xml: str) -> dict[str, Path]:
    """Return the terminals of a running domain: "serial0" to "serial3", and "hvc0" for the virtio console."""
    domain = ET.fromstring(xml)  # noqa: S314  (libvirt's own output)
    found = {}
    for serial in domain.findall("devices/serial"):
        port = _attribute(serial, "target", "port") or "0"
        if path := _attribute(serial, "source", "path"):
            found[f"serial{port}"] = Path(path)
    for console in domain.findall("devices/console"):
        if _attribute(console, "target", "type") == "virtio" and (path := _attribute(console, "source", "path")):
            found["hvc0"] = Path(path)
    return found


def _attribute(element: ET.Element, tag: str, name: str) -> str:
    child = element.find(tag)
    return "" if child is None else child.get(name, "")
