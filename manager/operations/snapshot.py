"""Taking and deleting snapshots.

A snapshot's object is there before anything is done to a disk, and goes after everything is undone: what lies in volumes is always told
of by an object, whoever is killed in between.
"""

from typing import Final

from gugus.agent.v1 import guest_pb2 as agent_guest
from gugus.agent.v1 import snapshot_pb2 as agent_snapshot
from gugus.agent.v1.snapshot_pb2 import SNAPSHOT_CONSISTENCY_CRASH, SNAPSHOT_CONSISTENCY_FROZEN
from gugus.cluster.v1.guest_pb2 import DiskSpec, Guest
from gugus.cluster.v1.snapshot_pb2 import (
    SNAPSHOT_STATE_CREATING,
    SNAPSHOT_STATE_DELETING,
    SNAPSHOT_STATE_READY,
    CreateSnapshotRequest,
    DeleteSnapshotRequest,
    Snapshot,
)

from common.errors import GugusError, aborted, already_exists, precondition
from common.units import format_size
from manager.controllers.context import with_epoch
from manager.guests import snapshots as rules
from manager.operations.handler import moved
from manager.operations.operation import Operation
from manager.store import Conflict, Txn
from manager.store.kinds import new

CREATE: Final = "create-snapshot"
DELETE: Final = "delete-snapshot"

DISKS_TIMEOUT_S = 300.0
"""For a snapshot of disks and for deleting one, which frees every block that was its alone."""

MEMORY_TIMEOUT_S = 3700.0
"""A little more than the node itself gives the hypervisor."""

_TAKE = "take"


class CreateSnapshot:
    """Work of CreateSnapshot."""

    kind, verb, cancellable = CREATE, "snapshot", False

    async def run(self, op: Operation) -> str:
        """Take a snapshot: note it, take it on the node, note how it came out."""
        request = op.request(CreateSnapshotRequest)
        if not op.step:
            await self._prepare(op, request)
        refuse_deleting(op)
        snapshot = _own(op, request.name)
        if snapshot is None:
            raise Conflict([f"snapshot/{request.name}"])
        if snapshot.state == SNAPSHOT_STATE_READY:  # whoever worked on it before did not get to say so
            return f"snapshot {request.name} of {op.name} taken"
        if op.guest.status.node != op.task.node:
            raise moved(op)
        taken = await self._take(op, request, snapshot)
        return await self._end(op, snapshot, taken)

    async def undo(self, op: Operation) -> None:
        """Delete what there is of it, and its object last."""
        request = op.request(CreateSnapshotRequest)
        snapshot = _own(op, request.name)
        if snapshot is None or snapshot.state == SNAPSHOT_STATE_READY:
            return
        try:
            await delete_on_node(op, list(snapshot.disks), snapshot.tag)
        except GugusError as error:
            if error.reason != "NODE_NOT_ONLINE" or not op.guest.meta.deleting:
                raise  # a guest that is being deleted takes its snapshots along, so its node need not be waited for
        await op.change(lambda _: None, lambda txn: txn.delete(Snapshot, snapshot.meta.name))

    async def _prepare(self, op: Operation, request: CreateSnapshotRequest) -> None:
        guest = op.guest
        if _own(op, request.name) is None:
            present = rules.of(op.context.store, guest.meta.uid)
            rules.check_new(guest, present, request.name, memory=request.memory)
        disks = rules.held_disks(guest.spec)
        prepared = await prepare(op, disks, memory=request.memory)
        snapshot = _own(op, request.name) or new(Snapshot, rules.object_name(guest.meta.uid, request.name))
        snapshot.guest_uid, snapshot.name = guest.meta.uid, request.name
        snapshot.tag = rules.tag_of(request.name, op.id)
        snapshot.parent, snapshot.description = guest.status.parent_snapshot, request.description
        snapshot.memory, snapshot.machine = request.memory, prepared.machine
        snapshot.state = SNAPSHOT_STATE_CREATING
        snapshot.ClearField("disks")
        snapshot.disks.extend(disks)
        snapshot.spec.CopyFrom(rules.kept_spec(guest.spec))
        snapshot.cluster_cpu.CopyFrom(guest.status.cluster_cpu)

        def put(txn: Txn) -> None:
            if snapshot.meta.revision:
                txn.put(snapshot, expect_revision=snapshot.meta.revision)
            else:
                txn.put(snapshot, expect_absent=True)

        await op.change(lambda _: None, put)
        notes = agent_snapshot.PrepareSnapshotResponse(pid=prepared.pid, running=prepared.running)
        what = "disks and memory" if request.memory else f"{len(disks)} disks"
        await op.note(_TAKE, notes, log=f"taking {what} on {guest.status.node}", node=guest.status.node)

    async def _take(
        self, op: Operation, request: CreateSnapshotRequest, snapshot: Snapshot
    ) -> agent_snapshot.TakeSnapshotResponse:
        prepared = op.notes(agent_snapshot.PrepareSnapshotResponse)
        take = agent_snapshot.TakeSnapshotRequest(
            name=op.name,
            kind=snapshot.spec.kind,
            disks=[agent_disk(disk) for disk in snapshot.disks],
            tag=snapshot.tag,
            memory=request.memory,
            no_freeze=request.no_freeze,
            pid=prepared.pid if request.memory else 0,
        )
        limit_s = MEMORY_TIMEOUT_S if request.memory else DISKS_TIMEOUT_S
        return await op.tell(
            lambda agent, epoch: agent.snapshots.TakeSnapshot(with_epoch(take, epoch), timeout=limit_s)
        )

    async def _end(self, op: Operation, snapshot: Snapshot, taken: agent_snapshot.TakeSnapshotResponse) -> str:
        snapshot.state = SNAPSHOT_STATE_READY
        snapshot.consistency, snapshot.paused_ms = taken.consistency, taken.paused_ms
        snapshot.memory_bytes = taken.memory_bytes

        def follow(guest: Guest) -> None:
            guest.status.parent_snapshot = snapshot.name

        await op.change(follow, lambda txn: txn.put(snapshot, expect_revision=snapshot.meta.revision))
        return f"snapshot {snapshot.name} of {op.name} taken: {_how(taken)}"


