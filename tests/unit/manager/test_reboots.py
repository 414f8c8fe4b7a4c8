"""Rolling reboots: hosts are emptied, rebooted and filled again, one after another; what stops them, and how they go on."""

import asyncio
from pathlib import Path

import pytest
from gugus.agent.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_FAILED, TASK_STATE_SUCCEEDED
from gugus.cluster.v1.cluster_pb2 import SPARE_POLICY_REFUSE, ClusterSettings, SpareSettings
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, HaSpec
from gugus.cluster.v1.node_pb2 import (
    HOST_EXIT_REBOOT,
    REBOOT_STEP_DONE,
    REBOOT_STEP_DRAIN,
    REBOOT_STEP_FAILED,
    REBOOT_STEP_REBOOT,
    REBOOT_STEP_SKIPPED,
    Node,
    RollingReboot,
)
from gugus.cluster.v1.task_pb2 import Task

from agent import shutdown
from client.sdk import Gugus
from client.tasks import check
from common.errors import GugusError, from_status
from manager.controllers import reboots
from manager.ha import rolling
from manager.store.kinds import new
from tests.unit.manager.cluster import Cluster
from tests.unit.manager.conftest import haste, storage
from tests.unit.manager.reboots import Hosts, set_cluster, two_hosts
from tests.unit.manager.storage import Storage
from tests.unit.migration.test_operation import Mover, Two, cluster, gugus, reached

__all__ = ["cluster", "gugus", "haste", "storage"]


@pytest.fixture
async def hosts(cluster: Two, gugus: Gugus, monkeypatch: pytest.MonkeyPatch) -> Hosts:
    """`web` runs on n2."""
    made = await two_hosts(cluster, gugus, monkeypatch)
    monkeypatch.setattr("agent.services.node.shutdown.reboot", made.reboot)
    monkeypatch.setattr(reboots, "LOOK_S", 0.1)
    return made


def steps(cluster: Cluster, task: Task) -> dict[str, int]:
    """How far each host is; nothing while nobody acts."""
    found = cluster.peek(Task, task.meta.name) or Task()
    return {one.node: one.step for one in RollingReboot.FromString(found.step_notes).nodes}


def runs(cluster: Two, node: str) -> bool:
    status = cluster.guest().status
    return (status.phase, status.node) == (GUEST_PHASE_RUNNING, node)


async def again(cluster: Two, hosts: Hosts) -> None:
    """n2 reboots when it is told to."""
    await cluster.eventually(lambda: hosts.asked)
    await hosts.off("n2", HOST_EXIT_REBOOT)
    hosts.on("n2")


async def test_a_host_is_emptied_rebooted_and_filled_again(cluster: Two, gugus: Gugus, hosts: Hosts) -> None:
    life = cluster.life("n2", "web")
    boot = (cluster.peek(Node, "n2") or Node()).status.boot_id
    task = await gugus.nodes.reboot(["n2"])
    await again(cluster, hosts)
    ended = await cluster.ended(task)
    assert ended.state == TASK_STATE_SUCCEEDED, ended
    assert runs(cluster, "n2")
    assert cluster.life("n2", "web") == life
    node = cluster.peek(Node, "n2") or Node()
    assert node.status.boot_id != boot
    assert not node.spec.maintenance
    assert hosts.asked == 1
    assert "n2" in ended.log[-1].text


async def test_a_node_in_maintenance_stays_in_it(cluster: Two, gugus: Gugus, hosts: Hosts) -> None:
    check(await gugus.tasks.wait(await gugus.nodes.drain("n2", maintenance=True)))
    task = await gugus.nodes.reboot(["n2"])
    await again(cluster, hosts)
    assert (await cluster.ended(task)).state == TASK_STATE_SUCCEEDED
    assert (cluster.peek(Node, "n2") or Node()).spec.maintenance
    assert runs(cluster, "n1")


