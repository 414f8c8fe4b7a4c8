"""Hosts that go down in order: who waits for them, who starts elsewhere, who moves away first."""

import asyncio

import pytest
from gugus.cluster.v1.cluster_pb2 import SHUTDOWN_POLICY_FAIL_OVER, SHUTDOWN_POLICY_MIGRATE, ClusterSettings
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_RECOVERING,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STOPPED,
    HA_STATE_FREEZE,
    HA_STATE_STARTED,
    POWER_OFF,
    HaSpec,
)
from gugus.cluster.v1.node_pb2 import (
    HOST_EXIT_POWER_OFF,
    HOST_EXIT_REBOOT,
    NODE_STATE_FENCED,
    NODE_STATE_ONLINE,
    Node,
)

from client.sdk import Gugus
from client.tasks import check
from tests.unit.manager.cluster import guest_spec
from tests.unit.manager.conftest import haste, storage
from tests.unit.manager.reboots import Hosts, set_cluster, two_hosts
from tests.unit.migration.test_operation import Mover, Two, cluster, gugus, reached

__all__ = ["cluster", "gugus", "haste", "storage"]


@pytest.fixture
async def hosts(cluster: Two, gugus: Gugus, monkeypatch: pytest.MonkeyPatch) -> Hosts:
    """`web` runs under HA on n2."""
    await gugus.guests.set_ha("web", HaSpec(enabled=True))
    made = await two_hosts(cluster, gugus, monkeypatch)
    await cluster.eventually(lambda: cluster.guest().status.ha_armed and runs(cluster, "n2"))
    return made


def runs(cluster: Two, node: str, guest: str = "web") -> bool:
    status = cluster.guest(guest).status
    return (status.phase, status.node) == (GUEST_PHASE_RUNNING, node) and cluster.runs_on(guest) == [node]


def state(cluster: Two, node: str = "n2") -> int:
    return (cluster.peek(Node, node) or Node()).status.state


def frozen(cluster: Two) -> bool:
    status = cluster.guest().status
    return (status.phase, status.ha.state) == (GUEST_PHASE_RECOVERING, HA_STATE_FREEZE)


def told(cluster: Two, about: str) -> list[str]:
    return [event.reason for event in cluster.events() if event.about == about]


async def test_a_reboot_freezes_and_thaws(cluster: Two, hosts: Hosts) -> None:
    generation = cluster.guest().meta.generation
    await hosts.off("n2", HOST_EXIT_REBOOT)
    await cluster.eventually(lambda: frozen(cluster))
    assert cluster.runs_on() == []
    await cluster.beats(5)
    assert cluster.guest().status.node == "n2"
    hosts.on("n2")
    await cluster.eventually(lambda: runs(cluster, "n2"))
    guest = cluster.guest()
    assert guest.status.ha.state == HA_STATE_STARTED
    assert not guest.status.ha.HasField("frozen_at")
    assert (guest.meta.generation, guest.status.recoveries) == (generation + 1, 0)
    assert not (cluster.peek(Node, "n2") or Node()).status.HasField("departure")
    assert [word for word in told(cluster, "guest/web") if word in ("GUEST_FROZEN", "GUEST_THAWED")] == [
        "GUEST_FROZEN",
        "GUEST_THAWED",
    ]


async def test_a_shutdown_fails_over(cluster: Two, hosts: Hosts) -> None:
    await hosts.off("n2", HOST_EXIT_POWER_OFF)
    await cluster.eventually(lambda: runs(cluster, "n1"))
    assert told(cluster, "node/n2")[-2:] == ["NODE_LEAVES", "NODE_FENCED"]


async def test_a_restart_of_the_agent_moves_nothing(cluster: Two, hosts: Hosts) -> None:
    life = cluster.life("n2", "web")
    await cluster.stop_agent("n2")
    cluster.start_agent("n2", Mover(cluster.folder / "n2"))
    await cluster.beats(3, "n2")
    assert runs(cluster, "n2")
    assert cluster.life("n2", "web") == life
    assert "NODE_LEAVES" not in told(cluster, "node/n2")


async def test_a_reboot_fails_over_where_that_is_the_policy(cluster: Two, hosts: Hosts) -> None:
    await set_cluster(cluster, ClusterSettings(shutdown=SHUTDOWN_POLICY_FAIL_OVER))
    await hosts.off("n2", HOST_EXIT_REBOOT)
    await cluster.eventually(lambda: runs(cluster, "n1"))


