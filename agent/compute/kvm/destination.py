"""The XML with which a running domain appears on another host. Pure.

Everything that the guest can see stays as it is; what belongs to the host changes: paths, bridges, and our mark, which says
under which grant it runs there.
"""

import dataclasses
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path

from gugus.agent.v1 import guest_pb2

from agent.compute.definitions import Definition
from agent.compute.hypervisor import MachineFiles
from agent.compute.kvm.xml.mark import NAMESPACE, PREFIX, Mark, element, read_mark
from agent.compute.kvm.xml.monitor import add_monitor
from agent.compute.kvm.xml.ownership import remove_findings, settle

STATE_KEY = "driver"
"""Key of the driver's own folder: seeds, console logs."""

_DROPPED = frozenset({"backingStore", "mirror", "seclabel"})
"""What libvirt found out or did on the source; on the target it finds out anew."""


class Moved:
    """Maps paths of one host to those of another: the longest known beginning is replaced."""

    def __init__(self, here: Mapping[str, str], there: Mapping[str, str]) -> None:
        pairs = {path: there[key] for key, path in here.items() if key in there}
        self._pairs = sorted(pairs.items(), key=lambda pair: -len(pair[0]))

    def path(self, words: str) -> str:
        """Return a path's counterpart; the path itself when it is not known."""
        for old, new in self._pairs:
            if words == old or words.startswith(old.rstrip("/") + "/"):
                return new + words[len(old) :]
        return words

    def of(self, path: Path | None) -> Path | None:
        """Return a path's counterpart."""
        return None if path is None else Path(self.path(str(path)))


def places_of(definition: Definition, state: Path) -> dict[str, str]:
    """Return a guest's files by keys that mean the same on each host."""
    places = {STATE_KEY: str(state)}
    places |= {f"disk/{disk.spec.name}": str(disk.path) for disk in definition.disks}
    places |= {f"disc/{name}": str(path) for name, path in definition.files.discs.items()}
    if definition.files.state is not None:
        places["machine"] = str(definition.files.state)
    return places


def rewritten(
    xml: str,
    generation: int,
    moved: Moved,
    bridges: Mapping[str, str],
    there: guest_pb2.GuestSpec | None = None,
    *,
    monitor: str,
) -> str:
    """Return the domain as the target is to run it. Raises ValueError for a domain that is not ours.

    there: the guest as another cluster has it, when that is where it goes. monitor: socket at which its QEMU listens to the
    target's agent.
    """
    domain = ET.fromstring(xml)  # noqa: S314  (libvirt's own output)
    remove_findings(domain, _DROPPED)
    mark = None
    for parent in list(domain.iter()):
        for child in list(parent):
            if child.tag == f"{{{NAMESPACE}}}guest":
                mark = read_mark(ET.tostring(child, encoding="unicode"))
                parent.remove(child)
                parent.append(element(_renamed(_marked(mark, generation, moved, bridges), there)))
    if mark is None:
        raise ValueError("the domain has no mark of ours")
    for part in domain.iter():
        for key, value in part.attrib.items():
            if value.startswith("/"):
                part.set(key, moved.path(value))
        if part.text and part.text.startswith("/"):
            part.text = moved.path(part.text)
    for disk in domain.iter("disk"):  # also of a domain that was started before owners were ours to set
        source = disk.find("source")
        if source is not None and disk.find("readonly") is None:
            settle(source)
    for interface in domain.iter("interface"):
        _rebridge(interface, bridges)
    add_monitor(domain, monitor)
    ET.register_namespace(PREFIX, NAMESPACE)
    return ET.tostring(domain, encoding="unicode")


def targets_of(xml: str, paths: Sequence[str]) -> list[str]:
    """Return the drive names ("vda") of the disks at these paths, in their order. Raises ValueError for one that is not there."""
    found = {}
    for disk in ET.fromstring(xml).iter("disk"):  # noqa: S314  (libvirt's own output)
        source, target = disk.find("source"), disk.find("target")
        if source is not None and target is not None:
            found[source.get("file") or source.get("dev") or ""] = target.get("dev", "")
    if missing := [path for path in paths if path not in found]:
        raise ValueError(f"the domain has no disk at {', '.join(missing)}")
    return [found[path] for path in paths]


def small_files(xml: str, folder: str) -> list[str]:
    """Return the read-only files of a domain in the driver's folder: its seed."""
    sources = [disk.find("source") for disk in ET.fromstring(xml).iter("disk") if disk.find("readonly") is not None]  # noqa: S314  (libvirt's own output)
    paths = [source.get("file", "") for source in sources if source is not None]
    return [path for path in paths if path.startswith(folder.rstrip("/") + "/")]


def host_bound(xml: str) -> list[str]:
    """Return what a domain has of its host, each in words."""
    domain = ET.fromstring(xml)  # noqa: S314  (libvirt's own output)
    found = [f"a {device.get('type', '')} device of the host".replace("  ", " ") for device in domain.iter("hostdev")]
    found += [f"a {fs.get('type', '')} folder of the host" for fs in domain.iter("filesystem")]
    found += ["a smartcard of the host" for _ in domain.iter("smartcard")]
    return found


def _marked(mark: Mark, generation: int, moved: Moved, bridges: Mapping[str, str]) -> Mark:
    running = mark.running
    if running is not None:
        disks = tuple(dataclasses.replace(disk, path=Path(moved.path(str(disk.path)))) for disk in running.disks)
        nics = tuple(dataclasses.replace(nic, bridge=bridges.get(nic.spec.mac, nic.bridge)) for nic in running.nics)
        discs = {name: Path(moved.path(str(path))) for name, path in running.files.discs.items()}
        files = MachineFiles(discs, moved.of(running.files.hibernation), moved.of(running.files.state))
        running = Definition(running.spec, disks, nics, files)
    return dataclasses.replace(mark, generation=generation, running=running)


def _renamed(mark: Mark, there: guest_pb2.GuestSpec | None) -> Mark:
    """Return a mark in which pools, volumes and networks have the names of another cluster, so that nothing seems to have changed."""
    running = mark.running
    if running is None or there is None:
        return mark
    spec = type(running.spec)()
    spec.CopyFrom(running.spec)
    spec.id = there.id
    disks = {disk.name: disk for disk in there.disks}
    nics = {nic.name: nic for nic in there.nics}
    cdroms = {cdrom.name: cdrom for cdrom in there.virtual_machine.cdroms}

    def place(disk: guest_pb2.GuestDisk) -> None:
        if (other := disks.get(disk.name)) is not None:
            disk.pool, disk.volume = other.pool, other.volume

    def net(nic: guest_pb2.GuestNic) -> None:
        if (other := nics.get(nic.name)) is not None:
            nic.network = other.network

    for disk in (*spec.disks, *(one.spec for one in running.disks)):
        place(disk)
    for nic in (*spec.nics, *(one.spec for one in running.nics)):
        net(nic)
    for cdrom in spec.virtual_machine.cdroms:
        if (disc := cdroms.get(cdrom.name)) is not None:
            cdrom.pool = disc.pool
    return dataclasses.replace(mark, running=dataclasses.replace(running, spec=spec))


def _rebridge(interface: ET.Element, bridges: Mapping[str, str]) -> None:
    mac, source = interface.find("mac"), interface.find("source")
    if mac is not None and source is not None and source.get("bridge"):
        source.set("bridge", bridges.get(mac.get("address", "").lower(), source.get("bridge", "")))
