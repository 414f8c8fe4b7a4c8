"""Disks that are copied or flattened on this host: by the hypervisor while their guest runs, by pools while it does not.

Invariant: until `pivot` the disk as it was is the disk; from when it is asked for, the copy is, whatever happens.
"""

from functools import partial
from pathlib import Path

from gugus.agent.v1 import disk_pb2, guest_pb2, volume_pb2

from agent.compute.disks import GuestDisks
from agent.compute.hypervisor import AttachedDisk, Hypervisor, Progress
from agent.observer import Observer
from agent.pools import Pools
from agent.storage.pool import CopyRequest, VolumeRequest
from agent.turns import Turns
from common.errors import GugusError, precondition

_FORMATS = {volume_pb2.VOLUME_FORMAT_QCOW2: "qcow2", volume_pb2.VOLUME_FORMAT_RAW: "raw"}


class Disks:
    """All of gugus.agent.v1.DiskService. Methods raise GugusError; they take turns on the guest only where they change what it is.

    A copy that takes an hour must not keep the guest from being killed meanwhile; the manager's lock keeps others away.
    """

    def __init__(self, observer: Observer, pools: Pools, turns: Turns) -> None:
        self._observer, self._pools, self._turns = observer, pools, turns

    async def admit(self, epoch: int) -> None:
        """Refuse an old epoch before long work is begun."""
        await self._turns.admit(epoch)

    async def mirror(self, request: disk_pb2.MirrorDiskRequest, progress: Progress) -> None:
        """Copy a disk."""
        live = await self._live(request.name, request.kind)
        source, target = self._pools.get(request.disk.pool), self._pools.get(request.pool)
        if live is None:
            wanted = CopyRequest(
                name=request.volume,
                source=source,
                source_volume=request.disk.volume,
                bytes_per_s=request.bytes_per_s,
            )
            await target.copy_volume(wanted, progress)
            return
        path, volume = await self._pools.locate(request.disk)
        if volume.format not in _FORMATS:
            raise _running(request.name, "its root file system cannot be moved meanwhile")
        await target.ensure_volume(
            VolumeRequest(name=request.volume, format=volume.format, size_bytes=volume.size_bytes)
        )
        copy = await target.path_of(request.volume)
        await live.mirror(request.name, path, copy, _FORMATS[volume.format], request.bytes_per_s, progress)

    async def pivot(self, request: disk_pb2.PivotDiskRequest) -> None:
        """Go over to the copy."""
        await self._turns.run(f"guest/{request.name}", request.epoch, partial(self._pivot, request))

    async def drop(self, request: disk_pb2.DropMirrorRequest) -> None:
        """Give the copy up, and delete it."""
        await self._turns.run(f"guest/{request.name}", request.epoch, partial(self._drop, request))

    async def flatten(self, request: disk_pb2.FlattenDiskRequest, progress: Progress) -> None:
        """Make a disk stand alone."""
        live, pool = await self._live(request.name, request.kind), self._pools.get(request.disk.pool)
        if live is None:
            await pool.flatten_volume(request.disk.volume, progress)
            return
        # A snapshot inside of the disk reads from the base, too, and would read zeros once that is cut off.
        if held := await pool.snapshots_of(request.disk.volume):
            raise precondition(
                "VOLUME_HAS_SNAPSHOTS",
                f'disk "{request.disk.name}" has snapshots that read from its base: {", ".join(s.name for s in held)}.',
                remedy="Delete them first.",
            )
        path, _ = await self._pools.locate(request.disk)
        await live.flatten(request.name, path, request.bytes_per_s, progress)
        await pool.flatten_volume(request.disk.volume, progress, done_by_guest=True)

    async def _pivot(self, request: disk_pb2.PivotDiskRequest) -> None:
        live = await self._live(request.name, request.kind)
        if live is None:
            return
        path, volume = await self._pools.locate(request.copy)
        copy = AttachedDisk(request.copy, path, volume.format)
        await live.pivot(request.name, await self._path(request.disk), copy)

    async def _drop(self, request: disk_pb2.DropMirrorRequest) -> None:
        live = await self._live(request.name, request.kind)
        copy = await self._path(request.copy)
        if live is not None and copy != Path():
            await live.drop(request.name, await self._path(request.disk), copy)
        await self._pools.delete_volume(request.copy.pool, request.copy.volume)

    async def _path(self, disk: guest_pb2.GuestDisk) -> Path:
        """Return where a volume is; an empty path when it is gone."""
        try:
            return await self._pools.get(disk.pool).path_of(disk.volume)
        except GugusError as error:
            if error.reason != "VOLUME_NOT_FOUND":
                raise
            return Path()

    async def _live(self, name: str, kind: guest_pb2.GuestKind.ValueType) -> GuestDisks | None:
        """Return what works on the disks of a guest that runs; None when it does not run. Raises GUEST_RUNNING when nothing can."""
        hypervisor = self._observer.hypervisor_for(kind)
        observation = await self._observer.look(name, hypervisor)
        if observation is None or not observation.running:
            return None
        live = disks_of(hypervisor)
        if live is None:
            raise _running(name, f"the hypervisor {hypervisor.name} cannot do that meanwhile")
        return live


def disks_of(hypervisor: Hypervisor) -> GuestDisks | None:
    """Return a driver's ability to work on disks of running guests, None when it has none."""
    found: GuestDisks | None = getattr(hypervisor, "disks", None)
    return found


def _running(name: str, why: str) -> GugusError:
    what = f'guest "{name}" is running, and {why}.'
    return precondition("GUEST_RUNNING", what, remedy="Stop it first.", subject=f"guest/{name}")
