"""Guests under HA whose node is lost while something works on them, or which still has their disks: they start elsewhere all the same."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from gugus.agent.v1.task_pb2 import TASK_STATE_FAILED, TASK_STATE_SUCCEEDED
from gugus.cluster.v1.clone_pb2 import CLONE_MODE_FULL, CloneGuestRequest
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_STARTING, HA_STATE_STARTED
from gugus.cluster.v1.node_pb2 import NODE_STATE_SUSPECT, Node
from gugus.cluster.v1.task_pb2 import Task

from agent.compute.snapshots import Taken
from agent.leases.refusals import IN_USE
from agent.storage.pool import CopyRequest, Progress
from client.sdk import Gugus
from client.tasks import check
from common.errors import precondition
from manager.operations import operation
from tests.unit.manager import storage as storages
from tests.unit.manager.hypervisor import Hypervisor
from tests.unit.manager.snapshotting import Snapshotting
from tests.unit.manager.storage import Storage
from tests.unit.manager.test_fencing import Powered


class Gate:
    """A place at which work of node n2 hangs for ever once it is closed, as on a host whose network was cut."""

    def __init__(self) -> None:
        self.at, self.reached = "", asyncio.Event()

    async def __call__(self, where: str) -> None:
        if where == self.at:
            self.reached.set()
            await asyncio.Event().wait()


class Hanging(Hypervisor):
    """The hypervisor of node n2."""

    def __init__(self, node: Path, gate: Gate) -> None:
        super().__init__(node)
        self.gate = gate

    async def kill(self, name: str) -> None:
        await self.gate("kill")
        await super().kill(name)

    async def shutdown(self, name: str) -> None:
        await self.gate("shutdown")
        await super().shutdown(name)


class HangingSnapshots(Snapshotting):
    """Its snapshots."""

    async def take(self, name: str, tag: str, disks: Sequence[Path], *, memory: bool) -> Taken:
        await self._hypervisor.gate("take")  # type: ignore[attr-defined]
        return await super().take(name, tag, disks, memory=memory)

    async def delete(self, name: str, tag: str, disks: Sequence[Path]) -> None:
        await self._hypervisor.gate("delete")  # type: ignore[attr-defined]
        await super().delete(name, tag, disks)


class Refusing(Hypervisor):
    """The hypervisor of node n1, which finds the disk locked while `held`."""

    held = False

    async def start(self, name: str, generation: int) -> None:
        if self.held:
            self.asked.append(f"refused {name}")
            raise precondition(
                IN_USE, f'disk "root" of guest "{name}" is in use on host n2 (generation 1).', remedy="Wait."
            )
        await super().start(name, generation)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    made = Gate()
    copy = storages.Pool.copy_volume

    async def hangs(pool: storages.Pool, request: CopyRequest, progress: Progress) -> object:
        await made("copy")
        return await copy(pool, request, progress)

    monkeypatch.setattr(storages.Pool, "copy_volume", hangs)
    monkeypatch.setattr(operation, "POLL_S", 0.05)
    return made


@pytest.fixture
async def first(tmp_path: Path) -> Refusing:
    return Refusing(tmp_path / "n1")


@pytest.fixture
async def cluster(tmp_path: Path, storage: Storage, gate: Gate, first: Refusing) -> AsyncIterator[Powered]:
    async with Powered(tmp_path) as cluster:
        cluster.start_manager()
        await cluster.eventually(lambda: cluster.peek(Node, "n1"))
        first.snapshots = Snapshotting(storage, first)  # type: ignore[assignment]
        cluster.start_agent("n1", first)
        await cluster.online()
        second = Hanging(tmp_path / "n2", gate)
        second.snapshots = HangingSnapshots(storage, second)  # type: ignore[assignment]
        await cluster.add_node("n2", second)
        yield cluster


@pytest.fixture
async def gugus(cluster: Powered, storage: Storage) -> AsyncIterator[Gugus]:
    async with cluster.client() as gugus:
        await cluster.make_image(gugus)
        await cluster.guest_on_n2(gugus)
        storage.obstacles = {}
        check(await gugus.tasks.wait(await gugus.snapshots.create("web", "before")))
        yield gugus


async def lose_n2(cluster: Powered, gugus: Gugus) -> None:
    """Cut n2 off, and say that it is off."""
    seen = await gugus.nodes.get("n2")
    await cluster.silence()
    await cluster.eventually(lambda: cluster.is_in(NODE_STATE_SUSPECT))
    await gugus.nodes.confirm_off(seen, "n2")


async def test_disk_that_the_lost_node_has_is_waited_for_and_counts_for_nothing(
    cluster: Powered, gugus: Gugus, first: Refusing
) -> None:
    first.held = True
    await lose_n2(cluster, gugus)
    await cluster.eventually(lambda: first.asked.count("refused web") >= 3)
    guest = cluster.guest()
    assert (guest.status.phase, guest.status.node) == (GUEST_PHASE_STARTING, "n1")
    assert guest.status.reason.startswith(
        'waits to be started on n1: node n1: disk "root" of guest "web" is in use on host n2'
    )
    assert (guest.status.failures, guest.status.ha.restarts, guest.status.ha.state) == (0, 0, HA_STATE_STARTED)
    tries, revision = first.asked.count("refused web"), cluster.guest().meta.revision
    await cluster.eventually(lambda: first.asked.count("refused web") >= tries + 2)
    assert cluster.guest().meta.revision == revision, "nothing is written while it waits"
    assert len(cluster.told(IN_USE)) == 1
    first.held = False
    await cluster.eventually(cluster.runs_on_n1)
    assert cluster.guest().status.ha.restarts == 0


Deed = Callable[[Gugus], Awaitable[Task]]

DEEDS: dict[str, tuple[str, Deed]] = {
    "snapshot": ("take", lambda gugus: gugus.snapshots.create("web", "s")),
    "snapshot's deletion": ("delete", lambda gugus: gugus.snapshots.delete("web", "before")),
    "rollback": ("kill", lambda gugus: gugus.snapshots.rollback("web", "before", start=True)),
    "clone": (
        "copy",
        lambda gugus: gugus.clones.clone(CloneGuestRequest(source="web", name="copy", mode=CLONE_MODE_FULL)),
    ),
    "reboot": ("shutdown", lambda gugus: gugus.guests.reboot("web")),
}


@pytest.mark.parametrize("deed", DEEDS)
async def test_lock_of_work_that_died_with_its_node_does_not_keep_the_guest(
    cluster: Powered, gugus: Gugus, gate: Gate, deed: str
) -> None:
    gate.at, begin = DEEDS[deed]
    task = await begin(gugus)
    async with asyncio.timeout(10):
        await gate.reached.wait()
    assert cluster.guest().status.lock.task == task.meta.name
    await lose_n2(cluster, gugus)
    await cluster.eventually(cluster.runs_on_n1)
    ended = await cluster.ended(task)
    assert ended.state in (TASK_STATE_SUCCEEDED, TASK_STATE_FAILED)
    if ended.state == TASK_STATE_FAILED:
        assert ended.error.message, "it says why"
        assert [e for e in cluster.events() if e.about == "guest/web" and ended.kind in e.message]
    await cluster.eventually(lambda: not cluster.guest().status.HasField("lock"))
    await cluster.eventually(cluster.runs_on_n1)


async def test_answer_of_a_node_that_was_fenced_meanwhile_is_not_waited_for(
    cluster: Powered, gugus: Gugus, gate: Gate
) -> None:
    """Its agent lives, and hangs in what it was asked."""
    gate.at = "take"
    task = await gugus.snapshots.create("web", "s", memory=True)
    async with asyncio.timeout(10):
        await gate.reached.wait()
    check(await gugus.tasks.wait(await gugus.nodes.fence("n2")))
    await cluster.eventually(cluster.runs_on_n1)
    assert (await cluster.ended(task)).state == TASK_STATE_FAILED
    assert not cluster.guest().status.HasField("lock")