async def test_the_only_manager_is_not_rebooted_and_the_rest_goes_on_from_there(
    cluster: Two, gugus: Gugus, hosts: Hosts
) -> None:
    task = await gugus.nodes.reboot([])
    await again(cluster, hosts)
    ended = await cluster.ended(task)
    assert ended.state == TASK_STATE_FAILED
    error = from_status(ended.error)
    assert error.reason == "CANNOT_SPARE"
    assert "majority" in error.message
    assert steps(cluster, task) == {"n2": REBOOT_STEP_DONE, "n1": REBOOT_STEP_FAILED}
    second = await cluster.ended(await gugus.nodes.reboot([]))
    assert second.state == TASK_STATE_FAILED
    assert steps(cluster, second) == {"n2": REBOOT_STEP_SKIPPED, "n1": REBOOT_STEP_FAILED}
    third = await cluster.ended(await gugus.nodes.reboot([]))
    assert steps(cluster, third) == {"n2": REBOOT_STEP_SKIPPED, "n1": REBOOT_STEP_FAILED}
    assert hosts.asked == 1


async def test_another_manager_goes_on(cluster: Two, gugus: Gugus, hosts: Hosts) -> None:
    go_on = cluster.moves("n2").hold_at("send")
    task = await gugus.nodes.reboot(["n2"])
    await reached(cluster, "n2", "send")
    await cluster.stop_manager()
    cluster.start_manager()
    await cluster.online("n1", "n2")
    assert steps(cluster, task) == {"n2": REBOOT_STEP_DRAIN}
    go_on.set()
    await cluster.eventually(lambda: hosts.asked)
    await cluster.stop_manager()
    cluster.start_manager()
    await cluster.online("n1", "n2")
    await hosts.off("n2", HOST_EXIT_REBOOT)
    hosts.on("n2")
    assert (await cluster.ended(task)).state == TASK_STATE_SUCCEEDED
    await cluster.eventually(lambda: runs(cluster, "n2"))


async def test_a_host_that_does_not_come_back_stops_it_in_maintenance(cluster: Two, gugus: Gugus, hosts: Hosts) -> None:
    task = await gugus.nodes.reboot(["n2"], back_within_s=1.0)
    await cluster.eventually(lambda: hosts.asked)
    ended = await cluster.ended(task)
    assert from_status(ended.error).reason == "NOT_BACK"
    assert (cluster.peek(Node, "n2") or Node()).spec.maintenance
    assert runs(cluster, "n1")
    second = await gugus.nodes.reboot(["n2"])
    await cluster.eventually(lambda: hosts.asked == 2)
    await hosts.off("n2", HOST_EXIT_REBOOT)
    hosts.on("n2")
    assert (await cluster.ended(second)).state == TASK_STATE_SUCCEEDED
    assert not (cluster.peek(Node, "n2") or Node()).spec.maintenance
    await cluster.eventually(lambda: runs(cluster, "n2"))


async def test_a_host_that_refuses_to_reboot_stops_it(cluster: Two, gugus: Gugus, hosts: Hosts) -> None:
    hosts.refuses = True
    ended = await cluster.ended(await gugus.nodes.reboot(["n2"]))
    assert from_status(ended.error).reason == "REBOOT_REFUSED"
    assert steps(cluster, ended) == {"n2": REBOOT_STEP_FAILED}
    assert (cluster.peek(Node, "n2") or Node()).spec.maintenance


async def test_nobody_to_take_the_guests_stops_it_before_anything_happens(
    cluster: Two, gugus: Gugus, hosts: Hosts
) -> None:
    await gugus.nodes.cordon("n1")
    ended = await cluster.ended(await gugus.nodes.reboot(["n2"]))
    error = from_status(ended.error)
    assert error.reason == "CANNOT_SPARE"
    assert "web" in error.message
    assert runs(cluster, "n2")
    assert not (cluster.peek(Node, "n2") or Node()).spec.maintenance


async def test_spare_room_that_must_be_kept_is_kept(cluster: Two, gugus: Gugus, hosts: Hosts) -> None:
    await gugus.guests.set_ha("web", HaSpec(enabled=True))
    await set_cluster(cluster, ClusterSettings(spare=SpareSettings(nodes=1, policy=SPARE_POLICY_REFUSE)))
    ended = await cluster.ended(await gugus.nodes.reboot(["n2"]))
    error = from_status(ended.error)
    assert error.reason == "CANNOT_SPARE"
    assert "if n1 were lost, web would find no place" in error.message


async def test_a_host_that_needs_no_reboot_is_left_out(cluster: Two, gugus: Gugus, hosts: Hosts) -> None:
    ended = await cluster.ended(await gugus.nodes.reboot(["n2"], if_required=True))
    assert ended.state == TASK_STATE_SUCCEEDED
    assert steps(cluster, ended) == {"n2": REBOOT_STEP_SKIPPED}


