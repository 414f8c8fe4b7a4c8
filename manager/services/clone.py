"""The clone service: clones, templates, and work on single disks."""

from google.protobuf.message import Message
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER
from gugus.agent.v1.volume_pb2 import (
    POOL_ABILITY_CLONE,
    POOL_ABILITY_SNAPSHOT,
    VOLUME_FORMAT_FILESYSTEM,
    VOLUME_FORMAT_QCOW2,
    PoolAbility,
    VolumeFormat,
)
from gugus.cluster.v1 import clone_pb2, clone_pb2_grpc
from gugus.cluster.v1.clone_pb2 import CLONE_MODE_LINKED, DiskWork
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_PENDING, CreateGuestRequest, DiskSpec, Guest
from gugus.cluster.v1.pool_pb2 import Pool
from gugus.cluster.v1.snapshot_pb2 import Snapshot
from gugus.cluster.v1.task_pb2 import Task

from common import validate
from common.abilities import why_not
from common.errors import invalid, not_found, precondition, several
from manager.controllers import admission, guest_tasks
from manager.controllers.context import Context
from manager.events import record
from manager.guests import clones, snapshots
from manager.guests.complete import check_ha
from manager.guests.known import Known
from manager.guests.volumes import volume_name, volume_names
from manager.ha.migration import ALIVE
from manager.operations import clone, disks, template
from manager.operations.template import has_snapshots
from manager.services.forward import actor
from manager.services.requests import begin, begun
from manager.store import Txn
from manager.tasks import new_task


