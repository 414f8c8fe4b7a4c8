"""Full clones: the disks of a guest are copied into those of a new one, which is there from the first step, locked, and comes to life last.

The source is locked as well, so it neither starts nor changes meanwhile; when it runs, what is copied is a snapshot that goes afterwards.
A linked clone is no operation: it is a new guest whose disks are made from the template's.
"""

import asyncio
from contextlib import suppress
from typing import Final

from gugus.agent.v1 import snapshot_pb2 as agent_snapshot
from gugus.agent.v1 import task_pb2 as agent_task
from gugus.agent.v1 import volume_pb2
from gugus.cluster.v1.clone_pb2 import CLONE_MODE_LINKED, CloneGuestRequest, CloneWork
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_CREATING, GUEST_PHASE_PENDING, Guest
from gugus.cluster.v1.snapshot_pb2 import SNAPSHOT_STATE_READY, Snapshot

from common.errors import GugusError, aborted, already_exists, not_found, resource_exhausted
from manager.controllers import admission, guest_node
from manager.controllers.context import Context, with_epoch
from manager.controllers.placing import decide
from manager.events import INFO, record
from manager.guests import clones, snapshots
from manager.guests.complete import complete
from manager.guests.known import Known
from manager.guests.quota import refuse_beyond_quota
from manager.operations.handler import moved
from manager.operations.operation import Operation
from manager.operations.snapshot import DISKS_TIMEOUT_S, agent_disk, delete_on_node, unsupported
from manager.store import Conflict, Txn

KIND: Final = "clone-guest"

_SNAPSHOT, _COPY, _END = "snapshot", "copy", "end"
_COPIED_PERCENT = 95


