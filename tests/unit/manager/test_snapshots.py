"""Snapshots and rollbacks through the whole cluster: taken, gone back to, deleted, and taken back when something fails or ends."""

import asyncio

import pytest
from gugus.agent.v1.snapshot_pb2 import (
    SNAPSHOT_CONSISTENCY_CRASH,
    SNAPSHOT_CONSISTENCY_MEMORY,
    SNAPSHOT_CONSISTENCY_STOPPED,
)
from gugus.agent.v1.task_pb2 import TASK_STATE_FAILED
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, GUEST_PHASE_STOPPED, POWER_OFF, POWER_ON, Guest
from gugus.cluster.v1.snapshot_pb2 import SNAPSHOT_STATE_DELETING, SNAPSHOT_STATE_READY, Snapshot
from gugus.cluster.v1.task_pb2 import Task

from client.sdk import Gugus
from client.tasks import check
from common.errors import GugusError, from_status, internal
from tests.unit.manager.cluster import Cluster, guest_spec
from tests.unit.manager.hypervisor import Hypervisor
from tests.unit.manager.snapshotting import MEMORY_BYTES, Snapshotting
from tests.unit.manager.storage import Storage


@pytest.fixture
def live(hypervisor: Hypervisor, storage: Storage) -> Snapshotting:
    """What takes the snapshots of running guests on n1."""
    made = Snapshotting(storage, hypervisor)
    hypervisor.snapshots = made  # type: ignore[assignment]
    return made


async def done(gugus: Gugus, task: Task) -> Task:
    return check(await gugus.tasks.wait(task))


async def make(gugus: Gugus, power: int = POWER_ON, disks: int = 2) -> Guest:
    """Make the guest "web" and return it."""
    await done(gugus, await gugus.guests.create("web", guest_spec(power, disks)))  # type: ignore[arg-type]
    return await gugus.guests.get("web")


def write(storage: Storage, guest: Guest) -> None:
    """Have the guest write to each of its disks."""
    for disk in guest.spec.disks:
        storage.content[disk.volume] += 1


def contents(storage: Storage, guest: Guest) -> list[int]:
    return [storage.content[disk.volume] for disk in guest.spec.disks]


def tags(storage: Storage) -> set[str]:
    """Return every tag that any volume has."""
    return {tag for kept in storage.kept.values() for tag in kept}


async def failed(gugus: Gugus, task: Task) -> str:
    ended = await gugus.tasks.wait(task)
    assert ended.state == TASK_STATE_FAILED
    return from_status(ended.error).reason


async def test_running_guest_is_held_without_memory_and_goes_back_stopped(
    cluster: Cluster, gugus: Gugus, live: Snapshotting, storage: Storage
) -> None:
    guest = await make(gugus)
    task = await done(gugus, await gugus.snapshots.create("web", "before", description="of the upgrade"))
    assert "power cut" in task.log[-1].text
    (taken,) = await gugus.snapshots.list("web")
    assert (taken.guest, taken.name, taken.state, taken.current) == ("web", "before", SNAPSHOT_STATE_READY, True)
    assert taken.consistency == SNAPSHOT_CONSISTENCY_CRASH
    assert (taken.description, len(taken.disks), taken.machine) == ("of the upgrade", 2, b"")
    write(storage, guest)
    await done(gugus, await gugus.snapshots.rollback("web", "before"))
    assert contents(storage, guest) == [0, 0]
    after = await gugus.guests.get("web")
    assert after.spec.power == POWER_OFF
    await cluster.eventually(lambda: not cluster.record("n1", "web").exists())
    await done(gugus, await gugus.guests.start("web"))


async def test_memory_lets_the_guest_run_on_with_its_hardware_of_then(
    cluster: Cluster, gugus: Gugus, live: Snapshotting, storage: Storage
) -> None:
    guest = await make(gugus)
    await done(gugus, await gugus.snapshots.create("web", "hot", memory=True))
    taken = await gugus.snapshots.get("web", "hot")
    assert (taken.consistency, taken.memory_bytes, taken.paused_ms) == (SNAPSHOT_CONSISTENCY_MEMORY, MEMORY_BYTES, 5)
    spec = guest.spec
    spec.memory_bytes *= 2
    spec.notes = "grown"
    await done(gugus, await gugus.guests.update("web", spec))
    write(storage, guest)
    await done(gugus, await gugus.snapshots.rollback("web", "hot"))
    after = await gugus.guests.get("web")
    assert (after.spec.memory_bytes, after.spec.notes, after.spec.power) == (16 << 20, "grown", POWER_ON)
    assert live.resumed == [taken.tag]
    assert contents(storage, guest) == [0, 0]
    await cluster.eventually(lambda: cluster.peek(Guest, "web").status.phase == GUEST_PHASE_RUNNING)  # type: ignore[union-attr]


