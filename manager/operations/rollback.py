"""Going back to a snapshot: end the guest, revert its disks, give it the hardware of then, and let its memory go on if it was kept.

Each step can be repeated as it is. What was written since the snapshot is lost from the moment that the disks are being reverted; before
that, a failure leaves the guest as it was (ended, and started again if it was to run).
"""

from typing import Final

from gugus.agent.v1 import guest_pb2 as agent_guest
from gugus.agent.v1 import snapshot_pb2 as agent_snapshot
from gugus.agent.v1.guest_pb2 import GUEST_STATE_STOPPED
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, GUEST_PHASE_STOPPED, POWER_OFF, POWER_ON, Guest
from gugus.cluster.v1.snapshot_pb2 import RollbackGuestRequest, Snapshot

from common.errors import GugusError, not_found
from manager.controllers import guest_node
from manager.controllers.context import with_epoch
from manager.guests import snapshots as rules
from manager.operations.operation import Operation
from manager.operations.snapshot import DISKS_TIMEOUT_S, MEMORY_TIMEOUT_S, agent_disk, refuse_deleting

KIND: Final = "rollback-guest"

_STOP, _REVERT, _RESTORE, _START = "stop", "revert", "restore", "start"


class RollbackGuest:
    """Work of RollbackGuest."""

    kind, verb, cancellable = KIND, "rollback", False

    async def run(self, op: Operation) -> str:
        """Go on from the step that was noted last."""
        request = op.request(RollbackGuestRequest)
        refuse_deleting(op)
        snapshot = self._snapshot(op, request)
        if op.step in ("", _STOP):
            rules.check_rollback(op.guest, snapshot)
            await op.note(_STOP, log=f"ending {op.name}", node=op.guest.status.node)
            await self._end_guest(op)
            await op.note(_REVERT, log=f"reverting {len(snapshot.disks)} disks to {snapshot.name}")
        if op.step == _REVERT:
            await self._end_guest(op)  # whoever takes over here may find it on another node
            await self._revert(op, snapshot)
            await op.note(_RESTORE, log="restoring its hardware")
        runs = snapshot.memory or request.start
        if op.step == _RESTORE:
            await self._restore(op, snapshot, runs=runs)
            await op.note(_START, log="loading its memory" if snapshot.memory else "")
        if snapshot.memory:
            await self._start(op, snapshot)
            return f"{op.name} runs on from snapshot {snapshot.name}"
        return f"{op.name} is as in snapshot {snapshot.name}, {'and is started' if runs else 'stopped'}"

    async def undo(self, op: Operation) -> None:
        """See to it that a guest whose disks may be of several moments, or whose memory cannot be loaded, is not started by itself."""
        if op.step not in (_REVERT, _RESTORE, _START):
            return

        def hold(guest: Guest) -> None:
            if guest.spec.power == POWER_ON:
                guest.spec.power = POWER_OFF
                guest.spec_number += 1

        await op.change(hold)
        await op.log(f"{op.name} stays off; roll back again before it is started")

    def _snapshot(self, op: Operation, request: RollbackGuestRequest) -> Snapshot:
        found = op.context.store.peek(Snapshot, rules.object_name(op.guest.meta.uid, request.name))
        if found is None:
            raise not_found("snapshot", request.name)
        return found

    async def _end_guest(self, op: Operation) -> None:
        try:
            await guest_node.halt(op.tell, op.name, 0)
        except GugusError as error:
            if error.reason != "GUEST_NOT_FOUND":
                raise

    async def _revert(self, op: Operation, snapshot: Snapshot) -> None:
        request = agent_snapshot.RevertSnapshotRequest(
            name=op.name,
            kind=op.guest.spec.kind,
            disks=[agent_disk(disk) for disk in snapshot.disks],
            tag=snapshot.tag,
        )
        await op.tell(
            lambda agent, epoch: agent.snapshots.RevertSnapshot(with_epoch(request, epoch), timeout=DISKS_TIMEOUT_S)
        )

    async def _restore(self, op: Operation, snapshot: Snapshot, *, runs: bool) -> None:
        def restore(guest: Guest) -> None:
            spec = rules.restored(guest, snapshot, POWER_ON if runs else POWER_OFF)
            unused = rules.unused_after(guest, spec)
            guest.spec.CopyFrom(spec)
            guest.spec_number += 1
            status = guest.status
            status.ClearField("unused_disks")
            status.unused_disks.extend(unused)
            status.ClearField("pending")
            status.parent_snapshot = snapshot.name
            if snapshot.HasField("cluster_cpu"):
                status.cluster_cpu.CopyFrom(snapshot.cluster_cpu)
            status.phase, status.observed, status.mode = GUEST_PHASE_STOPPED, GUEST_STATE_STOPPED, ""
            status.reason = f"rolled back to {snapshot.name}"
            status.failures = 0
            guest_node.drop_hibernation(guest)  # that memory belongs to disks that are gone

        await op.change(restore)

    async def _start(self, op: Operation, snapshot: Snapshot) -> None:
        await guest_node.define(op.tell, op.guest, ha=op.guest.status.ha_armed)
        request = agent_snapshot.StartFromSnapshotRequest(
            name=op.name,
            grant=agent_guest.Grant(generation=op.guest.meta.generation),
            tag=snapshot.tag,
            disks=[agent_disk(disk) for disk in snapshot.disks],
            machine=snapshot.machine,
        )
        answer = await op.tell(
            lambda agent, epoch: agent.snapshots.StartFromSnapshot(with_epoch(request, epoch), timeout=MEMORY_TIMEOUT_S)
        )

        node = op.node()

        def runs(guest: Guest) -> None:
            guest_node.note_started(guest, node, answer)
            guest.status.phase, guest.status.reason = GUEST_PHASE_RUNNING, f"runs on {node.meta.name}"

        await op.change(runs)