class DeleteSnapshot:
    """Work of DeleteSnapshot. One that failed leaves a snapshot that can only be deleted again."""

    kind, verb, cancellable = DELETE, "delete snapshot", False

    async def run(self, op: Operation) -> str:
        """Mark it, delete it on the node, give its children to its parent, forget it."""
        name = op.request(DeleteSnapshotRequest).name
        store, uid = op.context.store, op.guest.meta.uid
        key = rules.object_name(uid, name)
        snapshot = store.peek(Snapshot, key)
        if snapshot is None:
            return f"snapshot {name} of {op.name} is gone"
        refuse_deleting(op)
        if snapshot.state != SNAPSHOT_STATE_DELETING:
            snapshot.state = SNAPSHOT_STATE_DELETING
            await op.change(lambda _: None, lambda txn: txn.put(snapshot, expect_revision=snapshot.meta.revision))
        await op.note("delete", log=f"deleting {name} on {op.guest.status.node}", node=op.guest.status.node)
        await delete_on_node(op, list(snapshot.disks), snapshot.tag)
        for child in rules.orphans(
            rules.of(store, uid), snapshot
        ):  # one by one: together they may be too large for the log
            await op.change(lambda _: None, lambda txn, c=child: txn.put(c, expect_revision=c.meta.revision))  # type: ignore[misc]

        def lead_back(guest: Guest) -> None:
            if guest.status.parent_snapshot == name:
                guest.status.parent_snapshot = snapshot.parent

        await op.change(lead_back, lambda txn: txn.delete(Snapshot, key))
        return f"snapshot {name} of {op.name} deleted"

    async def undo(self, op: Operation) -> None:
        """Leave it marked: what may be gone from one disk is no snapshot to go back to."""


async def prepare(op: Operation, disks: list[DiskSpec], *, memory: bool) -> agent_snapshot.PrepareSnapshotResponse:
    """Ask the node what stands in the way. Raises SNAPSHOT_UNSUPPORTED with all of it."""
    request = agent_snapshot.PrepareSnapshotRequest(
        name=op.name, kind=op.guest.spec.kind, disks=[agent_disk(disk) for disk in disks], memory=memory
    )
    answer = await op.tell(lambda agent, _: agent.snapshots.PrepareSnapshot(request, timeout=DISKS_TIMEOUT_S))
    if answer.obstacles:
        raise unsupported(op.name, answer)
    return answer


async def delete_on_node(op: Operation, disks: list[DiskSpec], tag: str) -> None:
    """Delete a tag from all volumes that have it."""
    request = agent_snapshot.DeleteSnapshotRequest(
        name=op.name, kind=op.guest.spec.kind, disks=[agent_disk(disk) for disk in disks], tag=tag
    )
    await op.tell(
        lambda agent, epoch: agent.snapshots.DeleteSnapshot(with_epoch(request, epoch), timeout=DISKS_TIMEOUT_S)
    )


def agent_disk(disk: DiskSpec) -> agent_guest.GuestDisk:
    """Return a disk as a node finds it."""
    return agent_guest.GuestDisk(name=disk.name, pool=disk.pool, volume=disk.volume)


def unsupported(guest: str, answer: agent_snapshot.PrepareSnapshotResponse) -> GugusError:
    """Return the error that names every obstacle that a node told of."""
    words = [f"{o.what}{f' in pool {o.pool}' if o.pool else ''}: {o.reason}" for o in answer.obstacles]
    return precondition(
        "SNAPSHOT_UNSUPPORTED",
        f"guest {guest} can have no such snapshot: {'; '.join(words)}.",
        remedy="Move the disk to a pool that has snapshots, leave it out (no_snapshot), or take it without memory.",
        subject=f"guest/{guest}",
        metadata={"disks": ",".join(o.what for o in answer.obstacles)},
    )


def refuse_deleting(op: Operation) -> None:
    """Raise SUPERSEDED when the guest is to go: its snapshots go with it."""
    if op.guest.meta.deleting:
        raise aborted("SUPERSEDED", f"guest {op.name} is being deleted.")


def _own(op: Operation, name: str) -> Snapshot | None:
    """Return the snapshot that this task began. Raises SNAPSHOT_ALREADY_EXISTS for another's, when nothing was begun yet."""
    found = op.context.store.peek(Snapshot, rules.object_name(op.guest.meta.uid, name))
    if found is None or found.tag == rules.tag_of(name, op.id):
        return found
    if not op.step and not op.task.HasField("error"):
        raise already_exists("snapshot", name, remedy="Choose another name, or delete that one first.")
    return None


def _how(taken: agent_snapshot.TakeSnapshotResponse) -> str:
    parts = []
    if taken.memory_bytes:
        parts.append(f"with {format_size(taken.memory_bytes)} of memory")
    if taken.consistency == SNAPSHOT_CONSISTENCY_FROZEN:
        parts.append("consistent")
    elif taken.consistency == SNAPSHOT_CONSISTENCY_CRASH:
        parts.append("consistent as after a power cut")
    if taken.note:
        parts.append(taken.note)
    if taken.paused_ms:
        parts.append(f"the guest stood still for {taken.paused_ms} ms")
    return "; ".join(parts) or "the guest was not running"
