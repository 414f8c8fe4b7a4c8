"""Hosts with a fence device, the lab's power switch: a lost host is proven dead long before its lease ends."""

from collections.abc import Iterator

import pytest
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED

from lab import demo_guests, fencing
from lab.powerswitch import secret
from tests.lab.conftest import Room


@pytest.fixture
def powered(room: Room) -> Iterator[Room]:
    fencing.give_devices(room.operator, room.lab.plan)
    yield room
    fencing.take_devices(room.operator, room.lab.plan)


@pytest.fixture
def without_storage(powered: Room) -> Iterator[str]:
    """A node that does not act, whose beats do not get to the shared pool any more: a folder is where their file was."""
    victim = powered.other_than(powered.acting)
    beat = powered.lab.plan.shared / "pool" / "gugus" / "beats" / victim
    beat.unlink()
    beat.mkdir()
    yield victim
    beat.rmdir()


def test_host_that_is_cut_off_but_writes_to_shared_storage_keeps_its_power_and_its_lease_decides(powered: Room) -> None:
    room = powered
    victim = room.other_than(room.acting)
    room.create("web", demo_guests.vm_spec(victim))
    room.wait_running("web", victim)
    boots = room.lab.node_status(victim).boots
    room.lab.cut(victim)
    room.operator.wait("web to be given to another node", lambda: room.is_elsewhere("web", victim), 30)
    told = {e.reason: e.message for e in room.operator.events() if e.about == f"node/{victim}"}
    assert "write to shared storage, so it runs, and is cut off from the network" in told["NODE_FENCING"]
    assert "lease, kill budget and margin have passed" in told["NODE_FENCED"]
    room.lab.heal(victim)
    room.wait_online(victim)
    assert room.lab.node_status(victim).boots == boots, "its power was cut although it ran"


def test_host_that_is_cut_from_network_and_storage_loses_its_power_and_its_guests_run_elsewhere(
    powered: Room, without_storage: str
) -> None:
    room, victim = powered, without_storage
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
