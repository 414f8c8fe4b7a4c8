"""Disks for tests: volumes that are entries of a table, shared by all nodes, and that fail when they are told to."""

import asyncio
from collections import Counter
from pathlib import Path

from gugus.agent.v1 import volume_pb2
from gugus.agent.v1.volume_pb2 import VOLUME_FORMAT_QCOW2, VOLUME_KIND_BASE, PoolSpec, Volume, VolumeSnapshot

from agent.storage.pool import CopyRequest, Progress, VolumeRequest
from common.errors import GugusError, not_found, precondition

SHA256 = "0" * 64


class Storage:
    """All pools of all nodes of a test. `create` is what the agents' registry of drivers is replaced by."""

    def __init__(self, folder: Path = Path("/nowhere")) -> None:
        self.folder = folder
        """Where volumes are said to lie."""
        self.volumes: dict[tuple[str, str], Volume] = {}
        self.made: Counter[str] = Counter()
        """Times that a volume, or an image, was really made, by name."""
        self.faults: dict[str, GugusError] = {}
        """What is raised by using a pool, and by importing, deleting or making a volume from an image: by its name."""
        self.may_import = asyncio.Event()
        self.may_import.set()
        """Imports wait for this."""
        self.may_delete = asyncio.Event()
        self.may_delete.set()
        """Deletions of volumes wait for this."""
        self.content: Counter[str] = Counter()
        """What is on each volume, as a number that grows with each write."""
        self.kept: dict[str, dict[str, int]] = {}
        """What was on each volume in each of its snapshots."""
        self.rates: dict[str, int] = {}
        """Bytes a second that each copy was limited to."""
        self.image_format = VOLUME_FORMAT_QCOW2
        """Of images that are imported."""
        self.obstacles: dict[str, str] = {}
        """Why a volume cannot be snapshotted."""

    def create(self, spec: PoolSpec) -> "Pool":
        """Return the driver of a pool."""
        return Pool(self, spec)

    def names(self) -> set[str]:
        """Return the names of all volumes, images included."""
        return {name for _, name in self.volumes}

    def fail(self, name: str) -> None:
        """Raise what was told for a pool or an image."""
        if name in self.faults:
            raise self.faults[name]


class Pool:
    """A driver as `agent.storage.pool.StoragePool` describes it."""

    abilities: frozenset[volume_pb2.PoolAbility.ValueType] = frozenset()

    def __init__(self, storage: Storage, spec: PoolSpec) -> None:
        self.spec = spec
        self._storage = storage

    async def activate(self) -> None:
        self._storage.fail(self.spec.name)

    async def status(self) -> volume_pb2.Pool:
        told = volume_pb2.Pool(spec=self.spec, ready=True, capacity_bytes=1 << 40, available_bytes=1 << 40)
        told.abilities.extend(sorted(self.abilities))
        return told

    async def create_volume(self, request: VolumeRequest) -> Volume:
        self._storage.fail(request.source)
        source = self._storage.volumes.get((self.spec.name, request.source))
        made = self._make(request.name, request.size_bytes or (source.size_bytes if source else 0))
        made.backing = request.source
        return made

    async def import_volume(self, name: str, source: str, sha256: str, progress: Progress) -> Volume:
        await self._storage.may_import.wait()
        self._storage.fail(name)
        made = self._make(name, 1 << 20)
        made.format = self._storage.image_format
        return made

    async def delete_volume(self, name: str) -> None:
        await self._storage.may_delete.wait()
        self._storage.fail(name)
        readers = [v.name for (_, _), v in self._storage.volumes.items() if v.backing == name]
        if readers:
            raise precondition("VOLUME_IN_USE", f"{name} is what {', '.join(readers)} read from.")
        self._storage.volumes.pop((self.spec.name, name), None)
        self._storage.kept.pop(name, None)

    async def get_volume(self, name: str) -> Volume:
        if (self.spec.name, name) not in self._storage.volumes:
            raise not_found("volume", name)
        return self._storage.volumes[self.spec.name, name]

    async def list_volumes(self) -> list[Volume]:
        return [volume for (pool, _), volume in sorted(self._storage.volumes.items()) if pool == self.spec.name]

    async def path_of(self, name: str) -> Path:
        await self.get_volume(name)
        return self._storage.folder / name

    async def lease_of(self, name: str) -> None:
        """Simulated guests write nothing."""

    async def companion(self, name: str) -> Path:
        return (await self.path_of(name)).with_suffix(".machine")

    async def snapshot_obstacle(self, name: str) -> str:
        await self.get_volume(name)
        return self._storage.obstacles.get(name, "")

    async def snapshots_of(self, name: str) -> list[VolumeSnapshot]:
        await self.get_volume(name)
        return [VolumeSnapshot(name=snapshot) for snapshot in self._storage.kept.get(name, {})]

    async def snapshot_volume(self, name: str, snapshot: str) -> VolumeSnapshot:
        await self.get_volume(name)
        self._storage.fail(f"snapshot {name}")
        self._storage.kept.setdefault(name, {})[snapshot] = self._storage.content[name]
        return VolumeSnapshot(name=snapshot)

    async def delete_snapshot(self, name: str, snapshot: str) -> None:
        await self.get_volume(name)
        self._storage.kept.get(name, {}).pop(snapshot, None)

    async def revert_volume(self, name: str, snapshot: str) -> Volume:
        self._storage.fail(f"revert {name}")
        self._storage.content[name] = self._storage.kept[name][snapshot]
        return await self.get_volume(name)

    async def snapshot_companion(self, name: str, snapshot: str) -> None:
        await self.get_volume(name)

    async def revert_companion(self, name: str, snapshot: str) -> None:
        await self.get_volume(name)

    async def delete_companion_snapshot(self, name: str, snapshot: str) -> None:
        await self.get_volume(name)

    async def freeze_volume(self, name: str) -> Volume:
        self._storage.fail(f"freeze {name}")
        volume = await self.get_volume(name)
        volume.kind = VOLUME_KIND_BASE
        return volume

    async def copy_volume(self, request: CopyRequest, progress: Progress) -> Volume:
        progress(50, "copying")
        self._storage.fail(f"copy {request.source_volume}")
        source = await request.source.get_volume(request.source_volume)
        made = self._make(request.name, source.size_bytes)
        self._storage.rates[request.name] = request.bytes_per_s
        kept = self._storage.kept.get(request.source_volume, {})
        snapshot = request.source_snapshot
        self._storage.content[request.name] = kept[snapshot] if snapshot else self._storage.content[source.name]
        return made

    async def ensure_volume(self, request: VolumeRequest) -> Volume:
        return self._make(request.name, request.size_bytes)

    async def resize_volume(self, name: str, size_bytes: int, *, done_by_guest: bool = False) -> Volume:
        volume = await self.get_volume(name)
        volume.size_bytes = size_bytes
        return volume

    async def flatten_volume(self, name: str, progress: Progress, *, done_by_guest: bool = False) -> Volume:
        volume = await self.get_volume(name)
        volume.backing = ""
        return volume

    def _make(self, name: str, size_bytes: int) -> Volume:
        if (self.spec.name, name) not in self._storage.volumes:
            self._storage.made[name] += 1
            self._storage.volumes[self.spec.name, name] = Volume(
                pool=self.spec.name, name=name, format=VOLUME_FORMAT_QCOW2, size_bytes=size_bytes, sha256=SHA256
            )
        return self._storage.volumes[self.spec.name, name]
