"""Snapshots on one host: guests are held and always let go, what fails leaves nothing, what cannot be is told as a whole."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from gugus.agent.v1 import snapshot_pb2
from gugus.agent.v1.guest_pb2 import (
    GUEST_KIND_CONTAINER,
    GUEST_KIND_VIRTUAL_MACHINE,
    GUEST_STATE_PAUSED,
    GUEST_STATE_RUNNING,
    GUEST_STATE_STOPPED,
    GuestDisk,
    GuestSpec,
    GuestState,
)
from gugus.agent.v1.snapshot_pb2 import (
    SNAPSHOT_CONSISTENCY_CRASH,
    SNAPSHOT_CONSISTENCY_FROZEN,
    SNAPSHOT_CONSISTENCY_PAUSED,
)
from gugus.agent.v1.volume_pb2 import PoolSpec, Volume

from agent import holding
from agent.compute.hypervisor import Observation
from agent.compute.snapshots import Taken
from agent.snapshots import Snapshots
from common.errors import GugusError, internal, precondition
from tests.unit.manager.storage import Pool, Storage

KIND = GUEST_KIND_VIRTUAL_MACHINE


class Hypervisor:
    """Remembers in which order it was asked for what."""

    name = "fake"

    def __init__(self) -> None:
        self.state: GuestState.ValueType = GUEST_STATE_RUNNING
        self.asked: list[str] = []
        self.fails: dict[str, GugusError] = {}
        self.slow_s = 0.0
        self.memory_used_bytes = 0
        self.obstacles: list[str] = []
        self.snapshots: Any = None
        self.access: Any = None

    async def observe(self, name: str) -> Observation:
        return Observation(
            self.state, pid=7 if self.state != GUEST_STATE_STOPPED else 0, memory_used_bytes=self.memory_used_bytes
        )

    async def suspend(self, name: str) -> None:
        self._do("suspend")

    async def resume(self, name: str) -> None:
        self._do("resume")

    async def freeze(self, name: str, timeout_s: float) -> int:
        self._do("freeze")
        return 2

    async def thaw(self, name: str) -> None:
        self._do("thaw")

    async def take(self, name: str, tag: str, disks: Any, *, memory: bool) -> Taken:
        await asyncio.sleep(self.slow_s)
        self._do("take")
        return Taken()

    async def delete(self, name: str, tag: str, disks: Any) -> None:
        self._do(f"delete {','.join(path.name for path in disks)}")

    async def memory_obstacles(self, name: str) -> list[str]:
        return self.obstacles

    def _do(self, what: str) -> None:
        self.asked.append(what)
        if error := self.fails.get(what):
            raise error


class Host:
    """One host with the guest "web", whose disks are volumes "a" and "b" of one pool."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.storage = Storage()
        self.pool = Pool(self.storage, PoolSpec(name="local"))
        for name in ("a", "b"):
            self.storage.volumes["local", name] = Volume(pool="local", name=name)
        self.disks = [GuestDisk(name=f"disk-{name}", pool="local", volume=name) for name in ("a", "b")]
        spec = GuestSpec(name="web", disks=self.disks, memory_bytes=1 << 50)

        async def look(name: str, _: object) -> Observation:
            return await hypervisor.observe(name)

        async def run(subject: str, epoch: int, change: Callable[[], Awaitable[Any]]) -> Any:
            return await change()

        async def locate(disk: GuestDisk) -> tuple[Path, Volume]:
            return await self.pool.path_of(disk.volume), await self.pool.get_volume(disk.volume)

        self.snapshots = Snapshots(
            cast(Any, SimpleNamespace(guests={"web": spec})),
            cast(Any, SimpleNamespace(hypervisor_for=lambda kind: hypervisor, look=look)),
            cast(Any, SimpleNamespace(get=lambda name: self.pool, locate=locate)),
            cast(Any, SimpleNamespace()),
            cast(Any, SimpleNamespace(run=run)),
        )

    async def take(self, **changes: Any) -> snapshot_pb2.TakeSnapshotResponse:
        request = {"epoch": 1, "name": "web", "kind": KIND, "disks": self.disks, "tag": "t", **changes}
        return await self.snapshots.take(snapshot_pb2.TakeSnapshotRequest(**request))

    async def delete(self) -> None:
        request = snapshot_pb2.DeleteSnapshotRequest(epoch=1, name="web", kind=KIND, disks=self.disks, tag="t")
        await self.snapshots.delete(request)

    async def revert(self) -> None:
        request = snapshot_pb2.RevertSnapshotRequest(epoch=1, name="web", kind=KIND, disks=self.disks, tag="t")
        await self.snapshots.revert(request)

    def tags(self) -> dict[str, set[str]]:
        return {volume: set(kept) for volume, kept in self.storage.kept.items() if kept}


