"""Hosts with a fence device, the lab's power switch: a lost host is proven dead long before its lease ends."""

from collections.abc import Iterator

import pytest
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED

from lab import fencing
from lab.powerswitch import secret
from tests.lab.conftest import Room


@pytest.fixture
def powered(room: Room) -> Iterator[Room]:
    fencing.give_devices(room.operator, room.lab.plan)
    yield room
    fencing.take_devices(room.operator, room.lab.plan)


def test_host_that_is_cut_from_the_network_loses_its_power_and_its_guests_run_elsewhere(powered: Room) -> None:
    room = powered
    victim = room.other_than(room.acting)
    room.run_both(victim)
    boots = room.lab.node_status(victim).boots
    room.lab.cut(victim)
    room.operator.wait(
        f"{victim} to be fenced", lambda: room.operator.node(victim).status.state == NODE_STATE_FENCED, 30
    )
    fenced = [e for e in room.operator.events() if e.about == f"node/{victim}" and e.reason == "NODE_FENCED"][-1]
    assert "read back from switch" in fenced.message
    for name in ("web", "db"):
        assert room.wait_running(name).node != victim
    room.lab.heal(victim)
    room.operator.wait(f"{victim} to have its power back", lambda: room.lab.node_status(victim).boots > boots, 30)
    room.wait_online(victim)
    for name in ("web", "db"):
        room.assert_one_writer(name)


def test_device_answers_from_every_managers_host_and_tells_no_secret(powered: Room) -> None:
    room = powered
    for node in room.lab.plan.nodes():
        answer = room.operator.run(room.gugus.nodes.test_fence(node.name))
        assert [(d.ok, d.power) for d in answer.devices] == [(True, "on")], answer
        shown = room.shell(node.name, "gugus", "node", "show", node.name, "-o", "yaml") if node.name == "n1" else ""
        assert secret(room.lab.plan) not in shown + str(room.operator.node(node.name))
    logs = room.shell(room.acting, "journalctl", "-u", "gugus-manager", "-o", "cat", "--no-pager")
    assert secret(room.lab.plan) not in logs
