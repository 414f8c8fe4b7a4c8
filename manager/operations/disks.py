"""Moving and flattening a disk, while its guest runs if it does.

A move copies first; until it is noted that the copy is to be taken, the disk as it was is the disk, and from then on the copy is, for a
node writes to both by then. So no end of anything in between loses a write.
"""

from typing import Final

from gugus.agent.v1 import disk_pb2
from gugus.cluster.v1.clone_pb2 import DiskWork, FlattenDiskRequest
from gugus.cluster.v1.guest_pb2 import DiskSpec, Guest

from common.errors import aborted
from manager.controllers.context import with_epoch
from manager.guests import snapshots as rules
from manager.operations.handler import moved
from manager.operations.operation import Operation
from manager.operations.snapshot import DISKS_TIMEOUT_S, agent_disk, refuse_deleting
from manager.operations.template import has_snapshots

MOVE: Final = "move-disk"
FLATTEN: Final = "flatten-disk"

_COPY, _PIVOT = "copy", "pivot"


class MoveDisk:
    """Work of MoveDisk. The task carries a DiskWork."""

    kind, verb, cancellable = MOVE, "move disk", True

    async def run(self, op: Operation) -> str:
        """Copy the disk, go over to the copy, have the old one deleted."""
        work = op.request(DiskWork)
        name = work.before.name
        if op.step == _PIVOT and _find(op.guest, name).volume == work.after.volume:
            return _moved_to(work)
        if op.step != _PIVOT:
            refuse_deleting(op)
            check_unchanged(op, work)
            if not op.step:
                await op.note(_COPY, log=f"copying {name} to {work.after.pool}", node=op.guest.status.node)
            if op.guest.status.node != op.task.node:
                raise moved(op)
            await self._copy(op, work)
            await op.note(_PIVOT, log="going over to the copy")
        pivot = disk_pb2.PivotDiskRequest(
            name=op.name, kind=op.guest.spec.kind, disk=agent_disk(work.before), copy=agent_disk(work.after)
        )
        await op.tell(lambda agent, epoch: agent.disks.PivotDisk(with_epoch(pivot, epoch), timeout=DISKS_TIMEOUT_S))

        def go_over(guest: Guest) -> None:
            disk = _find(guest, name)
            old = DiskSpec(name=disk.name, pool=disk.pool, volume=disk.volume)
            disk.pool, disk.volume = work.after.pool, work.after.volume
            disk.image = disk.base_volume = ""  # a copy stands alone
            guest.status.leaving_disks.append(old)
            guest.spec_number += 1

        await op.change(go_over)
        return _moved_to(work)

    async def undo(self, op: Operation) -> None:
        """Give the copy up, unless it is the disk already."""
        work = op.request(DiskWork)
        if op.step != _COPY:
            return
        drop = disk_pb2.DropMirrorRequest(
            name=op.name, kind=op.guest.spec.kind, disk=agent_disk(work.before), copy=agent_disk(work.after)
        )
        await op.tell(lambda agent, epoch: agent.disks.DropMirror(with_epoch(drop, epoch), timeout=DISKS_TIMEOUT_S))

    async def _copy(self, op: Operation, work: DiskWork) -> None:
        op.check_cancel()
        request = disk_pb2.MirrorDiskRequest(
            name=op.name,
            kind=op.guest.spec.kind,
            disk=agent_disk(work.before),
            pool=work.after.pool,
            volume=work.after.volume,
            bytes_per_s=work.bytes_per_s,
            task_id=op.id,
        )
        await op.follow(await op.tell(lambda agent, epoch: agent.disks.MirrorDisk(with_epoch(request, epoch))))


class FlattenDisk:
    """Work of FlattenDisk."""

    kind, verb, cancellable = FLATTEN, "flatten disk", True

    async def run(self, op: Operation) -> str:
        """Flatten the disk on its node, and forget what it read from."""
        wanted = op.request(FlattenDiskRequest)
        refuse_deleting(op)
        disk = _find(op.guest, wanted.disk)
        refuse_held(op, disk.name)
        if not op.step:
            await op.note(_COPY, log=f"copying what {disk.name} reads from its base", node=op.guest.status.node)
        if op.guest.status.node != op.task.node:
            raise moved(op)
        op.check_cancel()
        request = disk_pb2.FlattenDiskRequest(
            name=op.name,
            kind=op.guest.spec.kind,
            disk=agent_disk(disk),
            bytes_per_s=wanted.bytes_per_s,
            task_id=op.id,
        )
        await op.follow(await op.tell(lambda agent, epoch: agent.disks.FlattenDisk(with_epoch(request, epoch))))

        def forget(guest: Guest) -> None:
            flat = _find(guest, wanted.disk)
            if flat.base_volume or flat.image:
                flat.base_volume = flat.image = ""
                guest.spec_number += 1

        await op.change(forget)
        return f"disk {wanted.disk} of {op.name} stands alone"

    async def undo(self, op: Operation) -> None:
        """Nothing is to be taken back: what was copied already stays copied, and is not copied again."""


def check_unchanged(op: Operation, work: DiskWork) -> None:
    """Raise SUPERSEDED when the disk is not what it was when its move was asked for, GUEST_HAS_SNAPSHOTS when it is held now."""
    disk = _find(op.guest, work.before.name)
    if (disk.pool, disk.volume) != (work.before.pool, work.before.volume):
        raise aborted("SUPERSEDED", f"disk {disk.name} was moved meanwhile; it is in pool {disk.pool}.")
    refuse_held(op, disk.name)


def refuse_held(op: Operation, disk: str) -> None:
    """Raise GUEST_HAS_SNAPSHOTS when a snapshot holds the disk."""
    store, guest = op.context.store, op.guest
    if held := rules.holding(rules.of(store, guest.meta.uid), guest.meta.uid, disk):
        raise has_snapshots(guest, held, f"they lie in disk {disk} and would be lost")


def _find(guest: Guest, name: str) -> DiskSpec:
    for disk in guest.spec.disks:
        if disk.name == name:
            return disk
    raise aborted("SUPERSEDED", f"guest {guest.meta.name} has no disk {name} any more.")


def _moved_to(work: DiskWork) -> str:
    return f"disk {work.before.name} is in pool {work.after.pool}"
