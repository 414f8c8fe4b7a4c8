"""From a request to a whole guest or all its faults: every default filled in, every rule kept."""

import hashlib
from collections.abc import Iterable, Mapping

from gugus.agent.v1.container_pb2 import ContainerSpec
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER, GUEST_KIND_VIRTUAL_MACHINE
from gugus.agent.v1.machine_pb2 import VirtualMachineSpec
from gugus.agent.v1.volume_pb2 import VOLUME_FORMAT_ARCHIVE
from gugus.cluster.v1.guest_pb2 import (
    POWER_HIBERNATED,
    POWER_ON,
    POWER_UNSPECIFIED,
    CreateGuestRequest,
    Guest,
    GuestSpec,
)
from gugus.cluster.v1.pool_pb2 import Pool

from common import validate
from common.errors import GugusError, invalid, precondition, several
from manager.guests import start_after
from manager.guests.cpu_baseline import hosts_of, pinned_machine
from manager.guests.known import Known, shared
from manager.guests.rules import spec_faults
from manager.guests.rules.size import DEFAULT_MEMORY_BYTES, FIRST_ID
from manager.guests.rules.words import label_faults
from manager.guests.volumes import volume_name, volume_names
from manager.store.kinds import new


def complete(request: CreateGuestRequest, known: Known, *, copied: bool = False) -> Guest:
    """Return the guest that a request asks for, with every default filled in.

    A disk's `volume` and `base_volume`, where they are set, are kept: callers that take requests from users clear them before
    (`without_output`). copied: its disks are filled by copying those of another guest. Raises INVALID_ARGUMENT (or NOT_FOUND, when only
    something named is missing) naming every field at fault, and FAILED_PRECONDITION POOL_NOT_SHARED for HA on a disk that one node has.
    """
    faults = [invalid("name", f"{message}.")] if (message := validate.name(request.name)) else []
    guest = new(Guest, request.name or "unnamed", labels=dict(request.labels))
    guest.spec.CopyFrom(request.spec)
    guest.meta.generation = 0  # raised to 1 with the first assignment
    guest.spec_number = 1
    fill(guest, known)
    faults += label_faults(request.labels)
    faults += checked(guest, known)
    if not copied:
        faults += _rootless(guest.spec)
    if guest.spec.power == POWER_HIBERNATED:
        faults.append(invalid("spec.power", "a new guest has no memory on disk; say on, off or paused."))
    if faults:
        raise several(faults)
    keep_near_local_images(guest, known)
    check_ha(guest, known.pools)
    return guest


def checked(guest: Guest, known: Known) -> list[GugusError]:
    """Return all faults of a guest whose defaults were filled in, also those that other guests make."""
    return [*spec_faults(guest.spec, known), *start_after.faults(guest, known), *_taken(guest, known)]


def without_output(spec: GuestSpec) -> GuestSpec:
    """Return a copy of a spec from a user without what only managers write."""
    copy = GuestSpec()
    copy.CopyFrom(spec)
    copy.template = False
    for disk in copy.disks:
        disk.volume = disk.base_volume = ""
    return copy


def check_ha(guest: Guest, pools: Mapping[str, Pool]) -> None:
    """Raise POOL_NOT_SHARED when a guest under HA has a disk or a disc that no other node can reach."""
    if not guest.spec.ha.enabled:
        return
    used = {disk.pool for disk in guest.spec.disks}
    used |= {cdrom.pool for cdrom in guest.spec.virtual_machine.cdroms if cdrom.pool}
    local = sorted(name for name in used if not shared(pools[name]))
    if local:
        raise precondition(
            "POOL_NOT_SHARED",
            f"ha.enabled: pool {', '.join(local)} exists on each node by itself, so the guest could not be restarted elsewhere.",
            remedy="Use a shared pool for all its disks, or leave HA off.",
        )


def fill(guest: Guest, known: Known) -> None:
    """Write every default into a guest's spec. Idempotent."""
    spec = guest.spec
    spec.cpus = spec.cpus or 1
    spec.memory_bytes = spec.memory_bytes or DEFAULT_MEMORY_BYTES.get(spec.kind, 0)
    if spec.power == POWER_UNSPECIFIED:
        spec.power = POWER_ON
    if not spec.id:
        spec.id = max([FIRST_ID - 1, *(other.spec.id for other in known.guests)]) + 1
    _fill_kind(spec, known)
    _fill_disks(guest, known)
    _fill_nics(guest, known)


