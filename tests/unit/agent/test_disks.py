"""Disks of one host are copied and flattened by whoever may: the hypervisor while their guest runs, else their pools."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from gugus.agent.v1 import disk_pb2
from gugus.agent.v1.guest_pb2 import (
    GUEST_KIND_VIRTUAL_MACHINE,
    GUEST_STATE_RUNNING,
    GUEST_STATE_STOPPED,
    GuestDisk,
    GuestState,
)
from gugus.agent.v1.volume_pb2 import VOLUME_FORMAT_FILESYSTEM, VOLUME_FORMAT_QCOW2, PoolSpec, Volume

from agent.compute.hypervisor import Observation
from agent.disks import Disks
from common.errors import GugusError
from tests.unit.manager.storage import Pool, Storage

DISK = GuestDisk(name="data", pool="slow", volume="a")
COPY = GuestDisk(name="data", pool="fast", volume="b")
OF_WEB: dict[str, Any] = {"epoch": 1, "name": "web", "kind": GUEST_KIND_VIRTUAL_MACHINE, "disk": DISK}


class Live:
    """Remembers what is asked for disks in use."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, what: str) -> Any:
        async def do(name: str, disk: Path, *rest: Any) -> None:
            self.asked.append(f"{what} {disk.name}")

        return do


class Host:
    """Two pools, the volume "a" in one of them, and the guest "web" that may use it."""

    def __init__(self) -> None:
        self.storage, self.live = Storage(), Live()
        self.state: GuestState.ValueType = GUEST_STATE_RUNNING
        self.hypervisor = SimpleNamespace(name="fake", disks=self.live)
        self.storage.volumes["slow", "a"] = Volume(pool="slow", name="a", format=VOLUME_FORMAT_QCOW2, size_bytes=512)
        pools = {name: Pool(self.storage, PoolSpec(name=name)) for name in ("slow", "fast")}

        async def look(name: str, _: object) -> Observation:
            return Observation(self.state)

        async def run(subject: str, epoch: int, change: Callable[[], Awaitable[Any]]) -> Any:
            return await change()

        async def locate(disk: GuestDisk) -> tuple[Path, Volume]:
            return await pools[disk.pool].path_of(disk.volume), await pools[disk.pool].get_volume(disk.volume)

        async def delete_volume(pool: str, name: str) -> None:
            await pools[pool].delete_volume(name)

        self.disks = Disks(
            cast(Any, SimpleNamespace(hypervisor_for=lambda kind: self.hypervisor, look=look)),
            cast(Any, SimpleNamespace(get=pools.__getitem__, locate=locate, delete_volume=delete_volume)),
            cast(Any, SimpleNamespace(run=run)),
        )

    async def mirror(self) -> None:
        await self.disks.mirror(
            disk_pb2.MirrorDiskRequest(**OF_WEB, pool="fast", volume="b"), lambda percent, text: None
        )

    async def flatten(self) -> None:
        await self.disks.flatten(disk_pb2.FlattenDiskRequest(**OF_WEB), lambda percent, text: None)

    def has(self, pool: str, volume: str) -> bool:
        return (pool, volume) in self.storage.volumes


@pytest.fixture
def host() -> Host:
    return Host()


async def test_disk_in_use_is_mirrored_into_an_empty_volume_of_its_size(host: Host) -> None:
    await host.mirror()
    assert host.live.asked == ["mirror a"]
    assert host.storage.volumes["fast", "b"].size_bytes == 512


async def test_disk_at_rest_is_copied_and_there_is_nothing_to_go_over_to(host: Host) -> None:
    host.state = GUEST_STATE_STOPPED
    host.storage.content["a"] = 3
    await host.mirror()
    await host.disks.pivot(disk_pb2.PivotDiskRequest(**OF_WEB, copy=COPY))
    assert not host.live.asked
    assert host.storage.content["b"] == 3


async def test_guest_goes_over_to_the_copy(host: Host) -> None:
    await host.mirror()
    await host.disks.pivot(disk_pb2.PivotDiskRequest(**OF_WEB, copy=COPY))
    assert host.live.asked == ["mirror a", "pivot a"]


async def test_copy_that_is_given_up_is_ended_and_deleted(host: Host) -> None:
    await host.mirror()
    drop = disk_pb2.DropMirrorRequest(**OF_WEB, copy=COPY)
    await host.disks.drop(drop)
    assert host.live.asked == ["mirror a", "drop a"]
    assert not host.has("fast", "b")
    await host.disks.drop(drop)
    assert host.has("slow", "a")


async def test_folder_of_a_container_that_runs_is_not_moved(host: Host) -> None:
    host.storage.volumes["slow", "a"].format = VOLUME_FORMAT_FILESYSTEM
    with pytest.raises(GugusError) as caught:
        await host.mirror()
    assert caught.value.reason == "GUEST_RUNNING"


async def test_guest_of_a_hypervisor_without_the_ability_has_to_be_stopped(host: Host) -> None:
    host.hypervisor.disks = None
    for work in (host.mirror, host.flatten):
        with pytest.raises(GugusError) as caught:
            await work()
        assert caught.value.reason == "GUEST_RUNNING"


async def test_disk_is_flattened_in_use_and_at_rest(host: Host) -> None:
    host.storage.volumes["slow", "a"].backing = "base"
    await host.flatten()
    assert host.live.asked == ["flatten a"]
    host.storage.volumes["slow", "a"].backing = "base"
    host.state = GUEST_STATE_STOPPED
    await host.flatten()
    assert host.live.asked == ["flatten a"]
    assert not host.storage.volumes["slow", "a"].backing


async def test_disk_whose_snapshots_read_from_the_base_is_not_flattened(host: Host) -> None:
    host.storage.kept["a"] = {"before": 0}
    with pytest.raises(GugusError) as caught:
        await host.flatten()
    assert caught.value.reason == "VOLUME_HAS_SNAPSHOTS"
    assert not host.live.asked
