"""Guests under HA that fail: restarted, given to another node, given up; and out of use."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gugus.agent.v1.task_pb2 import TASK_STATE_SUCCEEDED
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_ERROR,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STOPPED,
    HA_STATE_DISABLED,
    HA_STATE_ERROR,
    HA_STATE_STARTED,
    Guest,
    HaSpec,
)
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.task_pb2 import Task

from client.sdk import Gugus
from client.tasks import check
from common.errors import GugusError, precondition
from manager.controllers import guest_retries
from tests.unit.manager.cluster import Cluster, guest_spec
from tests.unit.manager.hypervisor import Hypervisor
from tests.unit.manager.storage import Storage


class Failing(Hypervisor):
    """The hypervisor of a node on which guests cannot be started while it is broken."""

    broken = False

    async def start(self, name: str, generation: int) -> None:
        if self.broken:
            self.asked.append(f"start {name}")
            raise precondition("HYPERVISOR_FAILED", "no such device.")
        await super().start(name, generation)


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries are not what is tested."""
    monkeypatch.setattr("manager.controllers.guests.backoff_s", lambda failures: 0.05)
    monkeypatch.setattr("manager.controllers.guest_retries.backoff_s", lambda failures: 0.05)
    assert guest_retries.STEADY_S >= 60.0  # a guest that ends in these tests has not run for long


@pytest.fixture
async def two(tmp_path: Path, storage: Storage) -> AsyncIterator[tuple[Cluster, Gugus, Failing, Failing]]:
    """A cluster of two nodes, and guest web under HA that runs on n1."""
    async with Cluster(tmp_path) as cluster:
        cluster.start_manager()
        await cluster.eventually(lambda: cluster.peek(Node, "n1"))
        first, second = Failing(tmp_path / "n1"), Failing(tmp_path / "n2")
        cluster.start_agent("n1", first)
        await cluster.online()
        async with cluster.client() as gugus:
            await cluster.make_image(gugus)
            spec = guest_spec()
            spec.ha.CopyFrom(HaSpec(enabled=True, max_restart=2))
            check(await gugus.tasks.wait(await gugus.guests.create("web", spec)))
            await cluster.add_node("n2", second)
            await cluster.eventually(lambda: "shared" in (cluster.peek(Node, "n2") or Node()).status.facts.pools)
            yield cluster, gugus, first, second


def web(cluster: Cluster) -> Guest:
    return cluster.store.peek(Guest, "web") or Guest()


def runs_on(cluster: Cluster, node: str) -> bool:
    found = web(cluster)
    runs = found.status.phase == GUEST_PHASE_RUNNING and found.status.ha.state == HA_STATE_STARTED
    return runs and found.status.node == node


async def test_what_fails_here_is_tried_elsewhere(two: tuple[Cluster, Gugus, Failing, Failing]) -> None:
    cluster, _, first, _ = two
    first.broken = True
    first.asked.clear()
    await first.end("web")
    await cluster.eventually(lambda: runs_on(cluster, "n2"))
    assert first.asked.count("start web") == 2  # its end counted, too
    assert not cluster.record("n1", "web").exists()
    ha = web(cluster).status.ha
    assert (ha.restarts, ha.relocations, list(ha.failed_nodes)) == (0, 1, ["n1"])
    tasks = [task for task in cluster.store.peek_all(Task) if task.actor == "ha"]
    assert [(task.kind, task.state) for task in tasks] == [("migrate-guest", TASK_STATE_SUCCEEDED)]
    told = [event.message for event in cluster.events() if event.reason == "HA_RELOCATES"]
    assert len(told) == 1
    assert "n2" in told[0]


async def test_what_fails_everywhere_waits_for_a_person(two: tuple[Cluster, Gugus, Failing, Failing]) -> None:
    cluster, gugus, first, second = two
    first.broken = second.broken = True
    await first.end("web")
    await cluster.eventually(lambda: web(cluster).status.ha.state == HA_STATE_ERROR)
    found = web(cluster)
    assert found.status.phase == GUEST_PHASE_ERROR
    assert "gugus guest start web" in found.status.reason
    assert "n1, n2" in found.status.reason
    asked = len(second.asked)
    await cluster.beats(3, "n2")
    assert len(second.asked) == asked
    first.broken = second.broken = False
    check(await gugus.tasks.wait(await gugus.guests.start("web")))
    assert runs_on(cluster, "n2")
    assert not web(cluster).status.ha.failed_nodes


async def test_a_change_is_tried_again(two: tuple[Cluster, Gugus, Failing, Failing]) -> None:
    cluster, gugus, first, second = two
    first.broken = second.broken = True
    await first.end("web")
    await cluster.eventually(lambda: web(cluster).status.ha.state == HA_STATE_ERROR)
    first.broken = second.broken = False
    spec = web(cluster).spec
    spec.memory_bytes *= 2
    check(await gugus.tasks.wait(await gugus.guests.update("web", spec)))
    await cluster.eventually(lambda: runs_on(cluster, "n2"))


