"""A host is shut down in order: its HA guests shut down, too, and run elsewhere at once; nothing resets it, and it stays off."""

import time
from functools import partial

import pytest
from gugus.cluster.v1 import heartbeat_pb2
from gugus.cluster.v1.event_pb2 import Event

from tests.lab.conftest import Room

GUESTS = ("web", "db")
AWAY_SECONDS = 60.0
OFF_SECONDS = 60.0
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
    assert [event.reason for event in told] == ["NODE_FENCED"], "by its own word, without waiting, and for good"
    for name in GUESTS:
        room.operator.wait(f"{name} to write again", lambda n=name: room.beats(n) > beats[n], 60)  # type: ignore[misc]
        room.assert_one_writer(name)
    room.lab.power_on(victim)
    room.wait_online(victim)
    assert {copy.guest for copy in room.judge.now.copies if copy.node == victim} == set()


def at(event: Event) -> float:
    """When something happened, by the wall clock."""
    return event.at.seconds + event.at.nanos / 1e9


def last_lapse(room: Room, node: str) -> heartbeat_pb2.LapseReport:
    """What the agent of a node that is off wrote on its disk when it gave its lease up."""
    file = room.lab.plan.node(node).upper / "var/lib/gugus/agent/records/lapse.pb"
    return heartbeat_pb2.LapseReport.FromString(file.read_bytes())
