"""From a guest and a wish to change it to the changed guest or all the faults of the wish."""

import re
from collections.abc import Callable, Iterable

from google.protobuf.field_mask_pb2 import FieldMask
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER
from gugus.cluster.v1.guest_pb2 import POWER_HIBERNATED, DiskSpec, Guest, GuestSpec, UpdateGuestRequest

from common.errors import GugusError, aborted, invalid, precondition, several
from common.units import format_size
from manager.guests.complete import check_ha, checked, fill, keep_near_local_images
from manager.guests.known import Known
from manager.guests.rules.words import label_faults
from manager.guests.volumes import volume_names

KEPT_WHEN_EMPTY = ("kind", "id", "power")
"""Fields of a whole new spec that stay as they are when it leaves them out."""

_FROM = re.compile(r"^spec\.disks\[\d+\]\.(pool|image)$")
"""Where a disk is and what it was made from; what else is wrong with a disk that is to change them only follows from that."""

Holding = Callable[[str], list[str]]
"""Names the snapshots that hold a disk, by its name."""


def updated(guest: Guest, request: UpdateGuestRequest, known: Known, holding: Holding = lambda _: []) -> Guest:
    """Return a copy of a guest as it is after an update; volumes that leave it are in its status.

    Raises INVALID_ARGUMENT or NOT_FOUND naming every field at fault, ABORTED SPEC_CHANGED, and FAILED_PRECONDITION GUEST_PROTECTED,
    SNAPSHOT_EXISTS, GUEST_ELSEWHERE, POOL_NOT_SHARED.
    """
    if request.spec_number and request.spec_number != guest.spec_number:
        raise aborted(
            "SPEC_CHANGED",
            f"guest {guest.meta.name}: its spec was changed meanwhile (number {guest.spec_number}, not {request.spec_number}).",
            remedy="Read it again and repeat the change.",
        )
    after = Guest()
    after.CopyFrom(guest)
    faults = _mask_faults(request.update_mask)
    if faults:
        raise several(faults)
    _merge(after.spec, request)
    if after.spec.kind != guest.spec.kind:  # all else that is wrong would only follow from it
        raise invalid("spec.kind", "cannot be changed.")
    faults += _carry(guest, after)
    _part(guest, after, delete=request.delete_removed_disks)
    faults += _delete_unused(after, request.delete_unused_volumes)
    fill(after, known)
    known_volumes = volume_names(guest)
    after.status.new_volumes.extend(d.volume for d in after.spec.disks if d.volume not in known_volumes)
    if request.set_labels:
        after.meta.labels.clear()
        after.meta.labels.update(request.labels)
        faults += label_faults(request.labels)
    changed = _changed_faults(guest, after)
    disks = tuple(
        fault.field.removesuffix("pool").removesuffix("image") for fault in changed if _FROM.search(fault.field)
    )
    faults += [fault for fault in _new_faults(guest, after, known) if not fault.field.startswith(disks)]
    faults += changed
    if faults:
        raise several(faults)
    _refuse_losses(guest, after, holding)
    if _new_disks(guest, after):
        keep_near_local_images(after, known)
    _refuse_elsewhere(guest, after)
    check_ha(after, known.pools)
    if differs(guest, after):
        after.spec_number += 1
        after.status.failures = 0  # what failed was another spec
    return after


def differs(before: Guest, after: Guest) -> bool:
    """Return whether the specs differ in more than their power, or volumes are to go."""
    specs = [GuestSpec(), GuestSpec()]
    for spec, guest in zip(specs, (before, after), strict=True):
        spec.CopyFrom(guest.spec)
        spec.ClearField("power")
    return specs[0] != specs[1] or before.status.leaving_disks != after.status.leaving_disks


def _new_faults(before: Guest, after: Guest, known: Known) -> list[GugusError]:
    """Return what the update makes wrong. What was wrong already, since something else was taken away, is no reason to refuse it."""
    old = {(fault.field, fault.message) for fault in checked(before, known)}
    return [fault for fault in checked(after, known) if (fault.field, fault.message) not in old]