async def test_out_of_use_is_stopped_and_not_started(two: tuple[Cluster, Gugus, Failing, Failing]) -> None:
    cluster, gugus, _, _ = two
    await gugus.guests.set_ha("web", HaSpec(enabled=True, disabled=True))
    await cluster.eventually(lambda: web(cluster).status.phase == GUEST_PHASE_STOPPED)
    assert web(cluster).status.ha.state == HA_STATE_DISABLED
    with pytest.raises(GugusError, match="out of use") as raised:
        await gugus.guests.start("web")
    assert raised.value.reason == "GUEST_DISABLED"
    await gugus.guests.set_ha("web", HaSpec(enabled=True))
    check(await gugus.tasks.wait(await gugus.guests.start("web")))
    assert runs_on(cluster, "n1")


async def test_a_restart_of_the_manager_does_not_count_anew(two: tuple[Cluster, Gugus, Failing, Failing]) -> None:
    cluster, _, first, second = two
    first.broken = second.broken = True
    await first.end("web")
    await cluster.eventually(lambda: web(cluster).status.ha.state == HA_STATE_ERROR)
    await cluster.stop_manager()
    cluster.start_manager()
    await cluster.online("n1", "n2")
    asked = len(first.asked), len(second.asked)
    await cluster.beats(3, "n2")
    assert (len(first.asked), len(second.asked)) == asked
    assert web(cluster).status.ha.state == HA_STATE_ERROR


# Off and on for the whole cluster


async def test_disarmed_no_node_holds_a_guest_and_a_lost_one_s_stay(
    two: tuple[Cluster, Gugus, Failing, Failing],
) -> None:
    cluster, gugus, _, _ = two
    await cluster.eventually(lambda: held(cluster, "web"))
    check(await gugus.tasks.wait(await gugus.cluster.disarm_ha("new switches")))
    assert not web(cluster).status.ha_armed
    await cluster.eventually(lambda: not held(cluster, "web"))
    status = await gugus.cluster.status()
    assert [f.reason for f in status.findings if f.reason == "HA_DISARMED"] == ["HA_DISARMED"]
    assert any("new switches" in problem for problem in status.problems)
    spec = guest_spec()
    spec.ha.enabled = True
    check(await gugus.tasks.wait(await gugus.guests.create("db", spec)))
    made = cluster.store.peek(Guest, "db")
    assert made is not None
    assert not made.status.ha_armed
    check(await gugus.tasks.wait(await gugus.cluster.arm_ha()))
    assert web(cluster).status.ha_armed
    await cluster.eventually(lambda: held(cluster, "web") and held(cluster, "db", made.status.node))
    assert not [f for f in (await gugus.cluster.status()).findings if f.reason == "HA_DISARMED"]


async def test_frozen_guests_stay_as_they_are_until_ha_is_switched_on(
    two: tuple[Cluster, Gugus, Failing, Failing],
) -> None:
    cluster, gugus, first, _ = two
    await cluster.eventually(lambda: held(cluster, "web"))
    check(await gugus.tasks.wait(await gugus.cluster.disarm_ha("new switches", freeze=True)))
    await first.end("web")
    await cluster.eventually(lambda: web(cluster).status.phase == GUEST_PHASE_STOPPED)
    assert "--freeze" in web(cluster).status.reason
    await asyncio.sleep(1.0)
    assert web(cluster).status.phase == GUEST_PHASE_STOPPED
    check(await gugus.tasks.wait(await gugus.cluster.arm_ha()))
    await cluster.eventually(lambda: web(cluster).status.phase == GUEST_PHASE_RUNNING)
    assert web(cluster).status.ha.restarts == 0


async def test_the_last_word_about_the_switch_counts(two: tuple[Cluster, Gugus, Failing, Failing]) -> None:
    cluster, gugus, _, _ = two
    tasks = [await gugus.cluster.disarm_ha(), await gugus.cluster.arm_ha()]
    ended = [await cluster.ended(task) for task in tasks]
    assert ended[1].state == TASK_STATE_SUCCEEDED
    await cluster.eventually(lambda: held(cluster, "web"))


async def test_a_long_reason_is_refused(two: tuple[Cluster, Gugus, Failing, Failing]) -> None:
    with pytest.raises(GugusError, match="at most 200"):
        await two[1].cluster.disarm_ha("x" * 201)


def held(cluster: Cluster, guest: str, node: str = "n1") -> bool:
    """Whether the last beat of a node says that it holds a guest under HA."""
    report = cluster._context.beats.of(node).guests.get(guest)
    return report is not None and report.ha