class CloneService(clone_pb2_grpc.CloneServiceServicer):
    """Serves `gugus guest clone`, `template` and `disk move|flatten`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    async def CloneGuest(self, request: clone_pb2.CloneGuestRequest, context: object) -> Task:
        """Make a linked clone as any new guest is made, or begin to copy."""
        async with self._context.admission:
            source = await self._store.require(Guest, request.source)
            linked = clones.mode_of(request, source) == CLONE_MODE_LINKED
            kind, target = (guest_tasks.CREATE, request.name) if linked else (clone.KIND, request.source)
            if done := await begun(self._store, kind, f"guest/{target}", request.request_id):
                return done
            faults = [invalid("name", f"{message}.")] if (message := validate.name(request.name)) else []
            if faults := [*faults, *clones.faults(request, source)]:
                raise several(faults)
            snapshot = self._snapshot(source, request.snapshot)
            guest = clone.made(self._context, request, source, snapshot)
            self._refuse_unready(source, [disk.pool for disk in guest.spec.disks])
            short = admission.admit_new(self._context, guest)
            if linked:
                self._refuse_unlinkable(source)
                return await self._create(guest, source.meta.name, request, short)
            if not request.snapshot and source.status.observed in ALIVE:
                self._refuse_unholdable(source)
            return await self._begin(clone.KIND, source.meta.name, request.request_id, request, short)

    async def ConvertToTemplate(self, request: clone_pb2.ConvertToTemplateRequest, context: object) -> Task:
        """Begin to make a template."""
        if done := await begun(self._store, template.KIND, f"guest/{request.name}", request.request_id):
            return done
        template.check(self._store, await self._store.require(Guest, request.name))
        return await self._begin(template.KIND, request.name, request.request_id, request)

    async def MoveDisk(self, request: clone_pb2.MoveDiskRequest, context: object) -> Task:
        """Begin to move a disk."""
        if done := await begun(self._store, disks.MOVE, f"guest/{request.guest}", request.request_id):
            return done
        guest = await self._store.require(Guest, request.guest)
        disk = self._touchable(guest, request.disk)
        if self._store.peek(Pool, request.pool) is None:
            have = ", ".join(pool.meta.name for pool in self._store.peek_all(Pool))
            raise not_found("pool", request.pool, remedy=f"pool must be one of: {have}.")
        if request.pool == disk.pool:
            raise invalid("pool", f'disk {disk.name} is in pool "{request.pool}" already.')
        self._refuse_unready(guest, [request.pool])
        work = DiskWork(before=disk, after=disk, bytes_per_s=request.bytes_per_s)
        work.after.pool, work.after.image, work.after.base_volume = request.pool, "", ""
        work.after.volume = volume_name(guest.meta.name, disk.name, guest.meta.uid, volume_names(guest))
        after = Guest()
        after.CopyFrom(guest)
        next(one for one in after.spec.disks if one.name == disk.name).pool = request.pool
        check_ha(after, Known.of(self._store).pools)
        return await self._begin(disks.MOVE, request.guest, request.request_id, work)

    async def FlattenDisk(self, request: clone_pb2.FlattenDiskRequest, context: object) -> Task:
        """Begin to flatten a disk."""
        if done := await begun(self._store, disks.FLATTEN, f"guest/{request.guest}", request.request_id):
            return done
        guest = await self._store.require(Guest, request.guest)
        disk = self._touchable(guest, request.disk)
        if not (disk.base_volume or disk.image):
            raise precondition(
                "DISK_NOT_LINKED",
                f"disk {disk.name} of {guest.meta.name} reads from no other volume.",
                remedy="Nothing is to be done: it stands alone already.",
            )
        return await self._begin(disks.FLATTEN, request.guest, request.request_id, request)

    def _touchable(self, guest: Guest, name: str) -> DiskSpec:
        """Return a disk that work can be done on. Raises why it cannot."""
        snapshots.check_touchable(guest)
        disk = next((disk for disk in guest.spec.disks if disk.name == name), None)
        if disk is None:
            have = ", ".join(disk.name for disk in guest.spec.disks)
            raise not_found("disk", name, remedy=f"Guest {guest.meta.name} has: {have}.")
        if held := snapshots.holding(snapshots.of(self._store, guest.meta.uid), guest.meta.uid, name):
            raise has_snapshots(guest, held, f"they lie in disk {name}, and would be lost")
        if not guest.status.node or not guest.status.volumes_ready:
            raise precondition(
                "GUEST_NOT_PLACED",
                f"guest {guest.meta.name} has no disks yet: {guest.status.reason}.",
                remedy=f"`gugus guest explain {guest.meta.name}` tells what is in the way.",
            )
        return disk

    def _refuse_unready(self, guest: Guest, pools: list[str]) -> None:
        """Raise POOL_NOT_READY unless the guest's node can use all of these pools."""
        node, why = guest.status.node, list[str]()
        for name in sorted(set(pools)):
            pool = self._store.peek(Pool, name)
            state = pool.status.nodes.get(node) if pool is not None else None
            if state is None or not state.ready:
                words = state.reason.rstrip(".") if state is not None else f"node {node} does not have it"
                why.append(f"pool {name}: {words}")
        if why:
            text = f"node {node}, which has the disks of {guest.meta.name}, cannot use them all: {'; '.join(why)}."
            raise precondition("POOL_NOT_READY", text, remedy="Choose a pool that this node has.")

    def _refuse_unlinkable(self, source: Guest) -> None:
        """Raise CLONE_UNSUPPORTED when a pool of a template says that it makes no volumes that read from others, as of plain folders."""
        disk_format = VOLUME_FORMAT_FILESYSTEM if source.spec.kind == GUEST_KIND_CONTAINER else VOLUME_FORMAT_QCOW2
        if why := self._pool_refuses(source, disk_format, POOL_ABILITY_CLONE):
            raise precondition(
                "CLONE_UNSUPPORTED",
                f"guest {source.meta.name}: a linked clone cannot be made: {why}",
                remedy=f"`gugus guest clone {source.meta.name} NAME --full` copies its disks.",
            )

    def _refuse_unholdable(self, source: Guest) -> None:
        """Raise CLONE_UNSUPPORTED when a pool of a running container says that it cannot hold its folders still while they are copied."""
        if source.spec.kind != GUEST_KIND_CONTAINER:
            return  # of disks it depends on the file, which the node looks at
        if why := self._pool_refuses(source, VOLUME_FORMAT_FILESYSTEM, POOL_ABILITY_SNAPSHOT):
            raise precondition(
                "CLONE_UNSUPPORTED",
                f"guest {source.meta.name} cannot be copied while it runs: {why}",
                remedy="Stop it first: a stopped container is copied.",
            )

    def _pool_refuses(self, source: Guest, disk_format: VolumeFormat.ValueType, ability: PoolAbility.ValueType) -> str:
        """Return why a pool of a guest's disks cannot do something on its node, by what the node told; "" when none says so."""
        for name in sorted({disk.pool for disk in source.spec.disks}):
            pool = self._store.peek(Pool, name)
            state = pool.status.nodes.get(source.status.node) if pool is not None else None
            if state is not None and state.formats and (why := why_not(state, disk_format, ability)):
                return why
        return ""

    def _snapshot(self, source: Guest, name: str) -> Snapshot | None:
        if not name:
            return None
        found = self._store.peek(Snapshot, snapshots.object_name(source.meta.uid, name))
        if found is None:
            raise not_found("snapshot", name)
        return found

    async def _create(self, guest: Guest, source: str, request: clone_pb2.CloneGuestRequest, short: str) -> Task:
        """Write a linked clone down; the guest controller makes its volumes from the template's, as it makes those of any guest."""
        kept = CreateGuestRequest(name=guest.meta.name)
        task = new_task(guest_tasks.CREATE, f"guest/{guest.meta.name}", str(actor()), request.request_id, kept)
        guest.status.phase, guest.status.reason = GUEST_PHASE_PENDING, f"just cloned from {source}"
        txn = Txn(spare_reserve=True).put(guest, expect_absent=True).expect(Guest, source, present=True)
        record(txn, f"guest/{guest.meta.name}", "GUEST_CREATED", f"cloned from {source} by {actor()}")
        admission.tell(txn, f"guest/{guest.meta.name}", short, task)
        return await begin(self._store, task, txn)

    async def _begin(self, kind: str, guest: str, request_id: str, request: Message, short: str = "") -> Task:
        task = new_task(kind, f"guest/{guest}", str(actor()), request_id, request)
        txn = Txn(spare_reserve=True).expect(Guest, guest, present=True)
        admission.tell(txn, f"guest/{guest}", short, task)
        return await begin(self._store, task, txn)
