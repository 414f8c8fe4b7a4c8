"""Nodes that are emptied and get their guests back: every guest, or its reason."""

from pathlib import Path

import pytest
from gugus.agent.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_FAILED, TASK_STATE_SUCCEEDED
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, GUEST_PHASE_STOPPED, POWER_OFF, Guest
from gugus.cluster.v1.node_pb2 import DrainNotes, Node
from gugus.cluster.v1.rule_pb2 import GuestAffinity, NodeAffinity, RuleSpec
from gugus.cluster.v1.task_pb2 import Task

from client.sdk import Gugus
from client.tasks import check
from common.errors import GugusError, from_status, internal
from tests.unit.manager.cluster import guest_spec
from tests.unit.manager.conftest import haste, storage
from tests.unit.migration.test_operation import Mover, Two, cluster, gugus, reached

__all__ = ["cluster", "gugus", "haste", "storage"]


def where(cluster: Two) -> dict[str, str]:
    return {guest.meta.name: guest.status.node for guest in cluster.store.peek_all(Guest)}


def phases(cluster: Two) -> set[int]:
    return {guest.status.phase for guest in cluster.store.peek_all(Guest)}


async def crowd(gugus: Gugus) -> None:
    """Two more guests beside web, which runs on n1: one that runs, one that does not; all on n1."""
    await gugus.nodes.cordon("n2")
    check(await gugus.tasks.wait(await gugus.guests.create("db", guest_spec())))
    check(await gugus.tasks.wait(await gugus.guests.create("old", guest_spec(POWER_OFF))))
    await gugus.nodes.cordon("n2", False)


async def test_maintenance_moves_all_away_and_back(cluster: Two, gugus: Gugus) -> None:
    await crowd(gugus)
    assert set(where(cluster).values()) == {"n1"}
    life = cluster.life("n1", "web")
    check(await gugus.tasks.wait(await gugus.nodes.drain("n1", maintenance=True)))
    assert set(where(cluster).values()) == {"n2"}
    assert cluster.life("n2", "web") == life
    node = await gugus.nodes.get("n1")
    assert node.spec.maintenance
    with pytest.raises(GugusError, match="maintenance"):
        check(await gugus.tasks.wait(await gugus.migrations.migrate("web", "n1")))
    check(await gugus.tasks.wait(await gugus.nodes.restore("n1")))
    assert set(where(cluster).values()) == {"n1"}
    assert cluster.life("n1", "web") == life
    await cluster.eventually(lambda: phases(cluster) == {GUEST_PHASE_RUNNING, GUEST_PHASE_STOPPED})
    assert not (await gugus.nodes.get("n1")).spec.maintenance
    assert not any(guest.status.home for guest in cluster.store.peek_all(Guest))


async def test_a_drain_leaves_the_node_cordoned_and_nobody_comes_back(cluster: Two, gugus: Gugus) -> None:
    check(await gugus.tasks.wait(await gugus.nodes.drain("n1")))
    node = cluster.peek(Node, "n1")
    assert node is not None
    assert (node.spec.cordoned, node.spec.maintenance) == (True, False)
    check(await gugus.tasks.wait(await gugus.nodes.restore("n1")))
    assert where(cluster) == {"web": "n2"}


async def test_what_fails_is_tried_again(cluster: Two, gugus: Gugus) -> None:
    cluster.moves("n2").fails["receive"] = internal("BROKEN", "no door.")
    check(await gugus.tasks.wait(await gugus.nodes.drain("n1")))
    assert where(cluster) == {"web": "n2"}


async def test_who_cannot_move_is_named_with_the_reason(cluster: Two, gugus: Gugus) -> None:
    await crowd(gugus)
    await gugus.nodes.cordon("n2")
    ended = await cluster.ended(await gugus.nodes.drain("n1", maintenance=True))
    assert ended.state == TASK_STATE_FAILED
    error = from_status(ended.error)
    assert error.reason == "GUESTS_LEFT"
    assert all(name in error.message for name in ("web", "db", "old"))
    assert "cordoned" in error.message


async def test_a_budget_ends_the_task_not_the_move(cluster: Two, gugus: Gugus) -> None:
    go_on = cluster.moves("n1").hold_at("send")
    task = await gugus.nodes.drain("n1", budget_s=0.2)
    await reached(cluster, "n1", "send")
    ended = await cluster.ended(task)
    assert from_status(ended.error).reason == "BUDGET_SPENT"
    assert "web" in ended.log[-1].text
    go_on.set()
    await cluster.eventually(lambda: where(cluster) == {"web": "n2"})


