"""The network of a host is cut: it ends its HA guests by itself when its lease ends, before they start elsewhere."""

import time
from functools import partial

from tests.lab.conftest import Room


def test_a_host_that_is_cut_off_ends_its_guests_before_others_start_them(room: Room) -> None:
    victim = room.other_than(room.acting)
    room.run_both(victim)
    boots = room.lab.node_status(victim).boots
    cut_s = time.time()
    room.lab.cut(victim)
    for name in ("web", "db"):
        room.operator.wait(
            f"{name} to run elsewhere",
            partial(room.is_elsewhere, name, victim),
            60,
        )
        assert room.wait_running(name).node != victim
    assert room.event_after(cut_s, f"node/{victim}", "NODE_FENCED")
    room.lab.heal(victim)
    room.wait_online(victim)
    assert room.lab.node_status(victim).boots == boots, "the watchdog reset a host whose agent had done its duty"
    time.sleep(2)
    for name in ("web", "db"):
        assert room.wait_running(name).node != victim
        room.assert_one_writer(name)


def test_a_cut_shorter_than_the_lease_costs_nothing(room: Room) -> None:
    victim = room.other_than(room.acting)
    room.run_both(victim)
    running = {name: room.wait_running(name, victim) for name in ("web", "db")}
    room.lab.cut(victim)
    time.sleep(5)
    room.lab.heal(victim)
    room.wait_online(victim)
    time.sleep(8)
    for name, copy in running.items():
        assert room.wait_running(name, victim) == copy
