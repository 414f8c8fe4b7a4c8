"""The power of a host is cut: its HA guests come back elsewhere in time, and the host rejoins when it is switched on."""

import time

import pytest

from tests.lab.conftest import Room

PROMISED_SECONDS = 25.0


@pytest.mark.parametrize("acting", [False, True], ids=["an-ordinary-host", "the-host-of-the-acting-manager"])
def test_guests_of_a_host_without_power_run_elsewhere(room: Room, acting: bool) -> None:
    victim = room.acting if acting else room.other_than(room.acting)
    room.run_both(victim)
    beats = {name: room.beats(name) for name in ("web", "db")}
    cut_s = time.time()
    room.lab.power_off(victim)
    for name in ("web", "db"):
        assert room.wait_running(name).node != victim
        came_s = min(
            when
            for node in ("n1", "n2", "n3")
            if node != victim and (when := room.judge.appeared(name, node, cut_s)) is not None
        )
        assert came_s - cut_s <= PROMISED_SECONDS
    assert room.event_after(cut_s, f"node/{victim}", "NODE_FENCED")
    for name in ("web", "db"):
        room.operator.wait(f"{name} to write again", lambda n=name: room.beats(n) > beats[n], 60)  # type: ignore[misc]
        room.assert_one_writer(name)
    room.lab.power_on(victim)
    room.wait_online(victim)
    assert {copy.guest for copy in room.judge.now.copies if copy.node == victim} == set()