def keep_near_local_images(guest: Guest, known: Known) -> None:
    """A disk made from an image that one node has can only be there, and so can the guest. Raises IMAGE_ELSEWHERE."""
    for disk in guest.spec.disks:
        image = known.image(disk.pool, disk.image)
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


def _fill_kind(spec: GuestSpec, known: Known) -> None:
    if spec.virtual_machine == VirtualMachineSpec() and spec.kind == GUEST_KIND_CONTAINER:
        spec.ClearField("virtual_machine")
    if spec.container == ContainerSpec() and spec.kind == GUEST_KIND_VIRTUAL_MACHINE:
        spec.ClearField("container")
    if spec.kind != GUEST_KIND_VIRTUAL_MACHINE:
        return
    machine = pinned_machine(spec.virtual_machine.machine, hosts_of(known.nodes.values()))
    if machine:
        spec.virtual_machine.machine = machine
    taken = {cdrom.name for cdrom in spec.virtual_machine.cdroms}
    for cdrom in spec.virtual_machine.cdroms:
        cdrom.name = cdrom.name or _free("cd", taken)
        taken.add(cdrom.name)


def _fill_disks(guest: Guest, known: Known) -> None:
    disks = guest.spec.disks
    names = {disk.name for disk in disks}
    volumes = volume_names(guest)
    for disk in disks:
        disk.name = disk.name or _free("disk", names)
        names.add(disk.name)
        if not disk.volume:
            disk.volume = volume_name(guest.meta.name, disk.name, guest.meta.uid, volumes)
            volumes.add(disk.volume)
        image = known.image(disk.pool, disk.image)
        if image is None or image.volume.format == VOLUME_FORMAT_ARCHIVE:
            continue  # an archive's own size is that of no disk
        if not disk.size_bytes and guest.spec.kind == GUEST_KIND_VIRTUAL_MACHINE:
            disk.size_bytes = image.volume.size_bytes


def _fill_nics(guest: Guest, known: Known) -> None:
    names = {nic.name for nic in guest.spec.nics}
    taken = {nic.mac for other in known.guests for nic in other.spec.nics} | {nic.mac for nic in guest.spec.nics}
    number = 0
    for nic in guest.spec.nics:
        nic.name = nic.name or _free("eth", names)
        names.add(nic.name)
        nic.mac = nic.mac.lower()
        while not nic.mac:
            mac = _new_mac(guest.meta.uid, number)
            number += 1
            nic.mac = mac if mac not in taken else ""
        taken.add(nic.mac)


def _free(prefix: str, taken: Iterable[str]) -> str:
    used, number = set(taken), 0
    while f"{prefix}{number}" in used:
        number += 1
    return f"{prefix}{number}"


def _taken(guest: Guest, known: Known) -> list[GugusError]:
    """Return the faults of ids and addresses that another guest has."""
    others = [other for other in known.guests if other.meta.uid != guest.meta.uid]
    faults = []
    if owner := next((other.meta.name for other in others if other.spec.id == guest.spec.id), ""):
        faults.append(invalid("spec.id", f"{guest.spec.id} is taken by guest {owner}; 0 chooses a free one."))
    macs = {nic.mac: other.meta.name for other in others for nic in other.spec.nics}
    for index, nic in enumerate(guest.spec.nics):
        if nic.mac in macs:
            faults.append(invalid(f"spec.nics[{index}].mac", f"{nic.mac} is taken by guest {macs[nic.mac]}."))
    return faults


def _rootless(spec: GuestSpec) -> list[GugusError]:
    """Return the fault of a new container whose root file system would be empty."""
    root = spec.disks[0] if spec.kind == GUEST_KIND_CONTAINER and spec.disks else None
    if root is None or root.image or root.base_volume:
        return []
    return [invalid("spec.disks[0].image", "is not set, and a container needs an image.")]


def _new_mac(uid: str, number: int) -> str:
    """Return a MAC address in QEMU's range 52:54:00, made from the guest's UUID so that it never changes."""
    digest = hashlib.sha256(f"{uid} {number}".encode()).hexdigest()
    return f"52:54:00:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}"
