"""Hosts that go down in order: what runs there starts elsewhere, waits, or moves away; nothing resets them; who is off stays off."""

import time
from functools import partial

import pytest
from gugus.cluster.v1 import heartbeat_pb2
from gugus.cluster.v1.event_pb2 import Event
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, RollingReboot

from lab import demo_guests
from tests.lab.conftest import Room

GUESTS = ("web", "db")
AWAY_SECONDS = 60.0
OFF_SECONDS = 60.0
BACK_SECONDS = 90.0
REBOOT_SECONDS = 300.0
WATCHDOG_SECONDS = 5.0
"""A device that was left armed has fired by then: its timeout is 4 s (WANTED_TIMEOUT_S)."""


@pytest.mark.parametrize("acting", [False, True], ids=["an-ordinary-host", "the-host-of-the-acting-manager"])
def test_a_host_that_is_shut_down_hands_its_guests_over(room: Room, acting: bool) -> None:
    victim = room.acting if acting else room.other_than(room.acting)
    room.run_both(victim)
    beats = {name: room.beats(name) for name in GUESTS}
    boots = room.lab.node_status(victim).boots
    began_s = time.time()
    room.shell(victim, "systemctl", "poweroff", check=False)
    for name in GUESTS:
        room.operator.wait(f"{name} to be given away", partial(room.is_elsewhere, name, victim), AWAY_SECONDS)
        assert room.wait_running(name).node != victim
    room.operator.wait(f"{victim} to be off", lambda: room.lab.node_status(victim).power == "off", OFF_SECONDS)
    time.sleep(WATCHDOG_SECONDS)
    assert room.lab.node_status(victim).power == "off"
    assert room.lab.node_status(victim).boots == boots
    assert "watchdog-reset" not in {e["event"] for e in room.lab.events() if e["time"] >= began_s}
    assert not last_lapse(room, victim).killed, "they had to be killed"
    told = [event for event in room.operator.events() if event.about == f"node/{victim}" and at(event) >= began_s]
    reasons = [event.reason for event in told]
    assert reasons == ["NODE_LEAVES", "NODE_FENCED"], "by its own word, without waiting, and for good"
    for name in GUESTS:
        room.operator.wait(f"{name} to write again", lambda n=name: room.beats(n) > beats[n], 60)  # type: ignore[misc]
        room.assert_one_writer(name)
    room.lab.power_on(victim)
    room.wait_online(victim)
    assert {copy.guest for copy in room.judge.now.copies if copy.node == victim} == set()


def test_hosts_are_rebooted_one_after_another_and_a_machine_lives_on(room: Room) -> None:
    """Two of three, managers both: the acting one's host comes last, after another manager acts."""
    acting = room.acting
    others = [room.other_than(acting), acting]
    room.run_both(others[0])
    boots = {node: room.operator.node(node).status.boot_id for node in others}
    before = room.beats("web")
    task = room.operator.do(room.gugus.nodes.reboot(others), REBOOT_SECONDS)
    assert [one.node for one in RollingReboot.FromString(task.step_notes).nodes] == others
    for node in others:
        found = room.operator.node(node)
        assert found.status.boot_id != boots[node]
        assert (found.status.state, found.spec.maintenance) == (NODE_STATE_ONLINE, False)
    assert room.acting != acting
    for name in GUESTS:
        room.wait_running(name, others[0])
        room.assert_one_writer(name)
        assert room.operator.guest(name).status.recoveries == 0
    room.operator.wait("web to write on", lambda: room.beats("web") > before, 60)
    lives = {beat.boot_id for beat in demo_guests.beats(room.lab.plan, room.operator.guest("web"))}
    assert len(lives) == 1, "it was started again"


def test_a_host_that_reboots_gets_its_guests_back(room: Room) -> None:
    victim = room.other_than(room.acting)
    room.run_both(victim)
    generations = {name: room.operator.guest(name).meta.generation for name in GUESTS}
    began_s = time.time()
    room.shell(victim, "systemctl", "reboot", check=False)
    for name in GUESTS:
        frozen = partial(room.event_after, began_s, f"guest/{name}", "GUEST_FROZEN")
        room.operator.wait(f"{name} to wait for {victim}", frozen, AWAY_SECONDS)
    for name in GUESTS:
        given = partial(room.is_given_anew, name, generations[name])
        room.operator.wait(f"{name} to be given back", given, BACK_SECONDS)
        room.wait_running(name, victim)
        room.assert_one_writer(name)
        assert room.operator.guest(name).status.recoveries == 0
    assert not last_lapse(room, victim).killed, "they had to be killed"


def at(event: Event) -> float:
    """When something happened, by the wall clock."""
    return event.at.seconds + event.at.nanos / 1e9


def last_lapse(room: Room, node: str) -> heartbeat_pb2.LapseReport:
    """What the agent of a node that is off wrote on its disk when it gave its lease up."""
    file = room.lab.plan.node(node).upper / "var/lib/gugus/agent/records/lapse.pb"
    return heartbeat_pb2.LapseReport.FromString(file.read_bytes())