@pytest.fixture
def hypervisor() -> Hypervisor:
    return Hypervisor()


@pytest.fixture
def host(hypervisor: Hypervisor) -> Host:
    return Host(hypervisor)


@pytest.fixture
def live(hypervisor: Hypervisor) -> Hypervisor:
    """The hypervisor takes the snapshots of running guests itself, and reaches a guest agent."""
    hypervisor.snapshots = hypervisor.access = hypervisor
    return hypervisor


async def test_file_systems_are_frozen_around_the_snapshot(host: Host, live: Hypervisor) -> None:
    taken = await host.take()
    assert live.asked == ["freeze", "take", "thaw"]
    assert taken.consistency == SNAPSHOT_CONSISTENCY_FROZEN
    assert "2 file systems" in taken.note


async def test_file_systems_are_thawed_when_the_snapshot_fails(host: Host, live: Hypervisor) -> None:
    live.fails["take"] = internal("SNAPSHOT_FAILED", "no.")
    with pytest.raises(GugusError, match="no"):
        await host.take()
    assert live.asked == ["freeze", "take", "delete a,b", "thaw"]
    assert not host.tags()


async def test_snapshot_without_an_agent_says_so(host: Host, live: Hypervisor) -> None:
    live.fails["freeze"] = precondition("GUEST_AGENT_MISSING", "no agent answers.")
    taken = await host.take()
    assert taken.consistency == SNAPSHOT_CONSISTENCY_CRASH
    assert "no agent answers" in taken.note
    assert (await host.take(no_freeze=True)).consistency == SNAPSHOT_CONSISTENCY_CRASH
    assert live.asked == ["freeze", "take", "take"]


async def test_snapshot_that_outlasts_the_freeze_is_not_called_frozen(
    host: Host, live: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "FREEZE_TIMEOUT_S", 0.01)
    live.slow_s = 0.02
    assert (await host.take()).consistency == SNAPSHOT_CONSISTENCY_CRASH


async def test_guest_whose_hypervisor_has_none_stands_still_for_its_pools(host: Host, hypervisor: Hypervisor) -> None:
    taken = await host.take(kind=GUEST_KIND_CONTAINER)
    assert taken.consistency == SNAPSHOT_CONSISTENCY_PAUSED
    assert hypervisor.asked == ["suspend", "resume"]
    assert host.tags() == {"a": {"t"}, "b": {"t"}}


async def test_guest_goes_on_when_a_pool_fails_and_nothing_is_left(host: Host, hypervisor: Hypervisor) -> None:
    host.storage.faults["snapshot b"] = internal("POOL_FAILED", "no.")
    with pytest.raises(GugusError, match="no"):
        await host.take()
    assert hypervisor.asked == ["suspend", "resume"]
    assert not host.tags()


async def test_guest_that_somebody_holds_stays_held(host: Host, hypervisor: Hypervisor) -> None:
    hypervisor.state = GUEST_STATE_PAUSED
    await host.take()
    assert not hypervisor.asked


async def test_disks_of_a_cut_short_snapshot_are_taken_anew_together(host: Host, hypervisor: Hypervisor) -> None:
    hypervisor.state = GUEST_STATE_STOPPED
    await host.pool.snapshot_volume("a", "t")
    host.storage.content["a"] = 4
    await host.take()
    assert host.storage.kept["a"]["t"] == 4


