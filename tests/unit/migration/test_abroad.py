"""A machine goes to another cluster while it runs: two real managers, two agents, their tunnel; whatever dies on the way, it runs once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from gugus.agent.v1.migration_pb2 import (
    MIGRATION_MODE_LIVE,
    MIGRATION_PRESENCE_ABSENT,
    MIGRATION_PRESENCE_RUNNING,
    ArrivalRecord,
    InspectMigrationRequest,
    MigrationWay,
    PrepareMigrationRequest,
)
from gugus.agent.v1.task_pb2 import TASK_STATE_SUCCEEDED
from gugus.agent.v1.volume_pb2 import POOL_ABILITY_BLOCK, DirPool, PoolSpec
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, Guest
from gugus.cluster.v1.migration_pb2 import ReceiveGuestRequest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node
from gugus.cluster.v1.task_pb2 import Task

from agent.migration import arrivals, carriers
from agent.migration.pump import Broken
from agent.migration.wire import Channel
from client.across import live
from client.across.live import RECEIVE, SEND, is_coming, is_sent
from client.across.move import Move
from client.across.plan import Wishes
from client.across.side import Side
from client.sdk import Gugus
from client.tasks import check
from common.errors import GugusError, internal, unavailable
from manager.controllers.context import Context
from manager.operations import arrival_check, receive
from manager.tasks import ENDED
from tests.unit.client.told import Told
from tests.unit.manager.cluster import POOL, Cluster, guest_spec, running
from tests.unit.manager.conftest import haste, storage
from tests.unit.manager.storage import Pool, Storage
from tests.unit.migration.test_operation import Mover, Moves

__all__ = ["haste", "storage"]

THEIR_POOL = "store"
WISHES = Wishes("web", pools={POOL.name: THEIR_POOL})


@dataclass
class Two:
    """Two clusters of one node each, and what is between them."""

    folder: Path
    ours: Cluster
    theirs: Cluster
    here: Gugus
    there: Gugus
    movers: dict[str, Mover]
    storage: Storage
    told: Told = field(default_factory=Told)

    def move(self, wishes: Wishes = WISHES) -> Move:
        here = Side(self.here, self.ours.cluster_id, "ours", self.told)
        there = Side(self.there, self.theirs.cluster_id, "theirs", self.told)
        return Move(here, there, wishes, self.folder, self.told)

    def cluster(self, side: str) -> Cluster:
        return self.ours if side == "ours" else self.theirs

    def moves(self, side: str) -> Moves:
        return self.movers[side].migration  # type: ignore[return-value]

    def runs_in(self, name: str = "web") -> list[str]:
        return [side for side in ("ours", "theirs") if self.cluster(side).record("n1", name).exists()]

    def known_in(self, uid: str) -> list[str]:
        found = []
        for side in ("ours", "theirs"):
            cluster = self.cluster(side)
            guests = cluster.store.peek_all(Guest) if cluster.acting else []
            found += [side for guest in guests if guest.meta.uid == uid]
        return found

    async def eventually(self, condition: Callable[[], object]) -> None:
        await self.ours.eventually(condition)

    async def runs_once(self, side: str, guest: Guest, name: str = "web") -> None:
        """It runs on this side alone, is a guest there like any other, and nothing of it is left on the other one."""
        await self.eventually(lambda: self.runs_in(name) == [side] and self.known_in(guest.meta.uid) == [side])
        cluster, other = self.cluster(side), self.cluster("theirs" if side == "ours" else "ours")

        def ordinary() -> bool:
            found = cluster.peek(Guest, name)
            return (
                found is not None
                and found.status.phase == GUEST_PHASE_RUNNING
                and not (found.status.HasField("migration") or found.status.HasField("lock"))
            )

        await self.eventually(ordinary)
        found = cluster.peek(Guest, name)
        assert found is not None
        await self.eventually(lambda: name not in other.agents["n1"].state.guests)
        volumes = {disk.volume for disk in found.spec.disks}
        await self.eventually(lambda: {one for one in self.storage.names() if "disk0" in one} == volumes)


@pytest.fixture
async def two(tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Two]:
    monkeypatch.setattr(receive, "LOOK_S", 0.02)
    monkeypatch.setattr(live, "LOOK_S", 0.02)
    monkeypatch.setattr(carriers, "sync", lambda path: None)  # the disks of these guests are entries of a table
    monkeypatch.setattr(Pool, "abilities", frozenset({POOL_ABILITY_BLOCK}))
    movers = {}
    for side in ("ours", "theirs"):
        (tmp_path / side).mkdir()
        movers[side] = Mover(tmp_path / side / "n1")
    async with (
        running(tmp_path / "ours", movers["ours"]) as ours,
        running(tmp_path / "theirs", movers["theirs"]) as theirs,
        ours.client() as here,
        theirs.client() as there,
    ):
        await ours.make_image(here)
        await there.pools.create(PoolSpec(name=THEIR_POOL, dir=DirPool(path="/srv/store")))

        def ready() -> bool:
            node = theirs.peek(Node, "n1")
            return node is not None and THEIR_POOL in node.status.facts.pools

        await theirs.eventually(ready)
        yield Two(tmp_path, ours, theirs, here, there, movers, storage)


async def made(two: Two) -> Guest:
    check(await two.here.tasks.wait(await two.here.guests.create("web", guest_spec(), labels={"tier": "web"})))
    return await two.here.guests.get("web")


async def reached(two: Two, side: str, step: str) -> None:
    async with asyncio.timeout(15):
        await two.moves(side).reached[step].wait()


async def test_it_lives_on_there_and_is_gone_here(two: Two) -> None:
    guest = await made(two)
    life = two.ours.life("n1", "web")
    moved = await two.move().run()
    await two.runs_once("theirs", guest)
    assert two.theirs.life("n1", "web") == life
    assert (moved.meta.uid, moved.meta.generation) == (guest.meta.uid, guest.meta.generation + 1)
    assert (moved.spec.disks[0].pool, moved.spec.disks[0].image) == (THEIR_POOL, "")
    assert (dict(moved.meta.labels), moved.status.started_at) == ({"tier": "web"}, guest.status.started_at)


async def test_it_comes_back_the_same_way(two: Two) -> None:
    guest = await made(two)
    life = two.ours.life("n1", "web")
    await two.move().run()
    here = Side(two.there, two.theirs.cluster_id, "theirs", two.told)
    there = Side(two.here, two.ours.cluster_id, "ours", two.told)
    await Move(here, there, Wishes("web", pools={THEIR_POOL: POOL.name}), two.folder, two.told).run()
    await two.runs_once("ours", guest)
    assert two.ours.life("n1", "web") == life


async def test_what_the_target_has_against_it_is_told_before_anything_happens(two: Two) -> None:
    guest = await made(two)
    await two.there.nodes.cordon("n1", cordoned=True)
    with pytest.raises(GugusError, match="cordoned"):
        await two.move().run()
    await two.runs_once("ours", guest)
    assert await two.there.tasks.list(target="guest/web") == []


async def test_a_node_that_is_taken_out_while_it_is_asked_gets_no_guest(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = await made(two)
    ask, asked = arrival_check.plan, list[str]()

    async def plan(context: Context, coming: Guest, request: ReceiveGuestRequest) -> arrival_check.Plan:
        found = await ask(context, coming, request)
        asked.append(found.node)
        if len(asked) == 2:  # the first one only looked
            await two.there.nodes.cordon("n1", cordoned=True)
        return found

    monkeypatch.setattr(arrival_check, "plan", plan)
    with pytest.raises(GugusError, match="cordoned"):
        await two.move().run()
    assert len(asked) == 3
    await two.runs_once("ours", guest)
    assert await two.there.guests.list() == []


async def test_a_port_that_cannot_be_reached_is_an_obstacle(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = await made(two)
    closed = MigrationWay(node="n1", address=two.theirs.address("n1"), port=1)
    monkeypatch.setattr(two.theirs.agents["n1"]._target, "way", lambda: closed)
    with pytest.raises(GugusError, match="TARGET_UNREACHABLE"):
        await two.move().run()
    await two.runs_once("ours", guest)


async def test_it_cannot_be_kept_here_as_well_and_keeps_its_name(two: Two) -> None:
    await made(two)
    for wishes in (replace(WISHES, keep=True), replace(WISHES, new_name="shop")):
        with pytest.raises(GugusError, match="--stop as well"):
            await two.move(wishes).run()


async def test_it_may_go_anywhere_once_it_is_there(two: Two) -> None:
    await made(two)
    moved = await two.move(replace(WISHES, node="n1")).run()
    assert (moved.spec.pinned_node, moved.spec.preferred_node) == ("", "n1")


@pytest.mark.parametrize(
    ("side", "step", "stays"),
    [("theirs", "receive", True), ("ours", "send", True), ("ours", "end", False), ("theirs", "resume", False)],
)
async def test_a_step_that_fails_leaves_one_guest(two: Two, side: str, step: str, stays: bool) -> None:
    guest = await made(two)
    two.moves(side).fails[step] = internal("BROKEN", "it broke.")
    if stays:
        with pytest.raises(GugusError):
            await two.move().run()
        await two.runs_once("ours", guest)
    await two.move().run()
    await two.runs_once("theirs", guest)


async def test_it_is_cancelled_by_its_task(two: Two) -> None:
    guest = await made(two)
    two.moves("ours").hold_at("send")
    moving = asyncio.create_task(two.move().run())
    await reached(two, "ours", "send")
    (task,) = [one for one in await two.here.tasks.list(target="guest/web", active=True) if one.kind == SEND]
    await two.here.tasks.cancel(task.meta.name)
    with pytest.raises(GugusError):
        await moving
    await two.runs_once("ours", guest)


STEPS = [
    ("theirs", "receive"),
    ("ours", "send"),
    ("ours", "sent"),
    ("ours", "end"),
    ("ours", "ended"),
    ("theirs", "resume"),
]


async def _finished(two: Two, guest: Guest, moving: "asyncio.Task[Guest]") -> None:
    """However the first run ended, it runs once; and the same command brings it there."""
    ended = (await asyncio.gather(moving, return_exceptions=True))[0]
    assert isinstance(ended, (Guest, GugusError)), ended
    assert len(two.runs_in()) <= 1
    await two.move().run() if isinstance(ended, GugusError) else None
    await two.runs_once("theirs", guest)


@pytest.mark.parametrize("killed", ["ours", "theirs"])
@pytest.mark.parametrize(("side", "step"), STEPS)
async def test_an_agent_dies(two: Two, side: str, step: str, killed: str) -> None:
    guest = await made(two)
    moves = two.moves(side)
    gate = moves.hold_at(step)
    moving = asyncio.create_task(two.move().run())
    await reached(two, side, step)
    if killed == "ours" and step in ("end", "ended"):  # an agent that stops finishes what it has begun to give away
        asyncio.get_running_loop().call_later(0.5, gate.set)
    elif killed != side:
        asyncio.get_running_loop().call_later(0.2, gate.set)
    await two.cluster(killed).stop_agent("n1")
    assert len(two.runs_in()) <= 1
    moves.gates.pop(step, None)
    gate.set()
    two.cluster(killed).start_agent("n1", two.movers[killed])
    await _finished(two, guest, moving)


@pytest.mark.parametrize("killed", ["ours", "theirs"])
@pytest.mark.parametrize(("side", "step"), STEPS[1:])
async def test_a_manager_dies(two: Two, side: str, step: str, killed: str) -> None:
    guest = await made(two)
    gate = two.moves(side).hold_at(step)
    moving = asyncio.create_task(two.move().run())
    await reached(two, side, step)
    await two.cluster(killed).stop_manager()
    gate.set()
    two.moves(side).gates.pop(step, None)
    await asyncio.sleep(0.2)
    two.cluster(killed).start_manager()
    await two.cluster(killed).eventually(lambda: two.cluster(killed).acting)
    await _finished(two, guest, moving)


async def test_a_source_that_is_away_for_long_and_keeps_it_ends_the_move(two: Two) -> None:
    """Found on real hosts: what was noted as the reason was one after which an operation is tried again, for ever."""
    guest = await made(two)
    gate = two.moves("ours").hold_at("sent")
    moving = asyncio.create_task(two.move().run())
    await reached(two, "ours", "sent")
    await two.ours.stop_agent("n1")

    def away() -> bool:
        node = two.ours.peek(Node, "n1")
        return node is not None and node.status.state != NODE_STATE_ONLINE

    await two.eventually(away)
    two.moves("ours").gates.pop("sent")
    gate.set()
    two.ours.start_agent("n1", two.movers["ours"])
    await _finished(two, guest, moving)


async def test_what_is_left_of_another_migration_is_not_taken_for_an_arrival(two: Two) -> None:
    """Found on real hosts: a definition that an earlier arrival had left was told as "it is here", and the guest was started twice."""
    await made(two)
    node = two.ours.peek(Node, "n1")
    assert node is not None
    ask = InspectMigrationRequest(migration="another", name="web", target=True)
    told = await two.ours._context.agents.of(node).migrations.InspectMigration(ask)
    assert told.presence == MIGRATION_PRESENCE_ABSENT
    target = two.ours.agents["n1"]._target
    record = ArrivalRecord(request=PrepareMigrationRequest(migration="m", mode=MIGRATION_MODE_LIVE))
    record.request.spec.CopyFrom(two.ours.agents["n1"].state.guests["web"])
    for generation, expected in ((1, MIGRATION_PRESENCE_RUNNING), (2, MIGRATION_PRESENCE_ABSENT)):
        record.request.grant.generation = generation
        target._records.save(record)
        assert (await target.report("m")).presence == expected


class Killed(BaseException):
    """The client is gone, and has done nothing more."""


CALLS = [
    ("there", "migrations", "receive"),
    ("here", "migrations", "send"),
    ("there", "migrations", "tell"),
    ("here", "migrations", "tell"),
    ("here", "guests", "delete"),
    ("there", "guests", "update"),
]


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("side", "area", "call"), CALLS)
async def test_the_client_is_killed_and_the_same_command_goes_on(
    two: Two, side: str, area: str, call: str, done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = await made(two)
    target = getattr(getattr(two, side), area)
    real: Callable[..., Awaitable[Any]] = getattr(target, call)

    async def kill(*args: Any, **options: Any) -> Any:
        if call == "receive" and args[0].dry_run:
            return await real(*args, **options)
        if done:
            await real(*args, **options)
        raise Killed

    killed = False
    with monkeypatch.context() as patch:
        patch.setattr(target, call, kill)
        try:
            await two.move().run()
        except Killed:
            killed = True  # otherwise nobody had to be told, or all was gone before it was asked for
    assert len(two.runs_in()) <= 1
    if killed and not (call == "update" and done):
        await two.move().run()
    await two.runs_once("theirs", guest)


async def test_the_source_does_not_hear_that_it_runs_there(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = await made(two)

    def fail(path: Path) -> None:
        raise OSError("not written back")

    monkeypatch.setattr(carriers, "sync", fail)
    await two.move().run()
    await two.runs_once("theirs", guest)


async def test_a_complete_copy_that_nobody_tells_of_waits_and_is_let_run_when_told(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last words between the nodes are lost: the source has let go, and the target has not heard of it."""
    guest = await made(two)
    life = two.ours.life("n1", "web")
    real = Channel.receive

    def deaf(self: Any, timeout_s: float) -> dict[str, Any]:
        answer = real(self, timeout_s)
        if answer.get("gone"):
            raise Broken("the connection broke")
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(Channel, "receive", deaf)
        moving = asyncio.create_task(two.move().run())
        await moving
    await two.runs_once("theirs", guest)
    assert two.theirs.life("n1", "web") == life