async def test_stopped_guest_is_held_by_its_pools_and_started_when_asked(
    cluster: Cluster, gugus: Gugus, storage: Storage
) -> None:
    guest = await make(gugus, POWER_OFF)
    await done(gugus, await gugus.snapshots.create("web", "cold"))
    assert (await gugus.snapshots.get("web", "cold")).consistency == SNAPSHOT_CONSISTENCY_STOPPED
    write(storage, guest)
    await done(gugus, await gugus.snapshots.rollback("web", "cold", start=True))
    assert contents(storage, guest) == [0, 0]
    await cluster.eventually(lambda: cluster.record("n1", "web").exists())


async def test_tree_grows_branches_and_stays_whole_when_the_middle_goes(
    cluster: Cluster, gugus: Gugus, storage: Storage
) -> None:
    guest = await make(gugus, POWER_OFF)
    for name in ("a", "b", "c"):
        await done(gugus, await gugus.snapshots.create("web", name))
        write(storage, guest)
    await done(gugus, await gugus.snapshots.rollback("web", "b"))
    await done(gugus, await gugus.snapshots.create("web", "d"))
    found = await gugus.snapshots.list("web")
    assert [(s.name, s.parent) for s in found] == [("a", ""), ("b", "a"), ("c", "b"), ("d", "b")]
    await done(gugus, await gugus.snapshots.delete("web", "b"))
    found = await gugus.snapshots.list("web")
    assert [(s.name, s.parent, s.current) for s in found] == [("a", "", False), ("c", "a", False), ("d", "a", True)]
    await done(gugus, await gugus.snapshots.delete("web", "d"))
    assert (await gugus.guests.get("web")).status.parent_snapshot == "a"
    await done(gugus, await gugus.snapshots.rollback("web", "c"))
    assert contents(storage, guest) == [2, 2]
    assert {tag[0] for tag in tags(storage)} == {"a", "c"}


async def test_what_cannot_be_held_is_refused_at_the_door_with_all_of_it(
    gugus: Gugus, live: Snapshotting, storage: Storage
) -> None:
    guest = await make(gugus)
    first, second = (disk.volume for disk in guest.spec.disks)
    storage.obstacles = {first: "a raw disk has no snapshots", second: "the pool has none"}
    live.obstacles = ["a device of the host"]
    with pytest.raises(GugusError) as caught:
        await gugus.snapshots.create("web", "a", memory=True)
    assert caught.value.reason == "SNAPSHOT_UNSUPPORTED"
    for word in ("disk0", "disk1", "shared", "a raw disk has no snapshots", "the pool has none", "device of the host"):
        assert word in caught.value.message
    assert not await gugus.snapshots.list("web")
    assert not tags(storage)


async def test_snapshot_that_fails_leaves_nothing(
    cluster: Cluster, gugus: Gugus, live: Snapshotting, storage: Storage
) -> None:
    await make(gugus)
    live.fails = {
        "take": internal("SNAPSHOT_FAILED", "the disk is on fire."),
        "delete": internal("SNAPSHOT_FAILED", "no."),
    }
    assert await failed(gugus, await gugus.snapshots.create("web", "a")) == "SNAPSHOT_FAILED"
    assert not await gugus.snapshots.list("web")
    assert not tags(storage)
    assert cluster.record("n1", "web").exists()
    live.fails = {}
    await done(gugus, await gugus.snapshots.create("web", "a"))