async def test_guest_that_was_started_anew_is_not_taken_for_the_one_that_was_prepared(
    host: Host, live: Hypervisor
) -> None:
    with pytest.raises(GugusError) as caught:
        await host.take(pid=6)
    assert caught.value.reason == "GUEST_CHANGED"
    await host.take(pid=7)


async def test_everything_that_stands_in_the_way_is_told_at_once(host: Host, live: Hypervisor) -> None:
    host.storage.obstacles = {"a": "it is raw.", "b": "the pool has none"}
    live.obstacles = ["a device of the host"]
    request = snapshot_pb2.PrepareSnapshotRequest(name="web", kind=KIND, disks=host.disks, memory=True)
    answer = await host.snapshots.prepare(request)
    assert [(o.what, o.reason) for o in answer.obstacles] == [
        ("disk-a", "it is raw"),
        ("disk-b", "the pool has none"),
        ("memory", "a device of the host"),
    ]
    assert (answer.running, answer.pid, answer.machine) == (True, 7, b"")
    with pytest.raises(GugusError) as caught:
        await host.take(memory=True)
    assert caught.value.reason == "SNAPSHOT_UNSUPPORTED"
    assert not live.asked


async def test_memory_of_a_stopped_guest_cannot_be_held(host: Host, live: Hypervisor) -> None:
    live.state = GUEST_STATE_STOPPED
    request = snapshot_pb2.PrepareSnapshotRequest(name="web", kind=KIND, disks=host.disks, memory=True)
    assert [o.reason for o in (await host.snapshots.prepare(request)).obstacles] == ["the guest is not running"]


async def test_snapshot_is_deleted_from_the_disks_that_are_left(host: Host, live: Hypervisor) -> None:
    del host.storage.volumes["local", "b"]
    await host.delete()
    assert live.asked == ["delete a"]


async def test_disk_that_the_running_guest_does_not_use_is_left_to_its_pool(host: Host, live: Hypervisor) -> None:
    host.storage.volumes["local", "c"] = Volume(pool="local", name="c")
    await host.pool.snapshot_volume("c", "t")
    host.disks.append(GuestDisk(name="old", pool="local", volume="c"))
    await host.delete()
    assert live.asked == ["delete a,b"]
    assert not host.tags()


async def test_revert_changes_no_disk_unless_all_have_the_snapshot(host: Host, hypervisor: Hypervisor) -> None:
    hypervisor.state = GUEST_STATE_STOPPED
    await host.pool.snapshot_volume("a", "t")
    host.storage.content["a"] = 9
    with pytest.raises(GugusError) as caught:
        await host.revert()
    assert caught.value.reason == "SNAPSHOT_NOT_FOUND"
    assert host.storage.content["a"] == 9


async def test_running_guest_is_not_reverted(host: Host) -> None:
    with pytest.raises(GugusError) as caught:
        await host.revert()
    assert caught.value.reason == "GUEST_RUNNING"


async def test_memory_that_the_pool_has_no_room_for_is_refused_before_the_guest_stands_still(
    host: Host, live: Hypervisor
) -> None:
    live.memory_used_bytes = 1 << 41
    with pytest.raises(GugusError) as caught:
        await host.take(memory=True)
    assert caught.value.reason == "NO_SPACE"
    assert "2TiB" in caught.value.message
    assert not live.asked


async def test_write_that_failed_while_the_pool_was_full_says_so(host: Host, live: Hypervisor) -> None:
    live.memory_used_bytes = 1 << 41
    live.fails["take"] = internal("SNAPSHOT_FAILED", "Error while writing VM state: Input/output error.")
    with pytest.raises(GugusError) as caught:
        await host.take()
    assert caught.value.reason == "NO_SPACE"
    live.memory_used_bytes = 1 << 20
    with pytest.raises(GugusError) as caught:
        await host.take()
    assert caught.value.reason == "SNAPSHOT_FAILED"
