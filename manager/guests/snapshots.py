"""Snapshots as a tree: what may be taken and gone back to, what hangs on what, and the spec that a rollback leaves. Pure.

Invariant: the tree of a guest's snapshots is whole after every single write: a snapshot whose parent is gone is a root, and none is lost.
"""

from collections.abc import Iterable, Sequence

from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER
from gugus.cluster.v1.guest_pb2 import DiskSpec, Guest, GuestSpec, Power
from gugus.cluster.v1.snapshot_pb2 import SNAPSHOT_STATE_READY, Snapshot

from common import validate
from common.errors import GugusError, already_exists, invalid, precondition, resource_exhausted
from manager.guests.kept import check_kept
from manager.store import Store, Txn

NAME_CHARS = 40
"""Longest name of a snapshot, as Proxmox VE has it: with the part that tells tags apart, it stays an RFC 1123 label."""

MAX_DESCRIPTION_BYTES = 1024
MAX_SNAPSHOTS = 64
"""Most of one guest: every internal snapshot of a qcow2 image makes opening it and writing to it dearer."""

_TAG_CHARS = 8
_KEPT = ("notes", "ha", "pinned_node", "preferred_node", "project", "protected", "boot", "first_boot", "template", "id")
"""Fields of the spec that a rollback leaves as they are: they say what people want of the guest now, not what it was."""

_LEFT_OUT = ("first_boot", "notes", "ha", "boot")
"""Fields of the spec that a snapshot need not hold, for a rollback keeps the present ones."""


def object_name(guest_uid: str, name: str) -> str:
    """Return the name of a snapshot's object. It holds the guest's UUID, for guests are renamed."""
    return f"{guest_uid}.{name}"


def tag_of(name: str, task: str) -> str:
    """Return the tag under which volumes have the snapshot that a task takes: a later one of the same name gets another."""
    return f"{name}-{task[:_TAG_CHARS]}"


def of(store: Store, guest_uid: str) -> list[Snapshot]:
    """Return the snapshots of a guest by name, as the local replica has them."""
    return store.peek_all(Snapshot, f"{guest_uid}.")


def forget_all(store: Store, guest: Guest, txn: Txn) -> None:
    """Add the end of a guest's snapshots to the transaction that ends the guest: they went with its volumes."""
    for snapshot in of(store, guest.meta.uid):
        txn.delete(Snapshot, snapshot.meta.name)


def tree(snapshots: Iterable[Snapshot]) -> list[tuple[int, Snapshot]]:
    """Return snapshots with their depth, each after its parent; of one parent the older first."""
    by_name = {snapshot.name: snapshot for snapshot in snapshots}
    children: dict[str, list[Snapshot]] = {}
    for snapshot in by_name.values():
        parent = snapshot.parent if snapshot.parent in by_name and snapshot.parent != snapshot.name else ""
        children.setdefault(parent, []).append(snapshot)
    for siblings in children.values():
        siblings.sort(key=_age)
    found: list[tuple[int, Snapshot]] = []
    todo = [(0, snapshot) for snapshot in reversed(children.get("", []))]
    while todo:
        depth, snapshot = todo.pop()
        found.append((depth, snapshot))
        todo += [(depth + 1, child) for child in reversed(children.get(snapshot.name, []))]
    return found


def orphans(snapshots: Iterable[Snapshot], gone: Snapshot) -> list[Snapshot]:
    """Return the children of a snapshot that goes, as they are to be: they stem from its parent then."""
    adopted = []
    for snapshot in snapshots:
        if snapshot.parent == gone.name and snapshot.name != gone.name:
            child = Snapshot()
            child.CopyFrom(snapshot)
            child.parent = gone.parent
            adopted.append(child)
    return adopted


def held_disks(spec: GuestSpec) -> list[DiskSpec]:
    """Return the disks that a snapshot holds: all that are not left out, and can be written."""
    return [disk for disk in spec.disks if not (disk.settings.no_snapshot or disk.settings.read_only)]


def holding(snapshots: Iterable[Snapshot], guest_uid: str, disk: str) -> list[str]:
    """Return the names of a guest's snapshots that hold a disk."""
    mine = (snapshot for snapshot in snapshots if snapshot.guest_uid == guest_uid)
    return sorted(snapshot.name for snapshot in mine if any(held.name == disk for held in snapshot.disks))


def faults(name: str, description: str) -> list[GugusError]:
    """Return what is wrong with what was asked for in itself."""
    found = []
    if message := validate.name(name):
        found.append(invalid("name", message))
    elif len(name) > NAME_CHARS:
        found.append(invalid("name", f"has {len(name)} characters; at most {NAME_CHARS} are allowed."))
    if len(description.encode()) > MAX_DESCRIPTION_BYTES:
        found.append(invalid("description", f"is longer than {MAX_DESCRIPTION_BYTES} bytes."))
    return found


def check_new(guest: Guest, snapshots: Sequence[Snapshot], name: str, *, memory: bool) -> None:
    """Raise why a guest cannot have a snapshot, as far as the state tells: ALREADY_EXISTS, TOO_MANY_SNAPSHOTS, SNAPSHOT_UNSUPPORTED."""
    check_touchable(guest)
    if any(snapshot.name == name for snapshot in snapshots):
        raise already_exists("snapshot", name, remedy="Choose another name, or delete that one first.")
    if len(snapshots) >= MAX_SNAPSHOTS:
        raise resource_exhausted(
            "TOO_MANY_SNAPSHOTS",
            f"guest {guest.meta.name} has {len(snapshots)} snapshots; at most {MAX_SNAPSHOTS} are allowed.",
            remedy="Delete some first.",
        )
    obstacles = _obstacles(guest, memory=memory)
    if obstacles:
        raise precondition(
            "SNAPSHOT_UNSUPPORTED",
            f"guest {guest.meta.name} can have no such snapshot: {'; '.join(obstacles)}.",
            remedy="Take one without memory." if memory else "Give it a disk that is not left out.",
            subject=f"guest/{guest.meta.name}",
        )


