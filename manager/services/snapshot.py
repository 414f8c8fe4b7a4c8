"""The snapshot service: checks what is asked for at the door, and hands it over to an operation on the guest."""

from gugus.agent.v1 import snapshot_pb2 as agent_snapshot
from gugus.cluster.v1 import snapshot_pb2, snapshot_pb2_grpc
from gugus.cluster.v1.guest_pb2 import POWER_ON, Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node
from gugus.cluster.v1.project_pb2 import Project
from gugus.cluster.v1.snapshot_pb2 import Snapshot
from gugus.cluster.v1.task_pb2 import Task

from common.errors import not_found, several
from manager.controllers import admission
from manager.controllers.context import Context
from manager.guests import snapshots as rules
from manager.guests.quota import refuse_beyond_quota
from manager.operations import rollback, snapshot
from manager.services.forward import actor
from manager.services.requests import begin, begun
from manager.store import Txn
from manager.tasks import new_task

PREPARE_TIMEOUT_S = 10.0
"""A node that takes longer to say what stands in the way is asked again by the operation."""


class SnapshotService(snapshot_pb2_grpc.SnapshotServiceServicer):
    """Serves `gugus guest snapshot`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    async def CreateSnapshot(self, request: snapshot_pb2.CreateSnapshotRequest, context: object) -> Task:
        """Begin to take a snapshot."""
        if faults := rules.faults(request.name, request.description):
            raise several(faults)
        if done := await self._begun(snapshot.CREATE, request.guest, request.request_id):
            return done
        guest = await self._store.require(Guest, request.guest)
        present = rules.of(self._store, guest.meta.uid)
        rules.check_new(guest, present, request.name, memory=request.memory)
        await self._ask_node(guest, memory=request.memory)
        return await self._begin(snapshot.CREATE, request.guest, request.request_id, request, spare_reserve=True)

    async def GetSnapshot(self, request: snapshot_pb2.GetSnapshotRequest, context: object) -> Snapshot:
        """Return one snapshot."""
        guest = await self._store.require(Guest, request.guest)
        return self._told(self._require(guest, request.name), guest)

    async def ListSnapshots(
        self, request: snapshot_pb2.ListSnapshotsRequest, context: object
    ) -> snapshot_pb2.ListSnapshotsResponse:
        """Return the snapshots of one guest, or of all, as trees."""
        if request.guest:
            guests = [await self._store.require(Guest, request.guest)]
        else:
            guests = await self._store.list(Guest)
        answer = snapshot_pb2.ListSnapshotsResponse()
        for guest in guests:
            found = rules.tree(rules.of(self._store, guest.meta.uid))
            answer.snapshots.extend(self._told(one, guest) for _, one in found)
        return answer

    async def DeleteSnapshot(self, request: snapshot_pb2.DeleteSnapshotRequest, context: object) -> Task:
        """Begin to delete a snapshot."""
        if done := await self._begun(snapshot.DELETE, request.guest, request.request_id):
            return done
        guest = await self._store.require(Guest, request.guest)
        self._require(guest, request.name)
        rules.check_touchable(guest)
        return await self._begin(snapshot.DELETE, request.guest, request.request_id, request)

    async def RollbackGuest(self, request: snapshot_pb2.RollbackGuestRequest, context: object) -> Task:
        """Begin to go back to a snapshot."""
        async with self._context.admission:
            if done := await self._begun(rollback.KIND, request.guest, request.request_id):
                return done
            guest = await self._store.require(Guest, request.guest)
            wanted = self._require(guest, request.name)
            rules.check_rollback(guest, wanted)
            after = Guest()
            after.CopyFrom(guest)
            after.spec.CopyFrom(rules.restored(guest, wanted, POWER_ON))
            project = self._store.peek(Project, guest.spec.project) if guest.spec.project else None
            refuse_beyond_quota(project, self._store.peek_all(Guest), guest, after)
            short = admission.admit(self._context, guest, after, guest.status.node)
            return await self._begin(rollback.KIND, request.guest, request.request_id, request, short=short)

    async def _ask_node(self, guest: Guest, *, memory: bool) -> None:
        """Refuse at the door what the guest's node cannot do; one that is not there is asked when the operation's turn comes."""
        node = self._store.peek(Node, guest.status.node) if guest.status.node else None
        if node is None or node.status.state != NODE_STATE_ONLINE or not guest.status.volumes_ready:
            return
        request = agent_snapshot.PrepareSnapshotRequest(
            name=guest.meta.name,
            kind=guest.spec.kind,
            disks=[snapshot.agent_disk(disk) for disk in rules.held_disks(guest.spec)],
            memory=memory,
        )
        answer = await self._context.tell(
            node, lambda agent, _: agent.snapshots.PrepareSnapshot(request, timeout=PREPARE_TIMEOUT_S)
        )
        if answer.obstacles:
            raise snapshot.unsupported(guest.meta.name, answer)

    def _require(self, guest: Guest, name: str) -> Snapshot:
        found = self._store.peek(Snapshot, rules.object_name(guest.meta.uid, name))
        if found is None:
            have = ", ".join(sorted(one.name for one in rules.of(self._store, guest.meta.uid))) or "none"
            raise not_found("snapshot", name, remedy=f"Guest {guest.meta.name} has: {have}.")
        return found

    def _told(self, found: Snapshot, guest: Guest) -> Snapshot:
        """Return a snapshot as a client is told of it: with the guest's present name, without what is for nodes alone."""
        found.guest = guest.meta.name
        found.current = guest.status.parent_snapshot == found.name
        found.ClearField("machine")
        return found

    async def _begun(self, kind: str, guest: str, request_id: str) -> Task | None:
        return await begun(self._store, kind, f"guest/{guest}", request_id)

    async def _begin(
        self,
        kind: str,
        guest: str,
        request_id: str,
        request: snapshot_pb2.CreateSnapshotRequest
        | snapshot_pb2.DeleteSnapshotRequest
        | snapshot_pb2.RollbackGuestRequest,
        *,
        spare_reserve: bool = False,
        short: str = "",
    ) -> Task:
        task = new_task(kind, f"guest/{guest}", str(actor()), request_id, request)
        txn = Txn(spare_reserve=spare_reserve).expect(Guest, guest, present=True)
        admission.tell(txn, f"guest/{guest}", short, task)
        return await begin(self._store, task, txn)
