"""Managers and agents that end in the middle of snapshots, rollbacks, clones and templates: whoever comes next finishes the work, once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from gugus.agent.v1.volume_pb2 import DirPool, PoolSpec
from gugus.cluster.v1.clone_pb2 import CloneGuestRequest
from gugus.cluster.v1.guest_pb2 import POWER_OFF, Guest
from gugus.cluster.v1.snapshot_pb2 import Snapshot
from gugus.cluster.v1.task_pb2 import Task

import manager.daemon
from client.sdk import Gugus
from client.tasks import check
from common.errors import from_status, internal
from manager.controllers.context import Context
from manager.controllers.work import Work
from manager.operations import operation
from manager.store import Store
from tests.unit.manager.cluster import IMAGE, POOL, Cluster, guest_spec, running
from tests.unit.manager.hypervisor import Hypervisor
from tests.unit.manager.snapshotting import Snapshotting
from tests.unit.manager.storage import Storage
from tests.unit.manager.test_interruptions import Axe, CutContext, CutStore, Lives


@pytest.fixture
async def axe(monkeypatch: pytest.MonkeyPatch) -> Axe:
    made = Axe()

    def work(context: Context, *others: Any) -> Work:
        store = cast(Store, CutStore(context.store, made))
        return Work(CutContext(store, context.acting, context.agents, context.beats, axe=made), *others)

    monkeypatch.setattr(manager.daemon, "Work", work)
    monkeypatch.setattr(operation, "POLL_S", 0.02)
    return made


@pytest.fixture
async def cluster(tmp_path: Path, axe: Axe, hypervisor: Hypervisor, storage: Storage) -> AsyncIterator[Cluster]:
    async with running(tmp_path, hypervisor) as cluster:
        yield cluster


@pytest.fixture
def live(hypervisor: Hypervisor, storage: Storage) -> Snapshotting:
    made = Snapshotting(storage, hypervisor)
    hypervisor.snapshots = made  # type: ignore[assignment]
    return made


async def until_no_cut(lives: Lives, once: Callable[[], Awaitable[None]]) -> None:
    """Do something again and again, cut before a later step each time, until it has no so many."""
    cut = True
    while cut:
        before = lives.cuts
        await once()
        lives.number += 1
        cut = lives.cuts > before
    assert lives.number > 5, "it is not done in fewer steps"


def contents(storage: Storage, guest: Guest) -> list[int]:
    return [storage.content[disk.volume] for disk in guest.spec.disks]


def tags(storage: Storage) -> list[str]:
    return sorted(tag for kept in storage.kept.values() for tag in kept)


async def test_snapshot_is_taken_gone_back_to_and_deleted_by_managers_that_end_between_any_two_steps(
    cluster: Cluster, axe: Axe, gugus: Gugus, live: Snapshotting, storage: Storage
) -> None:
    check(await gugus.tasks.wait(await gugus.guests.create("web", guest_spec(disks=2))))
    guest, lives = await gugus.guests.get("web"), Lives(cluster, axe)

    def unlocked() -> bool:
        found = cluster.peek(Guest, "web")
        return found is not None and not found.status.HasField("lock")

    async def once() -> None:
        check(await lives.survive(gugus.snapshots.create("web", "a", memory=True), unlocked))
        kept = contents(storage, guest)
        assert len(tags(storage)) == 2
        for disk in guest.spec.disks:
            storage.content[disk.volume] += 1
        check(await lives.survive(gugus.snapshots.rollback("web", "a"), unlocked))
        assert contents(storage, guest) == kept
        assert cluster.record("n1", "web").exists()
        check(await lives.survive(gugus.snapshots.delete("web", "a"), unlocked))
        assert not tags(storage)
        assert not cluster.store.peek_all(Snapshot)
        assert cluster.store.peek(Guest, "web").status.parent_snapshot == ""  # type: ignore[union-attr]

    await until_no_cut(lives, once)


async def test_snapshot_that_fails_is_taken_back_by_managers_that_end_between_any_two_steps(
    cluster: Cluster, axe: Axe, gugus: Gugus, live: Snapshotting, storage: Storage
) -> None:
    check(await gugus.tasks.wait(await gugus.guests.create("web", guest_spec(disks=2))))
    lives = Lives(cluster, axe)

    async def once() -> None:
        live.fails = {"take": internal("SNAPSHOT_FAILED", "no."), "delete": internal("SNAPSHOT_FAILED", "no.")}
        task = await lives.survive(gugus.snapshots.create("web", "a"))
        assert from_status(task.error).reason == "SNAPSHOT_FAILED"
        assert not tags(storage)
        assert not cluster.store.peek_all(Snapshot)

    await until_no_cut(lives, once)


async def test_full_clone_is_made_by_managers_that_end_between_any_two_steps(
    cluster: Cluster, axe: Axe, gugus: Gugus, live: Snapshotting, storage: Storage
) -> None:
    check(await gugus.tasks.wait(await gugus.guests.create("web", guest_spec(disks=2))))
    lives = Lives(cluster, axe)
    own = storage.names()

    async def once() -> None:
        for volume in (await gugus.guests.get("web")).spec.disks:
            storage.content[volume.volume] += 1
        check(await lives.survive(gugus.clones.clone(CloneGuestRequest(source="web", name="shop", start=True))))
        clone = await gugus.guests.get("shop")
        assert contents(storage, clone) == contents(storage, await gugus.guests.get("web"))
        assert not tags(storage), "the snapshot for the copy is gone"
        await cluster.eventually(lambda: cluster.record("n1", "shop").exists())
        check(await lives.survive(gugus.guests.delete("shop", force=True)))
        assert storage.names() == own

    await until_no_cut(lives, once)


async def test_clone_that_fails_leaves_nothing_by_managers_that_end_between_any_two_steps(
    cluster: Cluster, axe: Axe, gugus: Gugus, live: Snapshotting, storage: Storage
) -> None:
    check(await gugus.tasks.wait(await gugus.guests.create("web", guest_spec(disks=2))))
    guest, lives, own = await gugus.guests.get("web"), Lives(cluster, axe), storage.names()
    storage.faults[f"copy {guest.spec.disks[1].volume}"] = internal("COMMAND_FAILED", "the disk is on fire.")

    async def once() -> None:
        request = CloneGuestRequest(source="web", name="shop")
        task = await lives.survive(gugus.clones.clone(request), lambda: cluster.peek(Guest, "shop") is None)
        assert from_status(task.error).reason == "COMMAND_FAILED"
        assert storage.names() == own
        assert not tags(storage)

    await until_no_cut(lives, once)


async def test_template_is_made_by_managers_that_end_between_any_two_steps(
    cluster: Cluster, axe: Axe, gugus: Gugus, storage: Storage
) -> None:
    lives = Lives(cluster, axe)

    async def once() -> None:
        check(await gugus.tasks.wait(await gugus.guests.create("base", guest_spec(POWER_OFF, disks=2))))
        check(await lives.survive(gugus.clones.template("base")))
        assert (await gugus.guests.get("base")).spec.template
        check(await gugus.tasks.wait(await gugus.guests.delete("base")))
        assert storage.names() == {IMAGE}

    await until_no_cut(lives, once)


async def test_disk_is_moved_by_managers_that_end_between_any_two_steps(
    cluster: Cluster, axe: Axe, gugus: Gugus, storage: Storage
) -> None:
    check(await gugus.tasks.wait(await gugus.guests.create("web", guest_spec(POWER_OFF))))
    await gugus.pools.create(PoolSpec(name="other", dir=DirPool(path="/srv/other")))
    lives, pools = Lives(cluster, axe), [POOL.name, "other"]

    async def once() -> None:
        pools.reverse()
        (disk,) = (await gugus.guests.get("web")).spec.disks
        storage.content[disk.volume] += 1
        check(await lives.survive(gugus.clones.move_disk("web", disk.name, pools[0])))
        (moved,) = (await gugus.guests.get("web")).spec.disks
        assert (moved.pool, storage.content[moved.volume]) == (pools[0], storage.content[disk.volume])
        await cluster.eventually(lambda: storage.names() == {IMAGE, moved.volume})

    await until_no_cut(lives, once)


class Gate(Snapshotting):
    """Takes a snapshot of the first disk, and then waits until it is let go on, or its agent has ended."""

    def __init__(self, storage: Storage, hypervisor: Hypervisor) -> None:
        super().__init__(storage, hypervisor)
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def take(self, name: str, tag: str, disks: Any, *, memory: bool) -> Any:
        await super().take(name, tag, disks[:1], memory=memory)
        self.reached.set()
        await self.go.wait()
        return await super().take(name, tag, disks, memory=memory)


async def test_agent_that_ends_in_the_middle_is_asked_again(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor, storage: Storage
) -> None:
    gate = Gate(storage, hypervisor)
    hypervisor.snapshots = gate  # type: ignore[assignment]
    check(await gugus.tasks.wait(await gugus.guests.create("web", guest_spec(disks=2))))
    task: Task = await gugus.snapshots.create("web", "a")
    await gate.reached.wait()
    await cluster.stop_agent("n1")
    gate.go.set()
    cluster.start_agent("n1", hypervisor)
    check(await gugus.tasks.wait(task))
    assert len(tags(storage)) == 2
    assert len(set(tags(storage))) == 1
