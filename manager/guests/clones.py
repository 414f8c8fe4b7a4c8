"""Clones: what a new guest takes from the one that it is made from, and what of it is its own. Pure."""

from collections.abc import Mapping

from gugus.cluster.v1.clone_pb2 import CLONE_MODE_FULL, CLONE_MODE_LINKED, CloneGuestRequest, CloneMode, DiskCopy
from gugus.cluster.v1.guest_pb2 import POWER_OFF, POWER_ON, CreateGuestRequest, DiskSpec, Guest, GuestSpec
from gugus.cluster.v1.pool_pb2 import Pool
from gugus.cluster.v1.snapshot_pb2 import Snapshot

from common.errors import GugusError, invalid, precondition
from manager.guests.kept import check_kept
from manager.guests.known import shared
from manager.guests.rules.placement import bound_by

_OWN = ("id", "ha", "protected", "template", "pinned_node", "preferred_node", "boot")
"""Fields of the spec that a clone does not take over: they are about one guest's identity and place."""

_OWN_SMBIOS = "serial"


def mode_of(request: CloneGuestRequest, source: Guest) -> CloneMode.ValueType:
    """Return how a clone is made, the default filled in."""
    return request.mode or (CLONE_MODE_LINKED if source.spec.template else CLONE_MODE_FULL)


def faults(request: CloneGuestRequest, source: Guest) -> list[GugusError]:
    """Return what cannot be asked together."""
    found = []
    if mode_of(request, source) == CLONE_MODE_LINKED:
        if request.pool:
            found.append(invalid("pool", "a linked clone reads from the template's volumes and lies in their pool."))
        if request.snapshot:
            found.append(invalid("snapshot", "a linked clone is made from a template, which has no snapshots."))
        if request.bytes_per_s:
            found.append(invalid("bytes_per_s", "a linked clone copies nothing."))
    if request.name == request.source:
        found.append(invalid("name", f'"{request.name}" is the source itself.'))
    return found


def check_source(request: CloneGuestRequest, source: Guest) -> None:
    """Raise why a guest cannot be cloned so: GUEST_DELETING, NOT_A_TEMPLATE, GUEST_NOT_PLACED."""
    name = source.meta.name
    check_kept(source)
    if mode_of(request, source) == CLONE_MODE_LINKED and not source.spec.template:
        raise precondition(
            "NOT_A_TEMPLATE",
            f"guest {name} is no template: it may write to what a linked clone would read from.",
            remedy=f"`gugus guest template {name}` makes it one, or make a full clone.",
            subject=f"guest/{name}",
        )
    if not source.status.node or not source.status.volumes_ready:
        raise precondition(
            "GUEST_NOT_PLACED",
            f"guest {name} has no disks yet: {source.status.reason}.",
            remedy="Wait until it is made.",
            subject=f"guest/{name}",
        )


def new_guest(request: CloneGuestRequest, source: Guest, snapshot: Snapshot | None) -> CreateGuestRequest:
    """Return what to ask for: the source's spec, or that of a snapshot, without what is the source's own.

    What is left empty gets its own value when it is completed: id, MAC addresses, volumes. Disks are those of the source in its order.
    """
    spec = GuestSpec()
    spec.CopyFrom(snapshot.spec if snapshot else source.spec)
    for field in _OWN:
        spec.ClearField(field)  # type: ignore[arg-type]
    spec.kind, spec.id = source.spec.kind, request.id
    spec.first_boot.CopyFrom(source.spec.first_boot)
    spec.first_boot.hostname = request.hostname or request.name
    spec.power = POWER_ON if request.start else POWER_OFF
    spec.notes = request.notes or source.spec.notes
    spec.project = request.project or source.spec.project
    spec.preferred_node = request.preferred_node
    spec.ClearField("tags")
    spec.tags.extend(source.spec.tags)
    spec.virtual_machine.vm_generation_id = ""
    spec.virtual_machine.smbios.pop(_OWN_SMBIOS, None)
    for nic in spec.nics:
        nic.mac = ""
    linked = mode_of(request, source) == CLONE_MODE_LINKED
    disks = [_disk(disk, request.pool, linked=linked) for disk in (snapshot.disks if snapshot else spec.disks)]
    spec.ClearField("disks")
    spec.disks.extend(disks)
    return CreateGuestRequest(name=request.name, spec=spec, labels=dict(source.meta.labels))


def copies(source: Guest, snapshot: Snapshot | None, clone: Guest) -> list[DiskCopy]:
    """Return what is to be copied into the volumes of a new guest that was completed."""
    sources = snapshot.disks if snapshot else source.spec.disks
    return [DiskCopy(source=ours, target=theirs) for ours, theirs in zip(sources, clone.spec.disks, strict=True)]


def keep_near(spec: GuestSpec, node: str, pools: Mapping[str, Pool]) -> None:
    """Bind a guest to the node that has its volumes, if no other one sees them, or that lends it devices."""
    if bound_by(spec) or any(not shared(pools[disk.pool]) for disk in spec.disks if disk.pool in pools):
        spec.pinned_node = node


def _disk(disk: DiskSpec, pool: str, *, linked: bool) -> DiskSpec:
    made = DiskSpec()
    made.CopyFrom(disk)
    made.pool = pool or disk.pool
    made.volume = made.image = made.settings.wwn = ""
    made.base_volume = disk.volume if linked else ""
    return made