async def test_deletion_that_fails_leaves_a_snapshot_that_can_only_be_deleted_again(
    gugus: Gugus, live: Snapshotting, storage: Storage
) -> None:
    await make(gugus)
    await done(gugus, await gugus.snapshots.create("web", "a"))
    live.fails = {"delete": internal("SNAPSHOT_FAILED", "no.")}
    assert await failed(gugus, await gugus.snapshots.delete("web", "a")) == "SNAPSHOT_FAILED"
    assert (await gugus.snapshots.get("web", "a")).state == SNAPSHOT_STATE_DELETING
    with pytest.raises(GugusError) as caught:
        await gugus.snapshots.rollback("web", "a")
    assert caught.value.reason == "SNAPSHOT_NOT_READY"
    await done(gugus, await gugus.snapshots.delete("web", "a"))
    assert not tags(storage)


async def test_rollback_that_fails_half_way_leaves_the_guest_off(
    cluster: Cluster, gugus: Gugus, live: Snapshotting, storage: Storage
) -> None:
    guest = await make(gugus)
    await done(gugus, await gugus.snapshots.create("web", "a"))
    storage.faults = {f"revert {guest.spec.disks[1].volume}": internal("COMMAND_FAILED", "the disk is on fire.")}
    assert await failed(gugus, await gugus.snapshots.rollback("web", "a")) == "COMMAND_FAILED"
    after = await gugus.guests.get("web")
    assert after.spec.power == POWER_OFF
    assert not after.status.HasField("lock")
    storage.faults = {}
    await done(gugus, await gugus.snapshots.rollback("web", "a", start=True))
    await cluster.eventually(lambda: cluster.record("n1", "web").exists())


async def test_memory_that_cannot_be_loaded_leaves_the_guest_off(
    cluster: Cluster, gugus: Gugus, live: Snapshotting
) -> None:
    await make(gugus)
    await done(gugus, await gugus.snapshots.create("web", "a", memory=True))
    live.fails = {"start": internal("SNAPSHOT_FAILED", "the memory is of another machine.")}
    assert await failed(gugus, await gugus.snapshots.rollback("web", "a")) == "SNAPSHOT_FAILED"
    await cluster.eventually(lambda: cluster.peek(Guest, "web").status.phase == GUEST_PHASE_STOPPED)  # type: ignore[union-attr]
    assert not cluster.record("n1", "web").exists()
    live.fails = {}
    await done(gugus, await gugus.snapshots.rollback("web", "a"))


async def test_snapshots_go_with_their_guest(cluster: Cluster, gugus: Gugus, storage: Storage) -> None:
    await make(gugus, POWER_OFF)
    await done(gugus, await gugus.snapshots.create("web", "a"))
    await done(gugus, await gugus.guests.delete("web"))
    assert not cluster.store.peek_all(Snapshot)
    assert not tags(storage)


async def test_snapshots_stay_with_a_guest_that_is_renamed(gugus: Gugus, storage: Storage) -> None:
    guest = await make(gugus, POWER_OFF)
    await done(gugus, await gugus.snapshots.create("web", "a"))
    write(storage, guest)
    await done(gugus, await gugus.guests.rename("web", "shop"))
    (found,) = await gugus.snapshots.list("shop")
    assert (found.guest, found.name) == ("shop", "a")
    await done(gugus, await gugus.snapshots.rollback("shop", "a"))
    assert contents(storage, guest) == [0, 0]


async def test_repeated_call_takes_one_snapshot(gugus: Gugus) -> None:
    await make(gugus, POWER_OFF)
    first = await gugus.snapshots.create("web", "a", request_id="once")
    await done(gugus, first)
    again = await gugus.snapshots.create("web", "a", request_id="once")
    assert first.meta.name == again.meta.name
    with pytest.raises(GugusError) as caught:
        await gugus.snapshots.create("web", "a")
    assert caught.value.reason == "SNAPSHOT_ALREADY_EXISTS"


async def test_two_asked_for_at_once_under_one_name_make_one(gugus: Gugus, storage: Storage) -> None:
    """The later one is refused at the door, or, when it came in before the first one was begun, by its task."""
    await make(gugus, POWER_OFF)

    async def ask() -> str:
        try:
            task = await gugus.tasks.wait(await gugus.snapshots.create("web", "a"))
        except GugusError as error:
            return error.reason
        return from_status(task.error).reason if task.error.code else ""

    assert sorted(await asyncio.gather(ask(), ask())) == ["", "SNAPSHOT_ALREADY_EXISTS"]
    assert (await gugus.snapshots.get("web", "a")).state == SNAPSHOT_STATE_READY
    assert len(tags(storage)) == 1
