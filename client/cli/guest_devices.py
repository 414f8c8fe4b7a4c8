"""What people write for the parts of a guest: "size=10GiB,pool=local", "network=lan,model=e1000", "eth0=10.0.0.5/24,10.0.0.1"."""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from gugus.agent.v1.boot_pb2 import NicAddress
from gugus.agent.v1.container_pb2 import BindMount, ContainerDevice, ContainerFeatures
from gugus.agent.v1.machine_pb2 import CdromSpec, PciDevice, UsbDevice
from gugus.cluster.v1.guest_pb2 import DiskSpec, Guest, GuestSpec, NicSpec

from client.cli import words
from client.cli.faults import each
from common.errors import invalid, not_found

_FIRST_NIC = "eth0"


def disk(text: str, option: str = "--disk") -> DiskSpec:
    """Read a disk: KEY=VALUE parts, or SIZE/POOL[/IMAGE]. One that names a volume needs no pool. Raises GugusError."""
    if "=" not in text:
        return words.disk(text, option)
    found: DiskSpec = _pairs(DiskSpec, text, option)
    if not found.pool and not found.volume:
        raise invalid(option, f'"{text}" names no pool; add pool=POOL.')
    return found


def new_disk(text: str) -> DiskSpec:
    """Read a disk of a guest that is made: it has no unused volumes that it could take up. Raises GugusError."""
    found = disk(text)
    if found.volume:
        raise invalid(
            "--disk",
            f'"{text}" names a volume, and a new guest has none.',
            remedy="Name a pool, and an image or a size.",
        )
    return found


def taken_up(guest: Guest, wanted: DiskSpec) -> DiskSpec:
    """Return the unused disk of a guest whose volume a disk names, changed as that says. Raises GugusError naming those it has."""
    unused = {item.volume: item for item in guest.status.unused_disks}
    if wanted.volume not in unused:
        raise not_found("unused volume", wanted.volume, remedy=f"The guest has {', '.join(unused) or 'none'}.")
    found = DiskSpec()
    found.CopyFrom(unused[wanted.volume])
    found.MergeFrom(wanted)
    if not wanted.name and found.name in {item.name for item in guest.spec.disks}:
        found.name = ""
    return found


def free_name(items: Sequence[Any], prefix: str) -> str:
    """Return the name of a new item of a list: the one of its place, or the next that none of the others has."""
    taken = {item.name or f"{prefix}{place}" for place, item in enumerate(items)}
    return next(name for name in (f"{prefix}{number}" for number in count(len(items))) if name not in taken)


def nic(text: str, option: str = "--nic") -> NicSpec:
    """Read a network interface: a network's name, or KEY=VALUE parts. Raises GugusError."""
    found: NicSpec = _pairs(NicSpec, text, option) if "=" in text else NicSpec(network=text)
    if not found.network:
        raise invalid(option, f'"{text}" names no network; add network=NETWORK.')
    return found


def cdrom(text: str) -> CdromSpec:
    """Read a CD-ROM drive: POOL/IMAGE, "empty", or KEY=VALUE parts. Raises GugusError."""
    if "=" in text:
        found: CdromSpec = _pairs(CdromSpec, text, "--cdrom")
        return found
    if text == "empty":
        return CdromSpec()
    pool, slash, image = text.partition("/")
    if not slash or not pool or not image:
        raise invalid("--cdrom", f'"{text}" is not POOL/IMAGE, like local/debian-iso; "empty" is an empty drive.')
    return CdromSpec(pool=pool, image=image)


def mounts(option: str, texts: Sequence[str]) -> list[BindMount]:
    """Read bind mounts: SOURCE:TARGET[:ro], or KEY=VALUE parts. Raises GugusError."""

    def one(text: str) -> BindMount:
        if "=" in text:
            found: BindMount = _pairs(BindMount, text, option)
            return found
        parts = text.split(":")
        if (
            len(parts) not in (2, 3)
            or not all(part.startswith("/") for part in parts[:2])
            or parts[2:] not in ([], ["ro"])
        ):
            raise invalid(option, f'"{text}" is not SOURCE:TARGET or SOURCE:TARGET:ro with absolute paths.')
        return BindMount(source=parts[0], target=parts[1], read_only=len(parts) == 3)

    return each(one, texts)


def devices(option: str, texts: Sequence[str]) -> list[ContainerDevice]:
    """Read devices of the host for containers: a path, or KEY=VALUE parts. Raises GugusError."""
    return each(
        lambda text: _pairs(ContainerDevice, text, option) if "=" in text else ContainerDevice(path=text), texts
    )


def usb_devices(option: str, texts: Sequence[str]) -> list[UsbDevice]:
    """Read USB devices of the host: VENDOR:PRODUCT or BUS-PORT."""
    return [UsbDevice(id=text) if ":" in text else UsbDevice(port=text) for text in texts]


def pci_devices(option: str, texts: Sequence[str]) -> list[PciDevice]:
    """Read PCI devices of the host: ADDRESS[,pcie][,no-rom][,primary-gpu]. Raises GugusError."""

    def one(text: str) -> PciDevice:
        address, comma, rest = text.partition(",")
        found: PciDevice = _pairs(PciDevice, rest, option) if comma else PciDevice()
        found.address = address.removeprefix("address=")
        return found

    return each(one, texts)


def features(option: str, texts: Sequence[str]) -> Mapping[str, bool]:
    """Read features of containers: NAME, or NAME=no to take one away. Raises GugusError."""
    patch = dict[str, bool]()
    each(lambda text: _pairs(ContainerFeatures, text, option), texts)  # its faults
    for text in texts:
        for part in text.split(","):
            name, _, value = part.partition("=")
            patch[name.replace("-", "_")] = value.lower() not in ("no", "off", "false")
    return patch


def addresses(option: str, texts: Sequence[str]) -> list[NicAddress]:
    """Read addresses of interfaces: [NIC=]ADDRESS/PREFIX[,GATEWAY], or dhcp, auto, none. Raises GugusError."""
    found = dict[str, NicAddress]()
    for text in texts:
        name, equals, rest = text.partition("=")
        name, rest = (name, rest) if equals else (_FIRST_NIC, text)
        address, _, gateway = rest.partition(",")
        one = found.setdefault(name, NicAddress(nic=name))
        if ":" in address or address == "auto":
            one.ipv6, one.ipv6_gateway = address, gateway
        elif "/" in address or address in ("dhcp", "none"):
            one.ipv4, one.ipv4_gateway = address, gateway
        else:
            raise invalid(option, f'"{text}" is not [NIC=]ADDRESS/PREFIX[,GATEWAY], like eth0=10.0.0.5/24,10.0.0.1.')
    return list(found.values())


def boot_from(spec: GuestSpec, text: str) -> None:
    """Let a guest boot from these of its disks, interfaces and drives, in this order. Raises GugusError."""
    parts: dict[str, Any] = {}
    for place, item in enumerate(spec.disks):
        parts[item.name or f"disk{place}"] = item.settings
    for place, interface in enumerate(spec.nics):
        parts[interface.name or f"eth{place}"] = interface.settings
    for place, drive in enumerate(spec.virtual_machine.cdroms):
        parts[drive.name or f"cd{place}"] = drive
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in parts]:
        raise invalid("--boot-from", f'"{unknown[0]}" is not one of {", ".join(parts)}.')
    for name, part in parts.items():
        order = wanted.index(name) + 1 if name in wanted else 0
        if part.boot_order != order:
            part.boot_order = order


def _pairs(kind: Any, text: str, option: str) -> Any:
    from client.apply.pairs import read_pairs  # here: other commands start faster without it

    return read_pairs(kind, text, option)