def check_rollback(guest: Guest, snapshot: Snapshot) -> None:
    """Raise why a guest cannot go back to a snapshot: GUEST_PROTECTED, GUEST_PREEMPTED, SNAPSHOT_NOT_READY, SNAPSHOT_DISK_MISSING."""
    check_touchable(guest)
    name = guest.meta.name
    if snapshot.memory and guest.status.HasField("preempted"):
        raise precondition(
            "GUEST_PREEMPTED",
            f"guest {name} gave way to {guest.status.preempted.by}, and would run at once with the memory of snapshot {snapshot.name}.",
            remedy="Wait until there is room for it again: it starts by itself then.",
            subject=f"guest/{name}",
        )
    if guest.spec.protected:
        raise precondition(
            "GUEST_PROTECTED",
            f"guest {name} is protected: a rollback would lose what it has written since.",
            remedy=f"`gugus guest protect {name} --off` first.",
            subject=f"guest/{name}",
        )
    if snapshot.state != SNAPSHOT_STATE_READY:
        raise precondition(
            "SNAPSHOT_NOT_READY",
            f"snapshot {snapshot.name} of {name} is not whole: it is being taken, or deleted.",
            remedy="Choose another one, or delete it.",
        )
    present = {(disk.pool, disk.volume) for disk in [*guest.spec.disks, *guest.status.unused_disks]}
    missing = [disk for disk in snapshot.disks if (disk.pool, disk.volume) not in present]
    if missing:
        words = ", ".join(f"{disk.name} (volume {disk.volume} in pool {disk.pool})" for disk in missing)
        raise precondition(
            "SNAPSHOT_DISK_MISSING",
            f"guest {name} has lost disks that snapshot {snapshot.name} is of: {words}.",
            remedy="A full clone of what is left may help; this snapshot can only be deleted.",
        )


def check_touchable(guest: Guest) -> None:
    """Raise why nothing of this kind can be done with a guest at all: GUEST_DELETING, GUEST_IS_TEMPLATE."""
    name = guest.meta.name
    check_kept(guest)
    if guest.spec.template:
        what = f"guest {name} is a template; its disks never change."
        raise precondition("GUEST_IS_TEMPLATE", what, remedy="Clone it, and use the clone.", subject=f"guest/{name}")


def kept_spec(spec: GuestSpec) -> GuestSpec:
    """Return of a spec what a snapshot holds."""
    kept = GuestSpec()
    kept.CopyFrom(spec)
    for field in (*_LEFT_OUT, "tags"):
        kept.ClearField(field)  # type: ignore[arg-type]
    return kept


def restored(guest: Guest, snapshot: Snapshot, power: Power.ValueType) -> GuestSpec:
    """Return the spec that a guest has after its rollback: the hardware of then, the wishes of now.

    Disks that the snapshot holds are as they were; those it left out, and those added since, stay as they are.
    """
    present, spec = guest.spec, GuestSpec()
    spec.CopyFrom(snapshot.spec)
    spec.kind, spec.power = present.kind, power
    for field in _KEPT:
        spec.ClearField(field)  # type: ignore[arg-type]
    kept = GuestSpec()
    kept.CopyFrom(present)
    for descriptor, _ in present.ListFields():
        if descriptor.name not in (*_KEPT, "tags"):
            kept.ClearField(descriptor.name)  # type: ignore[arg-type]
    spec.ClearField("tags")
    spec.MergeFrom(kept)
    held = {disk.name for disk in snapshot.disks}
    now = {disk.name: disk for disk in present.disks}
    then = [disk for disk in snapshot.spec.disks if disk.name in held or disk.name in now]
    disks = [disk if disk.name in held else now[disk.name] for disk in then]
    names = {disk.name for disk in disks}
    disks += [disk for disk in present.disks if disk.name not in names]
    spec.ClearField("disks")
    spec.disks.extend(disks)
    return spec


def unused_after(guest: Guest, spec: GuestSpec) -> list[DiskSpec]:
    """Return the disks that a guest owns, and does not use any more with a new spec: they are kept."""
    used = {(disk.pool, disk.volume) for disk in spec.disks}
    owned = [*guest.spec.disks, *guest.status.unused_disks]
    return [disk for disk in owned if (disk.pool, disk.volume) not in used]


def _obstacles(guest: Guest, *, memory: bool) -> list[str]:
    spec = guest.spec
    found = [] if held_disks(spec) else ["all its disks are left out of snapshots, or read-only"]
    if not memory:
        return found
    if spec.kind == GUEST_KIND_CONTAINER:
        found.append("memory: a container's cannot be held")
    machine = spec.virtual_machine
    found += [f"memory: PCI device {device.address} of the host cannot be held" for device in machine.pci_devices]
    found += [f"memory: USB device {usb.id or usb.port} of the host cannot be held" for usb in machine.usb_devices]
    return found


def _age(snapshot: Snapshot) -> tuple[int, str]:
    return snapshot.meta.created_at.ToNanoseconds(), snapshot.name
