"""The whole way of a migration: a real manager, two real agents, their real tunnel, and guests that are records of a file."""

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from gugus.agent.v1 import migration_pb2
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER
from gugus.agent.v1.migration_pb2 import (
    MIGRATION_PRESENCE_ABSENT,
    MIGRATION_PRESENCE_RUNNING,
    MIGRATION_PRESENCE_WAITING,
)
from gugus.agent.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_FAILED, TASK_STATE_SUCCEEDED
from gugus.agent.v1.volume_pb2 import VOLUME_FORMAT_ARCHIVE
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, GUEST_PHASE_STOPPED, POWER_OFF, DiskSpec, Guest, GuestSpec
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.task_pb2 import Task

from agent.compute.hypervisor import Progress
from agent.compute.migration import OpenDoor, Parcel
from client.sdk import Gugus
from client.tasks import check
from common.errors import GugusError, from_status, internal, precondition
from manager.operations import migrate_check
from tests.unit.manager.cluster import POOL, Cluster, guest_spec, running
from tests.unit.manager.conftest import haste, storage
from tests.unit.manager.hypervisor import Hypervisor
from tests.unit.manager.storage import Storage

__all__ = ["haste", "storage"]


class Mover(Hypervisor):
    """A hypervisor whose guests can go over: what they are travels as their record."""

    def __init__(self, node: Path) -> None:
        super().__init__(node)
        self.folder = node / "run" / "arriving"
        self.migration = Moves(self)  # type: ignore[assignment]
        self.checkpoints = Dumps(self)