async def test_it_is_cancelled_between_two_steps(cluster: Two, gugus: Gugus, hosts: Hosts) -> None:
    cluster.moves("n2").hold_at("send")
    task = await gugus.nodes.reboot(["n2"])
    await reached(cluster, "n2", "send")
    with pytest.raises(GugusError) as raised:
        await gugus.nodes.reboot([])
    assert raised.value.reason == "REBOOT_UNDER_WAY"
    await gugus.tasks.cancel(task.meta.name)
    assert (await cluster.ended(task)).state == TASK_STATE_CANCELLED
    assert not (cluster.peek(Node, "n2") or Node()).spec.maintenance
    assert hosts.asked == 0


async def test_nonsense_is_refused(gugus: Gugus) -> None:
    with pytest.raises(GugusError, match="parallel"):
        await gugus.nodes.reboot([], parallel=9)
    with pytest.raises(GugusError, match="n9"):
        await gugus.nodes.reboot(["n9"])


async def test_all_managers_hosts_are_rebooted_and_the_cluster_acts_throughout(
    tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each goes down with its manager; the acting one hands over first, and its host comes last."""
    async with Cluster(tmp_path, voters=3) as cluster:
        for name in cluster.voters:
            cluster.start_manager(name)
        await cluster.eventually(lambda: cluster.acting and cluster.peek(Node, cluster.acting))
        founder = cluster.acting
        cluster.start_agent(founder, Mover(tmp_path / founder))
        for name in cluster.voters:
            if name != founder:
                await cluster.add_node(name, Mover(tmp_path / name))
        made = Hosts(cluster, lambda node: Mover(tmp_path / node))
        monkeypatch.setattr(shutdown, "system_exit", made.system_exit)
        monkeypatch.setattr("agent.services.node.shutdown.reboot", made.reboot)
        await cluster.eventually(lambda: all(n.status.voter for n in cluster.store.peek_all(Node)))
        async with cluster.client() as gugus:
            task, rebooted = await gugus.nodes.reboot([]), list[str]()
            while not (cluster.acting and cluster.has_ended(task)):
                down = [name for name, step in steps(cluster, task).items() if step == REBOOT_STEP_REBOOT]
                if down and made.asked > len(rebooted):
                    rebooted += down
                    await made.off(down[0], HOST_EXIT_REBOOT)
                    await cluster.stop_manager(down[0])
                    cluster.start_manager(down[0])
                    made.on(down[0])
                await asyncio.sleep(0.1)
        ended = cluster.peek(Task, task.meta.name) or task
        assert ended.state == TASK_STATE_SUCCEEDED, ended
        assert sorted(rebooted) == ["n1", "n2", "n3"]
        assert rebooted[-1] == founder
        assert made.asked == 3


# Whose turn it is


def roll(**made: int) -> RollingReboot:
    notes = RollingReboot()
    for node, step in made.items():
        notes.nodes.add(node=node, step=step)
    return notes


def test_of_the_managers_hosts_one_is_down_at_a_time_and_the_acting_one_last() -> None:
    voters = {"m1", "m2", "m3"}
    notes = roll(a=0, b=0, m1=0, m2=0, m3=0)
    assert rolling.due(notes, voters, "m1", 8) == ["a", "b", "m2"]
    assert rolling.due(notes, voters, "m1", 2) == ["a", "b"]
    assert rolling.due(roll(m1=0, m2=REBOOT_STEP_REBOOT), voters, "m1", 8) == []
    assert rolling.due(roll(m1=0, m2=REBOOT_STEP_DONE), voters, "m1", 8) == ["m1"]
    assert rolling.due(roll(a=REBOOT_STEP_REBOOT, m1=0), voters, "m1", 8) == []
    assert rolling.due(roll(a=REBOOT_STEP_FAILED, b=0), voters, "m1", 8) == []


def test_the_order_is_plain_nodes_managers_the_acting_one() -> None:
    nodes = [new(Node, name) for name in ("a", "b", "c", "d")]
    for node in nodes[:3]:
        node.status.voter = True
    assert [one.node for one in rolling.planned(nodes, "a", None).nodes] == ["d", "b", "c", "a"]
