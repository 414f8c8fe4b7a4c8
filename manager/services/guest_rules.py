"""What a guest's spec must be, and what is filled in: a pure function from a request and the state to a whole guest or all its faults."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER, GUEST_KIND_UNSPECIFIED, GUEST_KIND_VIRTUAL_MACHINE
from gugus.agent.v1.volume_pb2 import VOLUME_FORMAT_ARCHIVE, VOLUME_FORMAT_QCOW2, VOLUME_FORMAT_RAW
from gugus.cluster.v1.guest_pb2 import POWER_ON, POWER_UNSPECIFIED, CreateGuestRequest, Guest, GuestSpec
from gugus.cluster.v1.network_pb2 import Network
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.pool_pb2 import Image, Pool

from common import validate
from common.errors import GugusError, invalid, not_found, precondition, several
from common.units import format_size
from manager.store.kinds import new

FIRST_ID = 100
MAX_ID = 999_999_999
"""Ids from 100, as people coming from Proxmox VE expect."""

MAX_CPUS = 512
MIN_CPU_LIMIT_MILLI = 10
"""The kernel's least quota, 1 ms, of the period of 100 ms that both drivers use (Documentation/scheduler/sched-bwc.rst)."""

MIN_MEMORY_BYTES = 16 * 2**20
MAX_MEMORY_BYTES = 64 * 2**40
DEFAULT_MEMORY_BYTES = {GUEST_KIND_VIRTUAL_MACHINE: 512 * 2**20, GUEST_KIND_CONTAINER: 256 * 2**20}
MAX_DISKS = 16
MAX_NICS = 16
MAX_USER_DATA_BYTES = 16 * 1024
"""So that a guest fits into one object of the store; EC2 and others have the same limit."""


@dataclass(frozen=True)
class Known:
    """What of the state a new guest is checked against."""

    guests: Sequence[Guest]
    nodes: Mapping[str, Node]
    pools: Mapping[str, Pool]
    networks: Mapping[str, Network]
    images: Mapping[str, Image]


def complete(request: CreateGuestRequest, known: Known) -> Guest:
    """Return the guest that a request asks for, with every default filled in.

    Raises INVALID_ARGUMENT naming every field at fault, NOT_FOUND for a pool, image, network or node that is not there, and
    FAILED_PRECONDITION POOL_NOT_SHARED for HA on a disk that only one node has.
    """
    faults = [invalid("name", message)] if (message := validate.name(request.name)) else []
    guest = new(Guest, request.name or "unnamed", labels=dict(request.labels))
    guest.spec.CopyFrom(request.spec)
    guest.meta.generation = 0  # raised to 1 with the first assignment
    faults += _size_faults(guest.spec)
    faults += _id_faults(guest.spec, known)
    faults += _disk_faults(guest, known)
    faults += _nic_faults(guest, known)
    faults += _node_faults(guest.spec, known)
    if faults:
        raise several(faults)
    _keep_near_local_images(guest, known)
    check_ha(guest, known.pools)
    return guest


def check_ha(guest: Guest, pools: Mapping[str, Pool]) -> None:
    """Raise POOL_NOT_SHARED when a guest under HA has a disk that no other node can reach."""
    if not guest.spec.ha.enabled:
        return
    local = sorted({disk.pool for disk in guest.spec.disks if not pools[disk.pool].spec.dir.shared})
    if local:
        raise precondition(
            "POOL_NOT_SHARED",
            f"ha.enabled: pool {', '.join(local)} exists on each node by itself, so the guest could not be restarted elsewhere.",
            remedy="Use a shared pool for all its disks, or leave HA off.",
        )


