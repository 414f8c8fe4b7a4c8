"""A host hangs: its watchdog resets it within lease and kill budget, before its HA guests start anew."""

import time
from functools import partial

from common.leases import LeaseTimes
from tests.lab.conftest import Room


def test_a_host_that_hangs_is_reset_before_its_guests_start_anew(room: Room) -> None:
    victim = room.other_than(room.acting)
    room.run_both(victim)
    boots = room.lab.node_status(victim).boots
    times = LeaseTimes()
    before = {name: room.operator.guest(name).meta.generation for name in ("web", "db")}
    frozen_s = time.time()
    room.lab.freeze(victim)
    for name in ("web", "db"):  # on another host, or on this one: it is back within seconds, and they prefer it
        room.operator.wait(f"{name} to be given a host anew", partial(room.is_given_anew, name, before[name]), 60)
        room.wait_running(name)
    resets = [e for e in room.lab.events() if e["event"] == "watchdog-reset" and e["time"] >= frozen_s]
    assert [e["node"] for e in resets] == [victim]
    assert resets[0]["time"] - frozen_s <= (times.lease_ms + times.kill_budget_ms) / 1000
    room.wait_online(victim)
    assert room.lab.node_status(victim).boots == boots + 1
    for name in ("web", "db"):
        room.wait_running(name)
        room.assert_one_writer(name)