async def test_a_freeze_ends(cluster: Two, hosts: Hosts) -> None:
    await hosts.off("n2", HOST_EXIT_REBOOT)
    await cluster.eventually(lambda: frozen(cluster))
    await set_cluster(cluster, ClusterSettings(freeze_ms=1))
    await cluster.eventually(lambda: runs(cluster, "n1"))
    assert cluster.guest().status.previous_node == "n2"
    hosts.on("n2")
    await cluster.online("n2")
    await cluster.beats(3, "n2")
    assert runs(cluster, "n1")


async def test_a_person_ends_a_freeze(cluster: Two, gugus: Gugus, hosts: Hosts) -> None:
    await hosts.off("n2", HOST_EXIT_REBOOT)
    await cluster.eventually(lambda: frozen(cluster))
    await gugus.nodes.confirm_off(await gugus.nodes.get("n2"), "n2")
    await cluster.eventually(lambda: runs(cluster, "n1"))
    assert "FREEZE_ENDED" in told(cluster, "node/n2")


async def test_what_is_stopped_is_frozen_too(cluster: Two, gugus: Gugus, hosts: Hosts) -> None:
    check(await gugus.tasks.wait(await gugus.guests.stop("web")))
    await hosts.off("n2", HOST_EXIT_REBOOT)
    await cluster.eventually(lambda: frozen(cluster))
    hosts.on("n2")
    await cluster.eventually(lambda: cluster.guest().status.phase == GUEST_PHASE_STOPPED)
    assert cluster.guest().status.node == "n2"


async def test_a_frozen_guest_out_of_ha_is_left_to_its_node(cluster: Two, gugus: Gugus, hosts: Hosts) -> None:
    await hosts.off("n2", HOST_EXIT_REBOOT)
    await cluster.eventually(lambda: frozen(cluster))
    await gugus.guests.set_ha("web", HaSpec())
    hosts.on("n2")
    await cluster.eventually(lambda: runs(cluster, "n2"))
    assert not cluster.guest().status.HasField("ha")


async def test_another_manager_goes_on_with_a_freeze(cluster: Two, hosts: Hosts) -> None:
    await hosts.off("n2", HOST_EXIT_REBOOT)
    await cluster.eventually(lambda: frozen(cluster))
    await cluster.stop_manager()
    cluster.start_manager()
    await cluster.online("n1")
    await cluster.beats(5)
    assert frozen(cluster)
    hosts.on("n2")
    await cluster.eventually(lambda: runs(cluster, "n2"))


async def test_everything_moves_away_first_and_comes_back(cluster: Two, gugus: Gugus, hosts: Hosts) -> None:
    await set_cluster(cluster, ClusterSettings(shutdown=SHUTDOWN_POLICY_MIGRATE))
    life = cluster.life("n2", "web")
    check(await gugus.tasks.wait(await gugus.guests.create("plain", guest_spec(POWER_OFF))))
    check(await gugus.tasks.wait(await gugus.migrations.migrate("plain", "n2")))
    go_on = cluster.moves("n2").hold_at("send")
    down = asyncio.create_task(hosts.off("n2", HOST_EXIT_POWER_OFF))
    await reached(cluster, "n2", "send")
    await cluster.beats(3, "n2")
    assert state(cluster) == NODE_STATE_ONLINE
    go_on.set()
    await down
    assert runs(cluster, "n1")
    assert cluster.life("n1", "web") == life
    assert cluster.guest("plain").status.node == "n1"
    await cluster.eventually(lambda: state(cluster) == NODE_STATE_FENCED)
    hosts.on("n2")
    await cluster.eventually(lambda: runs(cluster, "n2") and cluster.guest("plain").status.node == "n2")
    assert cluster.life("n2", "web") == life
    assert cluster.guest().status.recoveries == 0


async def test_what_cannot_move_is_frozen(cluster: Two, gugus: Gugus, hosts: Hosts) -> None:
    await set_cluster(cluster, ClusterSettings(shutdown=SHUTDOWN_POLICY_MIGRATE))
    await gugus.nodes.cordon("n1")
    await hosts.off("n2", HOST_EXIT_REBOOT)
    await cluster.eventually(lambda: frozen(cluster))
    hosts.on("n2")
    await cluster.eventually(lambda: runs(cluster, "n2"))


async def test_a_host_that_goes_down_gets_nothing_new(cluster: Two, gugus: Gugus, hosts: Hosts) -> None:
    await set_cluster(cluster, ClusterSettings(shutdown=SHUTDOWN_POLICY_MIGRATE))
    go_on = cluster.moves("n2").hold_at("send")
    down = asyncio.create_task(hosts.off("n2", HOST_EXIT_REBOOT))
    await reached(cluster, "n2", "send")
    spec = guest_spec()
    spec.preferred_node = "n2"
    check(await gugus.tasks.wait(await gugus.guests.create("late", spec)))
    assert cluster.guest("late").status.node == "n1"
    go_on.set()
    await down
