"""Balancing that runs by itself, with real managers and agents: what is advised, begun, held back, and told."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER
from gugus.agent.v1.task_pb2 import TASK_STATE_SUCCEEDED
from gugus.agent.v1.volume_pb2 import VOLUME_FORMAT_ARCHIVE
from gugus.cluster.v1.cluster_pb2 import (
    BALANCE_MODE_ADVISE,
    BALANCE_MODE_AUTOMATIC,
    BALANCE_MODE_OFF,
    BalanceSettings,
    BalanceStatus,
    Cluster,
)
from gugus.cluster.v1.guest_pb2 import POWER_ON, DiskSpec, GuestSpec
from gugus.cluster.v1.plan_pb2 import EvenOut, WhatIfRequest
from gugus.cluster.v1.task_pb2 import Task
from prometheus_client import CollectorRegistry

import manager.tasks
from agent import observer
from client.sdk import Gugus
from client.tasks import check
from manager.balance_metrics import BalanceCollector
from manager.controllers import balance, self_balance
from manager.controllers.janitor import Janitor
from manager.operations.registry import MIGRATE
from manager.scheduler import balancing, load
from manager.scheduler.balancing import ACTOR, Conclusion
from manager.scheduler.load import Load
from manager.store import Txn
from tests.unit.manager.cluster import POOL
from tests.unit.manager.conftest import haste, storage
from tests.unit.manager.storage import Storage
from tests.unit.manager.test_balance import counts, crowd
from tests.unit.migration.test_operation import Two, cluster, gugus, reached

__all__ = ["cluster", "gugus", "haste", "storage"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look as often as a test likes it; loads are known at the third look."""
    monkeypatch.setattr(observer, "REFRESH_PERIOD_S", 0.1)
    monkeypatch.setattr(load, "SLOWEST_S", 0.3)
    monkeypatch.setattr(load, "FASTEST_S", 0.3)
    monkeypatch.setattr(self_balance, "PERIOD_S", 0.1)
    monkeypatch.setattr(balancing, "SETTLING_NS", 0)


async def set_to(cluster: Two, mode: Any, **changes: int) -> None:
    stored = cluster.store.peek_all(Cluster)[0]
    wanted = BalanceSettings(mode=mode, hold_ms=300, smoothing_ms=500, gain_percent=1, **changes)
    stored.settings.balance.CopyFrom(wanted)
    await cluster.store.txn(Txn().put(stored, expect_revision=stored.meta.revision))


def tasks(cluster: Two, kind: str = balance.KIND) -> list[Task]:
    found = [task for task in cluster.store.peek_all(Task) if task.kind == kind and task.actor == ACTOR]
    return sorted(found, key=lambda task: task.meta.created_at.ToNanoseconds())


def outlook(cluster: Two) -> BalanceStatus:
    return cluster._context.outlook.status or BalanceStatus()


async def looks(cluster: Two, count: int = 3) -> None:
    """Return after so many more looks at the nodes' evenness."""
    for _ in range(count):
        before = cluster._context.outlook.status
        await cluster.eventually(lambda: cluster._context.outlook.status is not before)  # noqa: B023


async def known(cluster: Two, *names: str) -> None:
    """Return once it is known what guests use."""
    await cluster.eventually(lambda: all(cluster._context.loads.known(cluster.guest(n).meta.uid) for n in names))