class Moves:
    """What `agent.compute.migration.Migration` asks for; each step waits for its gate, or fails once when told to."""

    def __init__(self, hypervisor: Mover) -> None:
        self.hypervisor = hypervisor
        self.gates: dict[str, asyncio.Event] = {}
        self.reached: dict[str, asyncio.Event] = {}
        self.fails: dict[str, GugusError] = {}
        self.notices = asyncio.Event()
        self.notices.set()
        self.dead: set[str] = set()
        """Guests that were killed, and of which the hypervisor tells all the same until `notices` is set."""

    def hold_at(self, step: str) -> asyncio.Event:
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

    async def lives(self, name: str) -> bool:
        return self.hypervisor._path(name).exists() and name not in self.dead

    def wait_complete(self, name: str, timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and not self._arriving(name).exists():
            time.sleep(0.01)
        return self._arriving(name).exists()

    async def is_complete(self, name: str) -> bool:
        return self._arriving(name).exists()

    async def standstill(self, name: str) -> None:
        await self._at("standstill")

    async def resume(self, name: str) -> float:
        await self._at("resume")
        if (arriving := self._arriving(name)).exists():
            self.hypervisor._write(name, json.loads(arriving.read_bytes()))
            arriving.unlink()
        return time.monotonic()

    async def bury(self, name: str) -> bool:
        return False  # nothing of these guests goes over before their memory did

    async def hold(self, name: str) -> None:
        await self.resume(name)

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
        await self._at("return")

    def stopped_s(self, name: str) -> float:
        return time.monotonic()

    async def halt(self, name: str) -> None:
        await self._at("end")
        self.dead.add(name)
        await self._at("ended")

    async def end(self, name: str) -> None:
        if self.notices.is_set():
            await self.hypervisor.kill(name)


class Dumps:
    """What `agent.compute.checkpoints.Checkpoints` asks for; a guest that is written down is its record in a folder."""

    def __init__(self, hypervisor: Mover) -> None:
        self.hypervisor = hypervisor
        self.leaving: list[migration_pb2.MigrationObstacle] = []
        self.arriving: list[migration_pb2.MigrationObstacle] = []
        self.fails: dict[str, GugusError] = {}

    async def survey(self, name: str) -> migration_pb2.ContainerSurvey:
        return migration_pb2.ContainerSurvey(obstacles=self.leaving)

    async def check(self, *_: object) -> list[migration_pb2.MigrationObstacle]:
        return self.arriving

    async def dump(self, name: str, images: Path) -> None:
        if "dump" in self.fails:
            raise self.fails.pop("dump")
        await asyncio.to_thread(images.mkdir)
        (images / "record").write_bytes(self.hypervisor._path(name).read_bytes())
        await self.hypervisor.kill(name)

    async def restore(self, name: str, generation: int, images: Path) -> None:
        if "restore" in self.fails:
            raise self.fails.pop("restore")
        self.hypervisor._write(name, {**json.loads((images / "record").read_bytes()), "generation": generation})


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
    assert guest.status.node == node
    await cluster.eventually(lambda: cluster.runs_on() == [node])
    await cluster.eventually(lambda: cluster.guest().status.phase == GUEST_PHASE_RUNNING)
    await cluster.eventually(lambda: not cluster.guest().status.HasField("lock"))
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


async def test_a_start_that_comes_late_does_not_run_a_guest_that_was_given_away(cluster: Two, gugus: Gugus) -> None:
    spec = guest_spec(POWER_OFF)
    spec.preferred_node = "n1"
    await cluster.eventually(lambda: cluster.reaches("n1"))
    check(await gugus.tasks.wait(await gugus.guests.create("idle", spec)))
    agent, old = cluster.agents["n1"], cluster.guest("idle").meta.generation
    defined = agent.state.guests["idle"]
    check(await gugus.tasks.wait(await gugus.migrations.migrate("idle", "n2")))
    await cluster.eventually(lambda: "idle" not in agent.state.guests)
    await agent.guests.create(agent.state.epoch, defined)  # late, too
    with pytest.raises(GugusError) as raised:
        await agent.guests.start(agent.state.epoch, "idle", old)
    assert raised.value.reason == "STALE_GENERATION"
    assert cluster.runs_on("idle") == []


async def test_a_guest_that_was_started_meanwhile_is_not_given_away(
    cluster: Two, gugus: Gugus, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = guest_spec(POWER_OFF)
    spec.preferred_node = "n1"
    await cluster.eventually(lambda: cluster.reaches("n1"))
    check(await gugus.tasks.wait(await gugus.guests.create("idle", spec)))
    agent, generation, choose = cluster.agents["n1"], cluster.guest("idle").meta.generation, migrate_check.choose

    async def choose_and_start(*asked: Any) -> migrate_check.Plan:
        plan = await choose(*asked)
        await agent.guests.start(agent.state.epoch, "idle", generation)
        return plan

    monkeypatch.setattr(migrate_check, "choose", choose_and_start)
    ended = await cluster.ended(await gugus.migrations.migrate("idle", "n2"))
    assert from_status(ended.error).reason == "GUEST_RUNNING"
    guest = cluster.guest("idle")
    assert (guest.status.node, guest.status.HasField("migration")) == ("n1", False)
    assert not cluster.record("n2", "idle").exists()
    await cluster.eventually(lambda: not cluster.record("n1", "idle").exists())  # for it is to be off
    check(await gugus.tasks.wait(await gugus.guests.start("idle")))
    assert cluster.record("n1", "idle").exists()


async def test_work_that_failed_for_a_passing_cause_is_not_asked_after_for_ever(cluster: Two, gugus: Gugus) -> None:
    error = precondition("STALE_EPOCH", "the epoch 3 is over: this node has seen 4.")
    cluster.moves("n1").fails["send"] = error  # the acting manager changed while the guest was sent
    ended = await settled(cluster, await gugus.migrations.migrate("web"), TASK_STATE_FAILED, "n1")
    assert from_status(ended.error).reason == "WORK_INTERRUPTED"
    assert "epoch 3" in ended.error.message


async def test_it_is_announced_only_once_what_is_given_away_just_then_is_written_down(
    cluster: Two, gugus: Gugus
) -> None:
    context = cluster.managers[cluster.acting]._context

    def announced() -> bool:
        return cluster.guest().status.HasField("migration")

    async with context.room:  # as recovery has it from its plan until its guests have their nodes
        task = await gugus.migrations.migrate("web")
        await cluster.eventually(lambda: announced() or context.admission.locked())
        assert not announced()
    await settled(cluster, task, TASK_STATE_SUCCEEDED, "n2")


async def test_a_migration_is_cancelled(cluster: Two, gugus: Gugus) -> None:
    cluster.moves("n1").hold_at("send")
    task = await gugus.migrations.migrate("web")
    await reached(cluster, "n1", "send")
    await gugus.tasks.cancel(task.meta.name)
    await settled(cluster, task, TASK_STATE_CANCELLED, "n1")


async def test_it_is_too_late_to_cancel_what_was_given_away(cluster: Two, gugus: Gugus) -> None:
    gate = cluster.moves("n1").hold_at("end")
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
    gate = cluster.moves(node).hold_at(step)
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
    gate = moves.hold_at(step)
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
    gate = moves.hold_at(step)
    task = await gugus.migrations.migrate("web")
    await reached(cluster, node, step)
    await cluster.stop_agent("n2")
    del moves.gates[step]
    gate.set()
    cluster.start_agent("n2", cluster.movers["n2"])
    ended = await cluster.ended(task)
    await settled(cluster, task, ended.state, "n2" if ended.state == TASK_STATE_SUCCEEDED else "n1")


async def test_it_is_over_when_the_guest_runs_and_it_can_go_back_at_once(cluster: Two, gugus: Gugus) -> None:
    moves, life = cluster.moves("n1"), cluster.life("n1", "web")
    returns = moves.hold_at("return")
    task = await cluster.ended(await gugus.migrations.migrate("web"))
    assert (task.state, cluster.runs_on()) == (TASK_STATE_SUCCEEDED, ["n2"])
    await reached(cluster, "n1", "return")  # and is held there
    back = await gugus.migrations.migrate("web", "n1")
    await asyncio.sleep(0.5)
    assert not cluster.has_ended(back)
    assert "web" in cluster.agents["n1"].state.guests, "nothing of it is touched while the call lasts"
    returns.set()
    await settled(cluster, back, TASK_STATE_SUCCEEDED, "n1")
    assert cluster.life("n1", "web") == life


async def test_the_sources_agent_dies_when_the_guest_runs_elsewhere_and_the_call_lasts(
    cluster: Two, gugus: Gugus
) -> None:
    moves, life = cluster.moves("n1"), cluster.life("n1", "web")
    moves.hold_at("return")
    task = await cluster.ended(await gugus.migrations.migrate("web"))
    await cluster.stop_agent("n1")
    moves.gates.clear()
    cluster.start_agent("n1", cluster.movers["n1"])
    await settled(cluster, task, TASK_STATE_SUCCEEDED, "n2")
    await cluster.eventually(lambda: not cluster.guest().status.HasField("lock"))
    await settled(cluster, await gugus.migrations.migrate("web", "n1"), TASK_STATE_SUCCEEDED, "n1")
    assert cluster.life("n1", "web") == life


async def test_another_manager_tidies_up(cluster: Two, gugus: Gugus) -> None:
    returns = cluster.moves("n1").hold_at("return")
    task = await cluster.ended(await gugus.migrations.migrate("web"))
    await cluster.stop_manager()
    returns.set()
    cluster.start_manager()
    await cluster.eventually(lambda: cluster.acting)
    await settled(cluster, task, TASK_STATE_SUCCEEDED, "n2")


async def test_a_dead_process_that_the_hypervisor_still_tells_of_is_no_guest_that_stays(
    cluster: Two, gugus: Gugus
) -> None:
    moves, life = cluster.moves("n1"), cluster.life("n1", "web")
    moves.notices.clear()
    gate = moves.hold_at("ended")
    task = await gugus.migrations.migrate("web")
    await reached(cluster, "n1", "ended")
    await cluster.stop_manager()  # which hears nothing of how the source's work ended
    asyncio.get_running_loop().call_later(0.5, gate.set)
    await cluster.stop_agent("n1")
    del moves.gates["ended"]
    cluster.start_agent("n1", cluster.movers["n1"])
    cluster.start_manager()
    await cluster.eventually(lambda: cluster.acting)
    ended = await cluster.ended(task)
    assert cluster.guest().status.node == "n2", ended
    await settled(cluster, task, ended.state, "n2")
    assert cluster.life("n2", "web") == life


async def test_a_guest_that_is_lost_on_its_way_is_said_to_be_and_starts_anew(cluster: Two, gugus: Gugus) -> None:
    life, gate = cluster.life("n1", "web"), cluster.moves("n1").hold_at("ended")
    cluster.moves("n2").fails["resume"] = internal("BROKEN", "it broke.")
    task = await gugus.migrations.migrate("web", "n2")
    await reached(cluster, "n1", "ended")
    (cluster.movers["n2"].folder / "web").unlink()  # the target's QEMU is killed, for example
    gate.set()
    ended = await settled(cluster, task, TASK_STATE_FAILED, "n1")
    assert from_status(ended.error).reason == "GUEST_LOST"
    assert cluster.life("n1", "web") != life


async def test_the_check_of_a_guest_that_is_on_its_way_says_so(cluster: Two, gugus: Gugus) -> None:
    gate = cluster.moves("n1").hold_at("send")
    task = await gugus.migrations.migrate("web", "n2")
    await reached(cluster, "n1", "send")
    with pytest.raises(GugusError) as raised:
        await gugus.migrations.check("web", "n2")
    assert raised.value.reason == "GUEST_MIGRATING"
    assert "guest web is on its way from n1 to n2" in raised.value.message
    gate.set()
    await settled(cluster, task, TASK_STATE_SUCCEEDED, "n2")


async def test_the_check_of_a_guest_that_its_node_does_not_have_yet_says_so(cluster: Two, gugus: Gugus) -> None:
    spec = guest_spec(POWER_OFF)
    spec.preferred_node = "n1"
    await cluster.eventually(lambda: cluster.reaches("n1"))
    check(await gugus.tasks.wait(await gugus.guests.create("idle", spec)))
    gate = cluster.moves("n1").hold_at("send")
    task = await gugus.migrations.migrate("web", "n2")
    await reached(cluster, "n1", "send")

    def give(guest: Guest) -> Guest:  # as recovery does it, a moment before the node is told
        guest.status.node = "n2"
        guest.status.lock.task = task.meta.name  # so that the node is not told
        return guest

    await cluster.store.update(Guest, "idle", give)
    with pytest.raises(GugusError) as raised:
        await gugus.migrations.check("idle", "n1")
    assert raised.value.reason == "GUEST_ON_ITS_WAY"
    assert "guest idle was given to n2" in raised.value.message
    gate.set()
    await settled(cluster, task, TASK_STATE_SUCCEEDED, "n2")


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


AS_IT_RUNS = migration_pb2.MigrationPolicy(checkpoint=True)


async def make_box(cluster: Two, gugus: Gugus, storage: Storage) -> int:
    """Make a container that runs on n1; return what tells its life from the next."""
    storage.image_format = VOLUME_FORMAT_ARCHIVE
    check(await gugus.tasks.wait(await gugus.pools.import_image(POOL.name, "tree", "/root.tar")))
    spec = GuestSpec(kind=GUEST_KIND_CONTAINER, memory_bytes=16 << 20, disks=[DiskSpec(pool=POOL.name, image="tree")])
    spec.preferred_node = "n1"
    await cluster.eventually(lambda: cluster.reaches("n1"))
    check(await gugus.tasks.wait(await gugus.guests.create("box", spec)))
    await cluster.eventually(lambda: cluster.runs_on("box") == ["n1"])
    return cluster.life("n1", "box")


async def test_what_criu_cannot_is_told_of_both_ends_before_anything_starts(
    cluster: Two, gugus: Gugus, storage: Storage
) -> None:
    life = await make_box(cluster, gugus, storage)
    cluster.movers["n1"].checkpoints.leaving = [migration_pb2.MigrationObstacle(reason="NESTED_NAMESPACE")]
    cluster.movers["n2"].checkpoints.arriving = [migration_pb2.MigrationObstacle(reason="CRIU_MISSING")]
    (found,) = await gugus.migrations.check("box", "n2", policy=AS_IT_RUNS)
    assert [one.reason for one in found.obstacles] == ["NESTED_NAMESPACE", "CRIU_MISSING"]
    assert found.mode == migration_pb2.MIGRATION_MODE_CHECKPOINT
    task = await cluster.ended(await gugus.migrations.migrate("box", "n2", policy=AS_IT_RUNS))
    assert from_status(task.error).reason == "MIGRATION_IMPOSSIBLE"
    assert cluster.life("n1", "box") == life
    (found,) = await gugus.migrations.check("box", "n2")  # by a stop and a start it can
    assert not found.obstacles


@pytest.mark.parametrize("restorable", [True, False])
async def test_a_container_goes_over_as_it_runs_or_is_started_anew_and_says_why(
    cluster: Two, gugus: Gugus, storage: Storage, restorable: bool
) -> None:
    life = await make_box(cluster, gugus, storage)
    if not restorable:
        cluster.movers["n2"].checkpoints.fails["restore"] = internal("RESTORE_FAILED", "no such device.")
    task = check(await gugus.tasks.wait(await gugus.migrations.migrate("box", "n2", policy=AS_IT_RUNS)))
    await cluster.eventually(lambda: cluster.runs_on("box") == ["n2"])
    assert (cluster.life("n2", "box") == life) == restorable
    assert ("it was started anew: no such device." in task.log[-1].text) != restorable
    folders = [agent.config.state_dir / "migrations" for agent in cluster.agents.values()]
    await cluster.eventually(lambda: not [one for folder in folders for one in folder.glob("*-images")])


async def test_a_container_that_cannot_be_written_down_runs_on(cluster: Two, gugus: Gugus, storage: Storage) -> None:
    life = await make_box(cluster, gugus, storage)
    cluster.movers["n1"].checkpoints.fails["dump"] = precondition("CHECKPOINT_FAILED", "CRIU does not want to.")
    task = await cluster.ended(await gugus.migrations.migrate("box", "n2", policy=AS_IT_RUNS))
    assert from_status(task.error).reason == "CHECKPOINT_FAILED"
    assert (cluster.runs_on("box"), cluster.life("n1", "box")) == (["n1"], life)
    assert cluster.guest("box").status.node == "n1"