async def test_a_budget_goes_on_when_another_manager_acts(cluster: Two, gugus: Gugus) -> None:
    cluster.moves("n1").hold_at("send")
    task = await gugus.nodes.drain("n1", budget_s=600)
    await reached(cluster, "n1", "send")

    def began_an_hour_ago(stored: Task) -> Task:
        notes = DrainNotes.FromString(stored.step_notes)
        notes.began_at.FromSeconds(notes.began_at.seconds - 3600)
        stored.step_notes = notes.SerializeToString()
        return stored

    await cluster.store.update(Task, task.meta.name, began_an_hour_ago)
    await cluster.stop_manager()
    cluster.start_manager()
    await cluster.online("n1", "n2")
    assert from_status((await cluster.ended(task)).error).reason == "BUDGET_SPENT"


async def test_guests_that_a_rule_keeps_together_leave_and_return_as_a_set(
    cluster: Two, gugus: Gugus, tmp_path: Path
) -> None:
    await crowd(gugus)
    cluster.movers["n3"] = Mover(tmp_path / "n3")
    await cluster.add_node("n3", cluster.movers["n3"])
    await cluster.eventually(lambda: cluster.reaches("n3"))
    app = RuleSpec(guests=["web", "db"], together=GuestAffinity())
    await gugus.rules.create("app", app)
    await gugus.rules.create("rest", RuleSpec(guests=["db", "old"], together=GuestAffinity()))
    with pytest.raises(GugusError, match="rule app keeps it with guests on n1"):  # nobody else goes
        check(await gugus.tasks.wait(await gugus.migrations.migrate("web")))
    go_on = cluster.moves("n1").hold_at("send")
    task = await gugus.nodes.drain("n1", maintenance=True)
    await reached(cluster, "n1", "send")
    go_on.set()
    check(await gugus.tasks.wait(task))
    (chosen,) = set(where(cluster).values())
    assert chosen in ("n2", "n3")
    check(await gugus.tasks.wait(await gugus.nodes.restore("n1")))
    assert set(where(cluster).values()) == {"n1"}


async def test_a_set_that_finds_no_room_anywhere_stays_whole(cluster: Two, gugus: Gugus) -> None:
    await crowd(gugus)
    await gugus.rules.create("app", RuleSpec(guests=["web", "db"], together=GuestAffinity()))
    await gugus.rules.create("home", RuleSpec(guests=["db"], nodes=NodeAffinity(priorities={"n1": 1})))
    ended = await cluster.ended(await gugus.nodes.drain("n1"))
    assert from_status(ended.error).reason == "GUESTS_LEFT"
    assert "db, which a rule keeps with it, cannot run here: node-affinity: rule home" in ended.error.message
    assert where(cluster) == {"web": "n1", "db": "n1", "old": "n2"}


async def test_a_cancelled_drain_ends_its_moves_and_gives_the_node_back(cluster: Two, gugus: Gugus) -> None:
    cluster.moves("n1").hold_at("send")
    task = await gugus.nodes.drain("n1", maintenance=True)
    await reached(cluster, "n1", "send")
    await gugus.tasks.cancel(task.meta.name)
    assert (await cluster.ended(task)).state == TASK_STATE_CANCELLED
    await cluster.eventually(lambda: not cluster.guest().status.HasField("lock"))
    assert where(cluster) == {"web": "n1"}
    assert not (await gugus.nodes.get("n1")).spec.maintenance


async def test_another_manager_goes_on(cluster: Two, gugus: Gugus) -> None:
    go_on = cluster.moves("n1").hold_at("send")
    task = await gugus.nodes.drain("n1", maintenance=True)
    await reached(cluster, "n1", "send")
    await cluster.stop_manager()
    cluster.start_manager()
    await cluster.online("n1", "n2")
    go_on.set()
    assert (await cluster.ended(task)).state == TASK_STATE_SUCCEEDED
    assert where(cluster) == {"web": "n2"}
    assert len([t for t in await gugus.tasks.list(target="guest/web") if t.kind == "migrate-guest"]) == 1


async def test_two_drains_at_once_queue(cluster: Two, gugus: Gugus) -> None:
    tasks = [await gugus.nodes.drain("n1"), await gugus.nodes.drain("n1", maintenance=True)]
    for task in tasks:
        assert (await cluster.ended(task)).state == TASK_STATE_SUCCEEDED


async def test_nonsense_is_refused(gugus: Gugus) -> None:
    with pytest.raises(GugusError, match="parallel"):
        await gugus.nodes.drain("n1", parallel=17)
    with pytest.raises(GugusError) as raised:
        await gugus.nodes.drain("nowhere")
    assert raised.value.reason == "NODE_NOT_FOUND"