class CloneGuest:
    """Work of CloneGuest, of full clones. Its notes are a CloneWork."""

    kind, verb, cancellable = KIND, "clone", True

    async def run(self, op: Operation) -> str:
        """Hold the disks still, copy each, and let the new guest go."""
        if not op.step:
            await self._begin(op)
        work = op.notes(CloneWork)
        if op.step == _END and self._clone(op, work.guest) is None:
            return self._done(op, work)
        if op.guest.status.node != op.task.node:
            raise moved(op)
        if op.step == _SNAPSHOT:
            await self._hold(op, work)
            await op.note(_COPY)
        if op.step == _COPY:
            for index in range(len(work.copies)):
                await self._copy(op, work, index)
            await op.note(_END)
        if work.temporary:
            await self._let_go(op, work)
        await self._come_alive(op, work)
        return self._done(op, work)

    async def undo(self, op: Operation) -> None:
        """Delete the copies, the snapshot made for them, and the new guest."""
        work = op.notes(CloneWork)
        clone = self._clone(op, op.request(CloneGuestRequest).name)
        if op.step:
            for index in range(len(work.copies)):
                cancel = agent_task.CancelTaskRequest(id=_copy_id(op, index))
                with suppress(GugusError):
                    await op.tell(lambda agent, _, r=cancel: agent.tasks.CancelTask(r))  # type: ignore[misc]
            volumes = [(copy.target.pool, copy.target.volume) for copy in work.copies]
            await guest_node.delete_volumes(op.tell, volumes)
            if work.temporary:
                await self._let_go(op, work)
        if clone is not None:
            txn = Txn().delete(Guest, clone.meta.name, expect_revision=clone.meta.revision)
            await op.context.store.txn(txn)

    async def _begin(self, op: Operation) -> None:
        request, guest, store = op.request(CloneGuestRequest), op.guest, op.context.store
        snapshot = None
        if request.snapshot:
            snapshot = store.peek(Snapshot, snapshots.object_name(guest.meta.uid, request.snapshot))
            if snapshot is None or snapshot.state != SNAPSHOT_STATE_READY:
                raise not_found("snapshot", request.snapshot)
        async with op.context.admission:
            clone = self._clone(op, request.name) or await self._make(op, request, guest, snapshot)
        work = CloneWork(guest=clone.meta.name, tag=snapshot.tag if snapshot else "")
        work.copies.extend(clones.copies(guest, snapshot, clone))
        if not work.tag:
            disks = [copy.source for copy in work.copies]
            asked = agent_snapshot.PrepareSnapshotRequest(
                name=op.name, kind=guest.spec.kind, disks=[agent_disk(disk) for disk in disks]
            )
            answer = await op.tell(lambda agent, _: agent.snapshots.PrepareSnapshot(asked, timeout=DISKS_TIMEOUT_S))
            if answer.running and answer.obstacles:
                raise unsupported(op.name, answer)
            if answer.running:
                work.temporary, work.tag = True, f"clone-{op.id[:8]}"
        held = "holding its disks in a snapshot" if work.temporary else f"copying {len(work.copies)} disks"
        await op.note(_SNAPSHOT if work.temporary else _COPY, work, log=held, node=guest.status.node)

    async def _make(self, op: Operation, request: CloneGuestRequest, source: Guest, snapshot: Snapshot | None) -> Guest:
        """Write the new guest down, locked: from here on its name, id, addresses and quota are taken. Under `Context.admission`."""
        clone = made(op.context, request, source, snapshot)
        admission.admit_new(op.context, clone)
        clone.status.phase = GUEST_PHASE_CREATING
        clone.status.reason = f"being cloned from {op.name}"
        clone.status.lock.task, clone.status.lock.reason = op.id, self.verb
        await op.change(lambda _: None, lambda txn: txn.put(clone, expect_absent=True))
        return clone

    async def _hold(self, op: Operation, work: CloneWork) -> None:
        take = agent_snapshot.TakeSnapshotRequest(
            name=op.name,
            kind=op.guest.spec.kind,
            disks=[agent_disk(copy.source) for copy in work.copies],
            tag=work.tag,
        )
        taken = await op.tell(
            lambda agent, epoch: agent.snapshots.TakeSnapshot(with_epoch(take, epoch), timeout=DISKS_TIMEOUT_S)
        )
        await op.log(taken.note)

    async def _copy(self, op: Operation, work: CloneWork, index: int) -> None:
        op.check_cancel()
        clone = self._clone(op, work.guest)
        if clone is None or clone.meta.deleting:
            raise aborted("SUPERSEDED", f"guest {work.guest} is being deleted.")
        copy, count = work.copies[index], len(work.copies)
        request = volume_pb2.CopyVolumeRequest(
            pool=copy.target.pool,
            name=copy.target.volume,
            source_pool=copy.source.pool,
            source_volume=copy.source.volume,
            source_snapshot=work.tag,
            task_id=_copy_id(op, index),
            bytes_per_s=op.request(CloneGuestRequest).bytes_per_s,
        )
        begun = await op.tell(lambda agent, epoch: agent.volumes.CopyVolume(with_epoch(request, epoch)))
        share = (index * _COPIED_PERCENT // count, (index + 1) * _COPIED_PERCENT // count)
        await op.follow(begun, share=share)

    async def _let_go(self, op: Operation, work: CloneWork) -> None:
        await delete_on_node(op, [copy.source for copy in work.copies], work.tag)

    async def _come_alive(self, op: Operation, work: CloneWork) -> None:
        while (clone := self._clone(op, work.guest)) is not None:
            clone.status.ClearField("lock")
            clone.status.volumes_ready = True
            clone.status.phase, clone.status.reason = GUEST_PHASE_PENDING, f"cloned from {op.name}"
            txn = Txn().put(clone, expect_revision=clone.meta.revision)
            record(txn, f"guest/{work.guest}", "GUEST_CREATED", f"cloned from {op.name}", INFO)
            with suppress(Conflict):
                await op.context.store.txn(txn)
                return
            await asyncio.sleep(0)

    def _clone(self, op: Operation, name: str) -> Guest | None:
        """Return the new guest while it is this task's."""
        guest = op.context.store.peek(Guest, name)
        return guest if guest is not None and name != op.name and guest.status.lock.task == op.id else None

    def _done(self, op: Operation, work: CloneWork) -> str:
        return f"{work.guest} was cloned from {op.name}"


def made(context: Context, request: CloneGuestRequest, source: Guest, snapshot: Snapshot | None) -> Guest:
    """Return the new guest that a request asks for, complete, and not stored yet. To be called under `Context.admission`.

    Raises what making a guest raises: every field at fault, GUEST_ALREADY_EXISTS, QUOTA_EXCEEDED, NO_NODE_FITS.
    """
    clones.check_source(request, source)
    store = context.store
    if store.peek(Guest, request.name) is not None:
        raise already_exists("guest", request.name, remedy="Choose another name.")
    known = Known.of(store)
    wanted = clones.new_guest(request, source, snapshot)
    clones.keep_near(wanted.spec, source.status.node, known.pools)
    guest = complete(wanted, known, copied=clones.mode_of(request, source) != CLONE_MODE_LINKED)
    project = known.projects.get(guest.spec.project) if guest.spec.project else None
    refuse_beyond_quota(project, known.guests, None, guest)
    decision = decide(context, guest)
    if decision.hopeless:
        raise resource_exhausted(
            "NO_NODE_FITS",
            f"no node could ever run it: {decision.reason}",
            remedy="Add a bigger node, or make the source smaller.",
        )
    guest.meta.generation += context.generation_floor()
    return guest


def _copy_id(op: Operation, index: int) -> str:
    return f"{op.id}-{index}"