async def test_a_skewed_cluster_evens_itself_out(cluster: Two, gugus: Gugus) -> None:
    await crowd(gugus)
    await set_to(cluster, BALANCE_MODE_AUTOMATIC)
    await cluster.eventually(lambda: tasks(cluster) and cluster.has_ended(tasks(cluster)[0]))
    (task,) = tasks(cluster)
    assert task.state == TASK_STATE_SUCCEEDED
    assert counts(cluster) == {"n1": 2, "n2": 2}
    log = [line.text for line in task.log]
    assert log[0].startswith("Plan: 2 migrations in 2 waves lower the score from ")
    assert log[1].startswith("Plan, wave 1: ")
    assert "2 guests moved; the score was " in log[-1]
    assert any(event.reason == "CLUSTER_BALANCING" for event in cluster.events())
    await known(cluster, "web", "g0", "g1", "g2")
    await looks(cluster)
    status = (await gugus.cluster.status()).balance
    assert status.mode == BALANCE_MODE_AUTOMATIC
    assert (status.moves_last_hour, len(status.moves)) == (2, 0)
    assert status.last == log[-1]
    assert status.score < 0.1
    registry = CollectorRegistry()
    registry.register(BalanceCollector(cluster._context))
    assert registry.get_sample_value("gugus_balance_moves_begun_total") == 2
    assert registry.get_sample_value("gugus_balance_mode", {"mode": "automatic"}) == 1
    assert registry.get_sample_value("gugus_balance_planned_moves") == 0
    assert registry.get_sample_value("gugus_balance_score", {"part": "memory"}) is not None
    page = (Path(__file__).parents[3] / "docs/metrics.md").read_text()
    told = {sample.name for metric in registry.collect() for sample in metric.samples if "created" not in sample.name}
    assert [name for name in sorted(told) if f"`{name}`" not in page] == []


async def test_advice_is_told_and_nothing_is_done_or_written(cluster: Two, gugus: Gugus) -> None:
    await crowd(gugus)
    await set_to(cluster, BALANCE_MODE_ADVISE)
    await cluster.eventually(lambda: outlook(cluster).held_ms > 400)
    status = (await gugus.cluster.status()).balance
    assert {move.to for move in status.moves} == {"n2"}
    assert len(status.moves) == 2
    assert status.score_after < status.score
    assert "`gugus cluster balance` does it" in status.why
    revisions = [kept.meta.revision for kind in (Task, Cluster) for kept in cluster.store.peek_all(kind)]
    await looks(cluster)
    assert [kept.meta.revision for kind in (Task, Cluster) for kept in cluster.store.peek_all(kind)] == revisions
    assert not tasks(cluster)
    answer = await gugus.plans.what_if(WhatIfRequest(even=EvenOut()))
    assert answer.score_after < answer.score_before
    assert len(answer.moves) == 2
    await set_to(cluster, BALANCE_MODE_OFF)
    await cluster.eventually(lambda: outlook(cluster).mode == BALANCE_MODE_OFF)
    assert not (await gugus.cluster.status()).balance.moves


async def test_another_manager_goes_on_with_the_same_budget(
    cluster: Two, gugus: Gugus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager.tasks, "KEPT", 0)
    await crowd(gugus)
    await set_to(cluster, BALANCE_MODE_AUTOMATIC, max_moves_per_hour=1)
    await cluster.eventually(lambda: counts(cluster) == {"n1": 3, "n2": 1} and cluster.has_ended(tasks(cluster)[0]))
    await Janitor(cluster._context)._trim()
    await cluster.stop_manager()
    cluster.start_manager()
    await cluster.online("n1", "n2")
    await cluster.eventually(lambda: "1 of 1 migrations of an hour were begun" in outlook(cluster).why)
    assert len(tasks(cluster, MIGRATE)) == 1


async def test_nothing_is_begun_while_ha_is_off_or_a_node_is_in_maintenance(cluster: Two, gugus: Gugus) -> None:
    await crowd(gugus)
    check(await gugus.tasks.wait(await gugus.cluster.disarm_ha("new switches")))
    await set_to(cluster, BALANCE_MODE_AUTOMATIC)
    await cluster.eventually(lambda: "HA is switched off" in outlook(cluster).why)
    assert outlook(cluster).moves, "what would be moved is told all the same"
    check(await gugus.tasks.wait(await gugus.nodes.drain("n2", maintenance=True)))
    check(await gugus.tasks.wait(await gugus.cluster.arm_ha()))
    await cluster.eventually(lambda: "n2 is in maintenance" in outlook(cluster).why)
    assert not tasks(cluster)