def _mask_faults(mask: FieldMask) -> list[GugusError]:
    return [
        invalid(f"update_mask.paths[{index}]", f'"{path[:60]}" is no path of a guest\'s spec, like "cpus".')
        for index, path in enumerate(mask.paths)
        if not FieldMask(paths=[path]).IsValidForDescriptor(GuestSpec.DESCRIPTOR)
    ]


def _merge(spec: GuestSpec, request: UpdateGuestRequest) -> None:
    """Bring what is asked for into the spec."""
    before = GuestSpec()
    before.CopyFrom(spec)
    if request.update_mask.paths:
        request.update_mask.MergeMessage(request.spec, spec, replace_message_field=True, replace_repeated_field=True)
    else:
        spec.CopyFrom(request.spec)
    for name in KEPT_WHEN_EMPTY:
        if not getattr(spec, name):
            setattr(spec, name, getattr(before, name))
    spec.template = before.template
    if before.virtual_machine.machine and spec.HasField("virtual_machine") and not spec.virtual_machine.machine:
        spec.virtual_machine.machine = before.virtual_machine.machine


def _carry(before: Guest, after: Guest) -> list[GugusError]:
    """Keep what disks and interfaces of the same name have; let new disks take up unused volumes. Returns faults."""
    nics = {nic.name: nic for nic in before.spec.nics}
    for index, nic in enumerate(after.spec.nics):
        old_nic = nics.get(nic.name or f"eth{index}")
        if old_nic is not None and not nic.mac:
            nic.name, nic.mac = old_nic.name, old_nic.mac
    disks = {disk.name: disk for disk in before.spec.disks}
    unused = {disk.volume: disk for disk in before.status.unused_disks}
    faults = []
    for index, disk in enumerate(after.spec.disks):
        disk.name = disk.name or f"disk{index}"
        if old := disks.get(disk.name):
            _keep(disk, old)
        elif disk.volume:
            if (old := unused.get(disk.volume)) is None:
                have = ", ".join(unused) or "none"
                faults.append(
                    invalid(
                        f"spec.disks[{index}].volume", f'"{disk.volume}" is no unused volume of this guest: {have}.'
                    )
                )
                disk.volume = ""
            else:
                _keep(disk, old)
        else:
            disk.base_volume = ""
    return faults


def _keep(disk: DiskSpec, old: DiskSpec) -> None:
    disk.volume, disk.base_volume = old.volume, old.base_volume
    disk.pool, disk.image = disk.pool or old.pool, disk.image or old.image
    disk.size_bytes = disk.size_bytes or old.size_bytes


def _part(before: Guest, after: Guest, *, delete: bool) -> None:
    """Note what becomes of the volumes of disks that the new spec does not have any more, and of those taken up again."""
    present = {disk.volume for disk in after.spec.disks if disk.volume}
    unused = [disk for disk in after.status.unused_disks if disk.volume not in present]
    removed = [disk for disk in before.spec.disks if disk.volume not in present]
    unmade = set(before.status.new_volumes)
    for disk in removed:
        (after.status.leaving_disks if delete or disk.volume in unmade else unused).append(disk)
    kept = [_copy(disk) for disk in unused]
    del after.status.unused_disks[:]
    after.status.unused_disks.extend(kept)
    still_new = [name for name in before.status.new_volumes if name in present]
    del after.status.new_volumes[:]
    after.status.new_volumes.extend(still_new)


def _delete_unused(after: Guest, volumes: Iterable[str]) -> list[GugusError]:
    faults = []
    for index, name in enumerate(volumes):
        found = [disk for disk in after.status.unused_disks if disk.volume == name]
        if not found:
            faults.append(
                invalid(f"delete_unused_volumes[{index}]", f'"{name[:80]}" is no unused volume of this guest.')
            )
            continue
        after.status.leaving_disks.extend(found)
        kept = [_copy(disk) for disk in after.status.unused_disks if disk.volume != name]
        del after.status.unused_disks[:]
        after.status.unused_disks.extend(kept)
    return faults


