"""The whole way of a migration: a real manager, two real agents, their real tunnel, and guests that are records of a file."""

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
from gugus.agent.v1 import migration_pb2
from gugus.agent.v1.migration_pb2 import (
    MIGRATION_PRESENCE_ABSENT,
    MIGRATION_PRESENCE_RUNNING,
    MIGRATION_PRESENCE_WAITING,
)
from gugus.agent.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_FAILED, TASK_STATE_SUCCEEDED
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, GUEST_PHASE_STOPPED, POWER_OFF, Guest
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.task_pb2 import Task

from agent.compute.hypervisor import Progress
from agent.compute.migration import OpenDoor, Parcel
from client.sdk import Gugus
from client.tasks import check
from common.errors import GugusError, internal
from tests.unit.manager.cluster import Cluster, guest_spec, running
from tests.unit.manager.conftest import haste, storage
from tests.unit.manager.hypervisor import Hypervisor

__all__ = ["haste", "storage"]


class Mover(Hypervisor):
    """A hypervisor whose guests can go over: what they are travels as their record."""

    def __init__(self, node: Path) -> None:
        super().__init__(node)
        self.folder = node / "run" / "arriving"
        self.migration = Moves(self)  # type: ignore[assignment]


class Moves:
    """What `agent.compute.migration.Migration` asks for; each step waits for its gate, or fails once when told to."""

    def __init__(self, hypervisor: Mover) -> None:
        self.hypervisor = hypervisor
        self.gates: dict[str, asyncio.Event] = {}
        self.reached: dict[str, asyncio.Event] = {}
        self.fails: dict[str, GugusError] = {}

    def hold(self, step: str) -> asyncio.Event:
        """Have a step wait; return what lets it go on."""
        self.gates[step], self.reached[step] = asyncio.Event(), asyncio.Event()
        return self.gates[step]

    async def _at(self, step: str) -> None:
        if step in self.gates:
            self.reached[step].set()
            await self.gates[step].wait()
        if step in self.fails:
            raise self.fails.pop(step)

    def _arriving(self, name: str) -> Path:
        return self.hypervisor.folder / name

    async def survey(self, name: str) -> migration_pb2.GuestSurvey:
        return migration_pb2.GuestSurvey(mode="tcg")

    async def check(self, *_: object) -> list[migration_pb2.MigrationObstacle]:
        return []

    async def places(self, name: str) -> dict[str, str]:
        return {"driver": str(self.hypervisor.folder)}

    async def receive(self, name: str) -> Mapping[str, Callable[[], socket.socket]]:
        await self._at("receive")
        self.hypervisor.folder.mkdir(exist_ok=True)

        def connect() -> socket.socket:
            near, far = socket.socketpair()

            def take() -> None:
                data = b""
                while piece := far.recv(1 << 16):
                    data += piece
                if data.endswith(b"}"):
                    self._arriving(name).write_bytes(data)

            threading.Thread(target=take, daemon=True).start()
            return near

        return {"memory": connect}

    async def presence(self, name: str) -> migration_pb2.MigrationPresence.ValueType:
        if self.hypervisor._path(name).exists():
            return MIGRATION_PRESENCE_RUNNING
        return MIGRATION_PRESENCE_WAITING if self._arriving(name).exists() else MIGRATION_PRESENCE_ABSENT

    async def wait_complete(self, name: str, timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and not self._arriving(name).exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return self._arriving(name).exists()

    async def resume(self, name: str) -> None:
        await self._at("resume")
        if (arriving := self._arriving(name)).exists():
            self.hypervisor._write(name, json.loads(arriving.read_bytes()))
            arriving.unlink()

    async def drop(self, name: str) -> None:
        self._arriving(name).unlink(missing_ok=True)

    async def send(self, parcel: Parcel, open_door: OpenDoor, progress: Progress) -> None:
        await self._at("send")
        record = self.hypervisor._path(parcel.name)
        data = {**json.loads(record.read_bytes()), "generation": parcel.target_generation}
        door = Path(f"/tmp/gugus-test-{os.getpid()}-{parcel.name}")  # short enough for a socket's name
        open_door(door, "memory", (os.getuid(), os.getgid()))
        plain = socket.socket(socket.AF_UNIX)
        plain.connect(str(door))
        progress(50, "sending")
        await asyncio.to_thread(plain.sendall, json.dumps(data).encode())
        plain.shutdown(socket.SHUT_WR)
        await self._at("sent")
        while record.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        plain.close()

    def stopped_s(self, name: str) -> float:
        return time.monotonic()

    async def end(self, name: str) -> None:
        await self._at("end")
        await self.hypervisor.kill(name)
        await self._at("ended")


class Two(Cluster):
    """A cluster of two nodes between which guests move."""

    movers: dict[str, Mover]

    def runs_on(self, guest: str = "web") -> list[str]:
        return [node for node in ("n1", "n2") if self.record(node, guest).exists()]

    def reaches(self, node: str) -> bool:
        found = self.peek(Node, node)
        return found is not None and "shared" in found.status.facts.pools

    def guest(self, name: str = "web") -> Guest:
        found = self.peek(Guest, name)
        assert found is not None
        return found

    def moves(self, node: str) -> Moves:
        return self.movers[node].migration  # type: ignore[return-value]


@pytest.fixture
async def cluster(tmp_path: Path, storage: object) -> AsyncIterator[Two]:
    movers = {node: Mover(tmp_path / node) for node in ("n1", "n2")}
    async with running(tmp_path, movers["n1"]) as made:
        made.__class__ = Two
        assert isinstance(made, Two)
        made.movers = movers
        yield made


@pytest.fixture
async def gugus(cluster: Two) -> AsyncIterator[Gugus]:
    async with cluster.client() as gugus:
        await cluster.make_image(gugus)
        check(await gugus.tasks.wait(await gugus.guests.create("web", guest_spec())))
        await cluster.add_node("n2", cluster.movers["n2"])
        pools = cluster.reaches
        await cluster.eventually(lambda: pools("n2"))
        yield gugus


async def reached(cluster: Two, node: str, step: str) -> None:
    async with asyncio.timeout(15):
        await cluster.moves(node).reached[step].wait()


async def settled(cluster: Two, task: Task, state: int, node: str) -> Task:
    """The task has ended so, the guest is on this node alone, nothing holds it, and nothing of it is left on the other one."""
    ended = await cluster.ended(task)
    assert ended.state == state, ended
    guest = cluster.guest()
    assert not guest.status.HasField("migration")
    assert not guest.status.HasField("lock")
    assert guest.status.node == node
    await cluster.eventually(lambda: cluster.runs_on() == [node])
    await cluster.eventually(lambda: cluster.guest().status.phase == GUEST_PHASE_RUNNING)
    other = "n2" if node == "n1" else "n1"
    if other in cluster.agents:
        await cluster.eventually(lambda: "web" not in cluster.agents[other].state.guests)
    return ended


async def test_a_running_machine_goes_over_and_lives_on(cluster: Two, gugus: Gugus) -> None:
    life, generation = cluster.life("n1", "web"), cluster.guest().meta.generation
    task = await gugus.migrations.migrate("web")
    ended = await settled(cluster, task, TASK_STATE_SUCCEEDED, "n2")
    assert cluster.life("n2", "web") == life
    assert cluster.guest().meta.generation == generation + 1
    assert "web is on n2" in ended.log[-1].text
    await settled(cluster, await gugus.migrations.migrate("web", "n1"), TASK_STATE_SUCCEEDED, "n1")
    assert cluster.life("n1", "web") == life


async def test_a_stopped_guest_is_given_away(cluster: Two, gugus: Gugus) -> None:
    spec = guest_spec(POWER_OFF)
    spec.preferred_node = "n1"
    await cluster.eventually(lambda: cluster.reaches("n1"))
    check(await gugus.tasks.wait(await gugus.guests.create("idle", spec)))
    assert (await cluster.ended(await gugus.migrations.migrate("idle", "n2"))).state == TASK_STATE_SUCCEEDED
    guest = cluster.guest("idle")
    assert (guest.status.node, guest.status.phase) == ("n2", GUEST_PHASE_STOPPED)


async def test_a_migration_is_cancelled(cluster: Two, gugus: Gugus) -> None:
    cluster.moves("n1").hold("send")
    task = await gugus.migrations.migrate("web")
    await reached(cluster, "n1", "send")
    await gugus.tasks.cancel(task.meta.name)
    await settled(cluster, task, TASK_STATE_CANCELLED, "n1")


async def test_it_is_too_late_to_cancel_what_was_given_away(cluster: Two, gugus: Gugus) -> None:
    gate = cluster.moves("n1").hold("end")
    task = await gugus.migrations.migrate("web")
    await reached(cluster, "n1", "end")
    await gugus.tasks.cancel(task.meta.name)
    await asyncio.sleep(0.3)
    gate.set()
    await settled(cluster, task, TASK_STATE_SUCCEEDED, "n2")


@pytest.mark.parametrize(
    ("node", "step", "stays"),
    [("n2", "receive", True), ("n1", "send", True), ("n1", "end", False), ("n2", "resume", False)],
)
async def test_a_step_that_fails_leaves_one_guest(
    cluster: Two, gugus: Gugus, node: str, step: str, stays: bool
) -> None:
    cluster.moves(node).fails[step] = internal("BROKEN", "it broke.")
    task = await gugus.migrations.migrate("web")
    if stays:
        await settled(cluster, task, TASK_STATE_FAILED, "n1")
    else:
        await settled(cluster, task, TASK_STATE_SUCCEEDED, "n2")
    again = "n2" if stays else "n1"
    await settled(cluster, await gugus.migrations.migrate("web", again), TASK_STATE_SUCCEEDED, again)


@pytest.mark.parametrize(("node", "step"), [("n2", "receive"), ("n1", "send"), ("n1", "end"), ("n2", "resume")])
async def test_another_manager_goes_on(cluster: Two, gugus: Gugus, node: str, step: str) -> None:
    gate = cluster.moves(node).hold(step)
    task = await gugus.migrations.migrate("web")
    await reached(cluster, node, step)
    await cluster.stop_manager()
    gate.set()
    cluster.start_manager()
    await cluster.eventually(lambda: cluster.acting)
    ended = await cluster.ended(task)
    where = "n2" if ended.state == TASK_STATE_SUCCEEDED else "n1"
    await settled(cluster, task, ended.state, where)


@pytest.mark.parametrize("step", ["send", "sent", "end", "ended"])
async def test_the_sources_agent_dies(cluster: Two, gugus: Gugus, step: str) -> None:
    moves = cluster.moves("n1")
    gate = moves.hold(step)
    task = await gugus.migrations.migrate("web")
    await reached(cluster, "n1", step)
    if step in ("end", "ended"):  # an agent that stops finishes what it has begun to give away
        asyncio.get_running_loop().call_later(0.5, gate.set)
    await cluster.stop_agent("n1")
    del moves.gates[step]
    cluster.start_agent("n1", cluster.movers["n1"])
    ended = await cluster.ended(task)
    assert cluster.runs_on() != ["n1", "n2"]
    await settled(cluster, task, ended.state, "n2" if ended.state == TASK_STATE_SUCCEEDED else "n1")


@pytest.mark.parametrize(("node", "step"), [("n2", "receive"), ("n1", "send"), ("n1", "end"), ("n2", "resume")])
async def test_the_targets_agent_dies(cluster: Two, gugus: Gugus, node: str, step: str) -> None:
    moves = cluster.moves(node)
    gate = moves.hold(step)
    task = await gugus.migrations.migrate("web")
    await reached(cluster, node, step)
    await cluster.stop_agent("n2")
    del moves.gates[step]
    gate.set()
    cluster.start_agent("n2", cluster.movers["n2"])
    ended = await cluster.ended(task)
    await settled(cluster, task, ended.state, "n2" if ended.state == TASK_STATE_SUCCEEDED else "n1")


async def test_obstacles_are_told_before_anything_happens(cluster: Two, gugus: Gugus) -> None:
    await gugus.nodes.cordon("n2", cordoned=True)
    (one,) = await gugus.migrations.check("web")
    assert {obstacle.reason for obstacle in one.obstacles} == {"NODE_CORDONED"}
    task = await settled(cluster, await gugus.migrations.migrate("web", "n2"), TASK_STATE_FAILED, "n1")
    assert "cordoned" in task.error.message
    assert cluster.guest().meta.generation == 1


async def test_a_node_that_is_none_is_refused(gugus: Gugus) -> None:
    with pytest.raises(GugusError) as raised:
        await gugus.migrations.migrate("web", "n9")
    assert raised.value.reason == "NODE_NOT_FOUND"