def _size_faults(spec: GuestSpec) -> list[GugusError]:
    faults = []
    if spec.kind == GUEST_KIND_UNSPECIFIED:
        faults.append(invalid("spec.kind", "is not set; say virtual machine or container."))
    spec.cpus = spec.cpus or 1
    spec.memory_bytes = spec.memory_bytes or DEFAULT_MEMORY_BYTES.get(spec.kind, 0)
    if spec.power == POWER_UNSPECIFIED:
        spec.power = POWER_ON
    if spec.cpus > MAX_CPUS:
        faults.append(invalid("spec.cpus", f"{spec.cpus} is out of range; 1 to {MAX_CPUS}."))
    if spec.cpu_limit_milli and not MIN_CPU_LIMIT_MILLI <= spec.cpu_limit_milli <= spec.cpus * 1000:
        text = f"{spec.cpu_limit_milli} is out of range; {MIN_CPU_LIMIT_MILLI} to the {spec.cpus * 1000} of its CPUs."
        faults.append(invalid("spec.cpu_limit_milli", text))
    if spec.kind and not MIN_MEMORY_BYTES <= spec.memory_bytes <= MAX_MEMORY_BYTES:
        least, most = format_size(MIN_MEMORY_BYTES), format_size(MAX_MEMORY_BYTES)
        faults.append(
            invalid("spec.memory_bytes", f"{format_size(spec.memory_bytes)} is out of range; {least} to {most}.")
        )
    if len(spec.first_boot.user_data.encode()) > MAX_USER_DATA_BYTES:
        faults.append(invalid("spec.first_boot.user_data", f"is longer than {MAX_USER_DATA_BYTES} bytes."))
    return faults


def _id_faults(spec: GuestSpec, known: Known) -> list[GugusError]:
    taken = {guest.spec.id: guest.meta.name for guest in known.guests}
    if not spec.id:
        spec.id = max([FIRST_ID - 1, *taken]) + 1
        return []
    if not FIRST_ID <= spec.id <= MAX_ID:
        return [invalid("spec.id", f"{spec.id} is out of range; {FIRST_ID} to {MAX_ID}, or 0 to choose one.")]
    if spec.id in taken:
        return [invalid("spec.id", f"{spec.id} is taken by guest {taken[spec.id]}; 0 chooses a free one.")]
    return []


def _disk_faults(guest: Guest, known: Known) -> list[GugusError]:
    spec = guest.spec
    if not spec.disks or len(spec.disks) > MAX_DISKS:
        return [invalid("spec.disks", f"has {len(spec.disks)} disks; 1 to {MAX_DISKS}, the first boots.")]
    if spec.kind == GUEST_KIND_CONTAINER and len(spec.disks) > 1:
        return [invalid("spec.disks", "has more than one disk; a container has its root file system only.")]
    faults: list[GugusError] = []
    names: set[str] = set()
    for index, disk in enumerate(spec.disks):
        field = f"spec.disks[{index}]"
        disk.name = disk.name or f"disk{index}"
        if message := validate.name(disk.name):
            faults.append(invalid(f"{field}.name", message))
        if disk.name in names:
            faults.append(invalid(f"{field}.name", f'"{disk.name}" is the name of another disk of this guest.'))
        names.add(disk.name)
        disk.volume = f"{guest.meta.name}-{disk.name}-{guest.meta.uid[:8]}"
        if disk.pool not in known.pools:
            raise _absent("pool", f"{field}.pool", disk.pool, known.pools)
        if known.pools[disk.pool].meta.deleting:
            faults.append(invalid(f"{field}.pool", f'"{disk.pool}" is being deleted.'))
        faults += _source_faults(spec, index, field, known)
    return faults


