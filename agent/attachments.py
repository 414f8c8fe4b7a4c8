"""What a guest's spec names of this host, found: volumes of pools, bridges of networks, files beside a machine's disks."""

from collections.abc import Set
from pathlib import Path

from gugus.agent.v1 import guest_pb2

from agent.compute.definitions import Definition
from agent.compute.hypervisor import AttachedDisk, AttachedNic, MachineFiles
from agent.networks import Networks
from agent.pools import Pools


class Attachments:
    """Finds them. Methods raise VOLUME_MISSING, NETWORK_MISSING."""

    def __init__(self, pools: Pools, networks: Networks) -> None:
        self._pools, self._networks = pools, networks

    async def resolve(self, spec: guest_pb2.GuestSpec) -> Definition:
        """Return a spec with everything found that it names."""
        disks = []
        for disk in spec.disks:
            path, volume = await self._pools.locate(disk)
            read_only = disk.read_only or disk.settings.read_only
            lease = None if read_only else await self._pools.get(disk.pool).lease_of(disk.volume)
            disks.append(AttachedDisk(disk, path, volume.format, read_only, lease))
        nics = tuple(AttachedNic(nic, self._networks.bridge_of(nic)) for nic in spec.nics)
        return Definition(spec, tuple(disks), nics, await self._files(spec))

    async def grow(self, spec: guest_pb2.GuestSpec, pending: Set[str], *, running: bool) -> None:
        """Let volumes grow to what the spec says. Those of a running machine were grown by its hypervisor: it is noted.

        pending: fields of the spec that wait for the guest's next start, and so must not be noted.
        """
        by_guest = running and spec.kind == guest_pb2.GUEST_KIND_VIRTUAL_MACHINE
        for disk in spec.disks:
            field = f"disks[{disk.name}]"
            if not disk.size_bytes or pending & {field, f"{field}.size_bytes", f"{field}.volume"}:
                continue
            _, volume = await self._pools.locate(disk)
            if 0 < volume.size_bytes < disk.size_bytes or (by_guest and volume.size_bytes == disk.size_bytes):
                pool = self._pools.get(disk.pool)
                await pool.resize_volume(disk.volume, disk.size_bytes, done_by_guest=by_guest)

    async def _files(self, spec: guest_pb2.GuestSpec) -> MachineFiles:
        if spec.kind != guest_pb2.GUEST_KIND_VIRTUAL_MACHINE:
            return MachineFiles()
        discs: dict[str, Path] = {}
        for drive in spec.virtual_machine.cdroms:
            if drive.image:
                discs[drive.name] = await self._locate(drive.name, drive.pool, drive.image)
        memory = None
        if spec.hibernation_volume:
            memory = await self._locate("memory", spec.hibernation_pool, spec.hibernation_volume)
        first = spec.disks[0]
        state = await self._pools.get(first.pool).companion(first.volume)
        return MachineFiles(discs, memory, state)

    async def _locate(self, name: str, pool: str, volume: str) -> Path:
        disk = guest_pb2.GuestDisk(name=name, pool=pool, volume=volume, read_only=True)
        path, _ = await self._pools.locate(disk)
        return path