async def test_a_copy_that_is_lost_with_its_memory_is_started_anew_here(two: Two) -> None:
    """The source has let go, and what had come to the target is gone: the disks here are the guest."""
    guest = await made(two)
    gate = two.moves("ours").hold_at("ended")
    moving = asyncio.create_task(two.move().run())
    await reached(two, "ours", "ended")
    await two.theirs.stop_agent("n1")
    two.moves("theirs")._arriving("web").unlink()
    two.moves("ours").gates.pop("ended")
    gate.set()
    two.theirs.start_agent("n1", two.movers["theirs"])
    with pytest.raises(GugusError):
        await moving
    await two.runs_once("ours", guest)


async def test_a_person_takes_back_what_was_let_go_of_when_the_other_cluster_is_gone(two: Two) -> None:
    guest = await made(two)
    gate = two.moves("ours").hold_at("ended")
    moving = asyncio.create_task(two.move().run())
    await reached(two, "ours", "ended")
    await two.theirs.stop_agent("n1")
    await two.theirs.stop_manager()
    two.moves("theirs")._arriving("web").unlink()
    two.moves("ours").gates.pop("ended")
    gate.set()
    await two.eventually(lambda: _sent(two).status.migration.abroad.given)
    assert "--to-cluster" in _sent(two).status.reason
    moving.cancel()
    migration = _sent(two).status.migration.task
    await two.here.migrations.tell("web", migration, MIGRATION_PRESENCE_ABSENT)
    await two.eventually(lambda: two.runs_in() == ["ours"])
    with pytest.raises(GugusError) as raised:
        await two.here.migrations.tell("web", migration, MIGRATION_PRESENCE_RUNNING)
    assert raised.value.reason == "MIGRATION_SETTLED"
    assert (await two.here.guests.get("web")).meta.uid == guest.meta.uid


async def test_an_arrival_that_nobody_sends_is_given_up_by_itself(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "TICKET_LIFE_S", 0.5)
    guest = await made(two)

    async def refuse(*args: Any, **options: Any) -> Any:
        raise unavailable("NO_MANAGER", "nobody answers.")

    monkeypatch.setattr(two.here.migrations, "send", refuse)
    with pytest.raises(GugusError, match="nobody answers"):
        await two.move().run()
    await two.runs_once("ours", guest)
    (task,) = [one for one in two.theirs.store.peek_all(Task) if one.kind == RECEIVE]
    assert task.state in ENDED
    assert task.state != TASK_STATE_SUCCEEDED


def _sent(two: Two) -> Guest:
    found = two.ours.peek(Guest, "web")
    assert found is not None
    assert is_sent(found)
    assert not is_coming(found)
    return found