async def test_a_balance_that_runs_ends_when_the_cluster_is_not_calm_any_more(cluster: Two, gugus: Gugus) -> None:
    await crowd(gugus)
    go_on = cluster.moves("n1").hold_at("send")
    await set_to(cluster, BALANCE_MODE_AUTOMATIC)
    await reached(cluster, "n1", "send")
    disarming = await gugus.cluster.disarm_ha()
    go_on.set()
    check(await gugus.tasks.wait(disarming))
    ended = await cluster.ended(tasks(cluster)[0])
    assert "ended early: HA is switched off" in ended.log[-1].text
    assert counts(cluster) == {"n1": 3, "n2": 1}


async def test_containers_stay_unless_they_are_asked_to_go(cluster: Two, gugus: Gugus, storage: Storage) -> None:
    await crowd(gugus, 0)
    check(await gugus.tasks.wait(await gugus.guests.stop("web")))
    check(await gugus.tasks.wait(await gugus.guests.delete("web")))
    await gugus.nodes.cordon("n2")
    storage.image_format = VOLUME_FORMAT_ARCHIVE
    check(await gugus.tasks.wait(await gugus.pools.import_image(POOL.name, "tree", "/root.tar")))
    spec = GuestSpec(kind=GUEST_KIND_CONTAINER, memory_bytes=16 << 20, disks=[DiskSpec(pool=POOL.name, image="tree")])
    spec.power = POWER_ON
    for number in range(4):
        check(await gugus.tasks.wait(await gugus.guests.create(f"c{number}", spec)))
    await gugus.nodes.cordon("n2", False)
    await set_to(cluster, BALANCE_MODE_AUTOMATIC)
    await looks(cluster)
    assert not outlook(cluster).moves
    assert len((await gugus.plans.what_if(WhatIfRequest(even=EvenOut()))).moves) == 2


async def test_what_guests_use_is_learnt_from_beats(cluster: Two, gugus: Gugus) -> None:
    await set_to(cluster, BALANCE_MODE_OFF)
    web = cluster.guest()
    assert cluster._context.load_of(web) == Load(1.0, 1.0)
    await known(cluster, "web")
    await cluster.eventually(lambda: 0 < cluster._context.load_of(web).cpu < 0.2)
    registry = CollectorRegistry()
    registry.register(BalanceCollector(cluster._context))
    told = registry.get_sample_value("gugus_guest_cpu_load_ratio", {"guest": "web", "node": "n1"})
    assert told is not None


async def test_a_manager_that_has_just_taken_over_only_looks(
    cluster: Two, gugus: Gugus, monkeypatch: pytest.MonkeyPatch
) -> None:
    await crowd(gugus)
    monkeypatch.setattr(balancing, "SETTLING_NS", 60 * balancing.NS_PER_S)
    await set_to(cluster, BALANCE_MODE_AUTOMATIC)
    await cluster.eventually(lambda: "has just taken over" in outlook(cluster).why)
    await looks(cluster, 6)
    assert outlook(cluster).moves
    assert not outlook(cluster).held_ms
    assert not tasks(cluster)


async def test_switching_it_off_is_heeded_by_a_look_that_is_under_way(
    cluster: Two, gugus: Gugus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decision is bound to the settings that it was made with."""
    await crowd(gugus)
    begun, conclude = asyncio.Event(), balancing.conclude
    loop, gate = asyncio.get_running_loop(), threading.Event()

    def slow(*asked: Any) -> Conclusion:
        found = conclude(*asked)
        if found.begins:
            loop.call_soon_threadsafe(begun.set)
            gate.wait(10)
        return found

    monkeypatch.setattr(balancing, "conclude", slow)
    await set_to(cluster, BALANCE_MODE_AUTOMATIC)
    async with asyncio.timeout(15):
        await begun.wait()
    await set_to(cluster, BALANCE_MODE_OFF)
    gate.set()
    await cluster.eventually(lambda: outlook(cluster).mode == BALANCE_MODE_OFF)
    assert not tasks(cluster)
