"""A manager that ends between any two steps: whoever comes next finishes the work, once.

The guest controller's steps are its commits and its calls to agents. Each life of a guest is cut before another step; the manager is then
started again from its disk, and the life goes on to its end.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from gugus.cluster.v1.guest_pb2 import POWER_OFF, Guest
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.task_pb2 import Task

import manager.daemon
from client.sdk import Gugus
from client.tasks import check
from common import trace
from common.errors import from_status, resource_exhausted
from manager.agents import Agent
from manager.controllers.context import Context
from manager.controllers.work import Work
from manager.store import Store, Txn, TxnResult
from tests.unit.manager.cluster import IMAGE, POOL, Cluster, guest_spec, running
from tests.unit.manager.hypervisor import Hypervisor
from tests.unit.manager.storage import Storage

T = TypeVar("T")


class Axe:
    """Counts the steps of the guest controller, and has it stop for ever before one of them."""

    def __init__(self) -> None:
        self.fell = False
        self._steps = 0
        self._fall_at: int | None = None

    def swing(self, fall_at: int) -> None:
        """Begin to count anew; fall before the step of that number."""
        self.fell, self._steps, self._fall_at = False, 0, fall_at

    def put_away(self) -> bool:
        """Return whether it fell; it does not any more."""
        self._fall_at = None
        return self.fell

    async def before(self, step: Callable[[], Awaitable[T]]) -> T:
        """Take a step, if it may be taken. Steps of other controllers do not count."""
        if "guest" in trace.current():
            if self._steps == self._fall_at:
                self.fell, self._fall_at = True, None
                await asyncio.Event().wait()  # until the manager's end
            self._steps += 1
        return await step()


class CutStore:
    """The store as controllers have it."""

    def __init__(self, store: Store, axe: Axe) -> None:
        self._store, self._axe = store, axe

    async def txn(self, txn: Txn) -> TxnResult:
        return await self._axe.before(lambda: self._store.txn(txn))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@dataclasses.dataclass(frozen=True)
class CutContext(Context):
    """The context as controllers have it."""

    axe: Axe = dataclasses.field(default_factory=Axe)

    async def tell(self, node: Node, call: Callable[[Agent, int], Awaitable[T]]) -> T:
        return await self.axe.before(lambda: super(CutContext, self).tell(node, call))


@pytest.fixture
async def axe(monkeypatch: pytest.MonkeyPatch) -> Axe:
    made = Axe()

    def work(context: Context, *others: Any) -> Work:
        store = cast(Store, CutStore(context.store, made))
        return Work(CutContext(store, context.acting, context.agents, context.beats, axe=made), *others)

    monkeypatch.setattr(manager.daemon, "Work", work)
    return made


@pytest.fixture
async def cluster(tmp_path: Path, axe: Axe, hypervisor: Hypervisor, storage: Storage) -> AsyncIterator[Cluster]:
    async with running(tmp_path, hypervisor) as cluster:
        yield cluster


class Lives:
    """Lives of one guest, each cut before the step of a number, wherever it has so many."""

    def __init__(self, cluster: Cluster, axe: Axe) -> None:
        self._cluster, self._axe = cluster, axe
        self.number = 0
        self.cuts = 0

    async def survive(self, begin: Awaitable[Task], over: Callable[[], object] = lambda: True) -> Task:
        """Have something done by a manager that falls before a step, and the one that comes next; return the ended task."""
        self._axe.swing(self.number)
        task = await begin
        await self._cluster.eventually(lambda: self._axe.fell or (self._cluster.has_ended(task) and over()))
        if self._axe.put_away():
            await self._cluster.stop_manager()
            self._cluster.start_manager()
            self.cuts += 1
        await self._cluster.eventually(lambda: self._cluster.has_ended(task) and over())
        return await self._cluster.ended(task)


async def test_guest_is_made_stopped_started_and_deleted_by_managers_that_end_between_any_two_steps(
    cluster: Cluster, axe: Axe, gugus: Gugus, hypervisor: Hypervisor, storage: Storage
) -> None:
    lives, record = Lives(cluster, axe), cluster.record("n1", "web")
    cut = True
    while cut:
        before = lives.cuts
        check(await lives.survive(gugus.guests.create("web", guest_spec())))
        assert record.exists()
        check(await lives.survive(gugus.guests.stop("web")))
        assert not record.exists()
        check(await lives.survive(gugus.guests.start("web")))
        assert record.exists()
        check(await lives.survive(gugus.guests.delete("web", force=True)))
        assert not record.exists()
        assert storage.names() == {IMAGE}
        lives.number += 1
        cut = lives.cuts > before
    assert lives.number > 5, "a guest is not made in fewer steps"
    assert all(count == 1 for count in storage.made.values()), "no volume was made twice"


async def test_guest_is_changed_by_managers_that_end_between_any_two_steps(
    cluster: Cluster, axe: Axe, gugus: Gugus, storage: Storage
) -> None:
    """Each life gets a disk and loses it again, sleeps and is woken; nothing of it is left in between."""
    lives, cut = Lives(cluster, axe), True
    check(await gugus.tasks.wait(await gugus.guests.create("web", guest_spec())))
    root = cluster.store.peek(Guest, "web").spec.disks[0].volume  # type: ignore[union-attr]

    def tidy() -> bool:
        guest = cluster.peek(Guest, "web")
        return guest is not None and not guest.status.leaving_disks and not guest.status.HasField("lock")

    while cut:
        before = lives.cuts
        spec = (await gugus.guests.get("web")).spec
        spec.disks.add(name="data", pool=POOL.name, size_bytes=1 << 20)
        check(await lives.survive(gugus.guests.update("web", spec)))
        assert len(storage.names()) == 3
        del spec.disks[1:]
        check(await lives.survive(gugus.guests.update("web", spec, delete_removed_disks=True), tidy))
        assert storage.names() == {IMAGE, root}
        check(await lives.survive(gugus.guests.hibernate("web"), tidy))
        assert not cluster.record("n1", "web").exists()
        assert len(storage.names()) == 3
        check(await lives.survive(gugus.guests.start("web"), tidy))
        assert cluster.record("n1", "web").exists()
        assert storage.names() == {IMAGE, root}
        lives.number += 1
        cut = lives.cuts > before
    assert lives.number > 4


async def test_guest_is_renamed_by_managers_that_end_between_any_two_steps(
    cluster: Cluster, axe: Axe, gugus: Gugus, storage: Storage
) -> None:
    lives, cut, name, other = Lives(cluster, axe), True, "web", "shop"
    check(await gugus.tasks.wait(await gugus.guests.create(name, guest_spec(POWER_OFF))))
    while cut and lives.number < 15:  # each name leaves one more task to move behind
        before = lives.cuts
        check(await lives.survive(gugus.guests.rename(name, other)))
        assert [guest.meta.name for guest in cluster.store.peek_all(Guest)] == [other]
        await cluster.eventually(lambda other=other: set(cluster.agents["n1"].state.guests) == {other})  # type: ignore[misc]
        name, other = other, name
        lives.number += 1
        cut = lives.cuts > before
    assert lives.number > 3


async def test_creation_that_fails_is_taken_back_by_managers_that_end_between_any_two_steps(
    cluster: Cluster, axe: Axe, gugus: Gugus, storage: Storage
) -> None:
    storage.faults[""] = resource_exhausted("NO_SPACE", "the pool is full.")  # disks without an image
    spec = guest_spec()
    spec.disks.add(pool=POOL.name, size_bytes=1 << 20)
    lives, cut = Lives(cluster, axe), True
    while cut:
        before = lives.cuts
        task = await lives.survive(gugus.guests.create("web", spec), lambda: cluster.peek(Guest, "web") is None)
        assert from_status(task.error).reason == "NO_SPACE"
        assert storage.names() == {IMAGE}
        assert not cluster.agents["n1"].state.guests
        lives.number += 1
        cut = lives.cuts > before
    assert lives.number > 5
