"""Disks for tests: volumes that are entries of a table, shared by all nodes, and that fail when they are told to."""

import asyncio
from collections import Counter
from pathlib import Path

from gugus.agent.v1 import volume_pb2
from gugus.agent.v1.volume_pb2 import VOLUME_FORMAT_QCOW2, PoolSpec, Volume

from agent.storage.pool import Progress, VolumeRequest
from common.errors import GugusError, not_found

SHA256 = "0" * 64


class Storage:
    """All pools of all nodes of a test. `create` is what the agents' registry of drivers is replaced by."""

    def __init__(self) -> None:
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
        return volume_pb2.Pool(spec=self.spec, ready=True, capacity_bytes=1 << 40, available_bytes=1 << 40)

    async def create_volume(self, request: VolumeRequest) -> Volume:
        self._storage.fail(request.source)
        return self._make(request.name, request.size_bytes)

    async def import_volume(self, name: str, source: str, sha256: str, progress: Progress) -> Volume:
        await self._storage.may_import.wait()
        self._storage.fail(name)
        return self._make(name, 1 << 20)

    async def delete_volume(self, name: str) -> None:
        await self._storage.may_delete.wait()
        self._storage.fail(name)
        self._storage.volumes.pop((self.spec.name, name), None)

    async def get_volume(self, name: str) -> Volume:
        if (self.spec.name, name) not in self._storage.volumes:
            raise not_found("volume", name)
        return self._storage.volumes[self.spec.name, name]

    async def list_volumes(self) -> list[Volume]:
        return [volume for (pool, _), volume in sorted(self._storage.volumes.items()) if pool == self.spec.name]

    async def path_of(self, name: str) -> Path:
        await self.get_volume(name)
        return Path("/nowhere") / name

    def _make(self, name: str, size_bytes: int) -> Volume:
        if (self.spec.name, name) not in self._storage.volumes:
            self._storage.made[name] += 1
            self._storage.volumes[self.spec.name, name] = Volume(
                pool=self.spec.name, name=name, format=VOLUME_FORMAT_QCOW2, size_bytes=size_bytes, sha256=SHA256
            )
        return self._storage.volumes[self.spec.name, name]