def _source_faults(spec: GuestSpec, index: int, field: str, known: Known) -> list[GugusError]:
    disk = spec.disks[index]
    container = spec.kind == GUEST_KIND_CONTAINER
    if not disk.image:
        if container or not disk.size_bytes:
            need = "a container needs an image" if container else "an empty disk needs size_bytes"
            return [invalid(f"{field}.image", f"is not set, and {need}.")]
        return []
    image = known.images.get(f"{disk.pool}.{disk.image}")
    if image is None:
        in_pool = [other.volume.name for other in known.images.values() if other.pool == disk.pool]
        raise _absent("image", f"{field}.image", disk.image, in_pool)
    if image.meta.deleting:
        return [invalid(f"{field}.image", f'"{disk.image}" is being deleted.')]
    wanted = (VOLUME_FORMAT_ARCHIVE,) if container else (VOLUME_FORMAT_QCOW2, VOLUME_FORMAT_RAW)
    if image.volume.format not in wanted:
        has = "an archive of a root file system" if container else "a disk image"
        return [invalid(f"{field}.image", f'"{disk.image}" is not {has}, which this kind of guest needs.')]
    if disk.size_bytes and not container and disk.size_bytes < image.volume.size_bytes:
        least = format_size(image.volume.size_bytes)
        return [invalid(f"{field}.size_bytes", f"{format_size(disk.size_bytes)} is less than the image's {least}.")]
    return []


def _nic_faults(guest: Guest, known: Known) -> list[GugusError]:
    spec = guest.spec
    if len(spec.nics) > MAX_NICS:
        return [invalid("spec.nics", f"has {len(spec.nics)} interfaces; at most {MAX_NICS}.")]
    faults: list[GugusError] = []
    taken = {nic.mac: other.meta.name for other in known.guests for nic in other.spec.nics}
    for index, nic in enumerate(spec.nics):
        field = f"spec.nics[{index}]"
        nic.name = nic.name or f"eth{index}"
        nic.mac = nic.mac.lower() or _new_mac(guest.meta.uid, index)
        if message := validate.mac(nic.mac):
            faults.append(invalid(f"{field}.mac", message))
        elif nic.mac in taken:
            faults.append(invalid(f"{field}.mac", f"{nic.mac} is taken by guest {taken[nic.mac]}."))
        taken[nic.mac] = guest.meta.name
        if nic.network not in known.networks:
            raise _absent("network", f"{field}.network", nic.network, known.networks)
        if known.networks[nic.network].meta.deleting:
            faults.append(invalid(f"{field}.network", f'"{nic.network}" is being deleted.'))
    return faults


def _node_faults(spec: GuestSpec, known: Known) -> list[GugusError]:
    for field, name in (("spec.pinned_node", spec.pinned_node), ("spec.preferred_node", spec.preferred_node)):
        if name and name not in known.nodes:
            raise _absent("node", field, name, known.nodes)
    if spec.pinned_node and spec.ha.enabled:
        return [invalid("spec.pinned_node", "a guest under HA must be able to move; prefer the node instead.")]
    return []


def _keep_near_local_images(guest: Guest, known: Known) -> None:
    """A disk made from an image that one node has can only be there, and so can the guest."""
    for disk in guest.spec.disks:
        image = known.images.get(f"{disk.pool}.{disk.image}")
        if image is None or not image.node or guest.spec.pinned_node == image.node:
            continue
        if guest.spec.pinned_node:
            raise precondition(
                "IMAGE_ELSEWHERE",
                f'image "{disk.image}" of pool {disk.pool} is on node {image.node}, the guest is pinned to '
                f"{guest.spec.pinned_node}.",
                remedy=f"Import the image on {guest.spec.pinned_node}, or use a shared pool.",
            )
        guest.spec.pinned_node = image.node


def _absent(kind: str, field: str, name: str, known: object) -> GugusError:
    have = ", ".join(sorted(known)) if known else "none yet"  # type: ignore[call-overload]
    error = not_found(kind, name, remedy=f"{field} must be one of: {have}.")
    error.field = field
    return error


def _new_mac(uid: str, index: int) -> str:
    """Return a MAC address in QEMU's range 52:54:00, made from the guest's UUID so that it never changes."""
    digest = hashlib.sha256(f"{uid} {index}".encode()).hexdigest()
    return f"52:54:00:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}"