def _copy(disk: DiskSpec) -> DiskSpec:
    copy = DiskSpec()
    copy.CopyFrom(disk)
    return copy


def _changed_faults(before: Guest, after: Guest) -> list[GugusError]:
    """Return what of the update cannot be changed in a guest that is there."""
    faults, was, now = list[GugusError](), before.spec, after.spec
    if now.id != was.id:
        faults.append(invalid("spec.id", f"{now.id}: cannot be changed; it is {was.id}."))
    if now.power == POWER_HIBERNATED != was.power:
        faults.append(invalid("spec.power", "cannot be set to hibernated; `gugus guest hibernate` does it."))
    if now.container.privileged != was.container.privileged:
        text = "cannot be changed: the files of its root belong to other user ids. Make a new container."
        faults.append(invalid("spec.container.privileged", text))
    old = {disk.volume: disk for disk in [*was.disks, *before.status.unused_disks]}
    for index, disk in enumerate(now.disks):
        if disk.volume in old:
            faults += _disk_faults(f"spec.disks[{index}]", old[disk.volume], disk)
    root = was.disks[0].volume if was.kind == GUEST_KIND_CONTAINER and was.disks else ""
    if root and now.disks and now.disks[0].volume != root:
        faults.append(invalid("spec.disks[0]", "is the root file system and cannot be replaced."))
    return faults


def _disk_faults(at: str, was: DiskSpec, now: DiskSpec) -> list[GugusError]:
    faults = []
    if now.pool != was.pool:
        text = f'"{now.pool}": cannot be changed, the disk is in "{was.pool}"; `gugus guest disk move` moves it.'
        faults.append(invalid(f"{at}.pool", text))
    if now.image != was.image:
        text = f'"{now.image}": cannot be changed, the disk was made from "{was.image}"; add a new disk.'
        faults.append(invalid(f"{at}.image", text))
    if now.size_bytes < was.size_bytes:
        text = f"{format_size(now.size_bytes)}: a disk cannot shrink, it has {format_size(was.size_bytes)}."
        faults.append(invalid(f"{at}.size_bytes", text))
    return faults


def _refuse_losses(before: Guest, after: Guest, holding: Holding) -> None:
    """Raise when a disk would be lost that is protected, a template's, or held by a snapshot."""
    present = {disk.volume for disk in after.spec.disks}
    lost = [disk for disk in before.spec.disks if disk.volume not in present]
    name = before.meta.name
    if lost and before.spec.protected:
        raise precondition(
            "GUEST_PROTECTED",
            f"guest {name} is protected: it may not lose disk {', '.join(disk.name for disk in lost)}.",
            remedy=f"`gugus guest protect {name} --off` first.",
        )
    if before.spec.template and [d.volume for d in after.spec.disks] != [d.volume for d in before.spec.disks]:
        raise precondition(
            "GUEST_IS_TEMPLATE",
            f"guest {name} is a template: its disks stay as they are.",
            remedy="Change a clone of it.",
        )
    held = {disk.name: snapshots for disk in lost if (snapshots := holding(disk.name))}
    if held:
        each = "; ".join(f"{disk} is in {', '.join(snapshots)}" for disk, snapshots in held.items())
        raise precondition(
            "SNAPSHOT_EXISTS", f"guest {name}: snapshots need disks that would go: {each}.", remedy="Delete them first."
        )


def _refuse_elsewhere(before: Guest, after: Guest) -> None:
    pinned, node = after.spec.pinned_node, before.status.node
    if pinned and pinned != before.spec.pinned_node and node and pinned != node:
        raise precondition(
            "GUEST_ELSEWHERE",
            f"spec.pinned_node: guest {before.meta.name} is on {node}, not on {pinned}.",
            remedy=f"`gugus guest migrate {before.meta.name} {pinned}` first.",
        )


def _new_disks(before: Guest, after: Guest) -> bool:
    return bool({disk.volume for disk in after.spec.disks} - {disk.volume for disk in before.spec.disks})
