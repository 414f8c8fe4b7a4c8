"""Each daemon is killed while guests run: the guests run on, are adopted, and nothing runs twice."""

import time

import pytest
from gugus.agent.v1.task_pb2 import TASK_STATE_SUCCEEDED

from common.errors import GugusError
from lab import demo_guests
from tests.lab.conftest import HEAL_SECONDS, Room

NODE = "n2"


def kill(room: Room, node: str, unit: str) -> None:
    """Kill a daemon as a crash does, and wait until systemd has another one running."""
    before = pid_of(room, node, unit)
    room.shell(node, "systemctl", "kill", "--kill-who=main", "--signal=SIGKILL", unit)
    room.operator.wait(f"{unit} to run again", lambda: pid_of(room, node, unit) not in ("0", before), HEAL_SECONDS)


def pid_of(room: Room, node: str, unit: str) -> str:
    return room.shell(node, "systemctl", "show", "--property=MainPID", "--value", unit).strip()


@pytest.mark.parametrize("unit", ["gugus-agent", "libvirtd", "gugus-watchdog"])
def test_guests_outlive_a_daemon_of_their_host(room: Room, unit: str) -> None:
    room.create("web", demo_guests.vm_spec(NODE))
    room.create("db", demo_guests.container_spec(NODE))
    running = {name: room.wait_running(name, NODE) for name in ("web", "db")}
    if unit == "libvirtd":  # it is started by its socket and ends when idle
        room.shell(NODE, "virsh", "list")
    boots = room.lab.node_status(NODE).boots
    kill(room, NODE, unit)
    time.sleep(3)
    for name, copy in running.items():
        assert room.wait_running(name, NODE) == copy, f"{name} is another process than before"
    room.wait_online(NODE)
    assert room.lab.node_status(NODE).boots == boots
    for name in running:
        room.operator.do(room.gugus.guests.stop(name, force=True))
        assert not room.judge.now.of(name)


def test_guests_outlive_the_acting_manager(room: Room) -> None:
    acting = room.acting
    node = room.other_than(acting)
    room.create("web", demo_guests.vm_spec(node))
    room.create("db", demo_guests.container_spec(acting))
    running = {name: room.wait_running(name) for name in ("web", "db")}
    epoch = room.operator.status().epoch
    kill(room, acting, "gugus-manager")
    room.operator.wait(
        "a manager to act with a newer epoch",
        lambda: (s := room.operator.status()).acting and s.epoch >= epoch and s.leader,
        HEAL_SECONDS,
    )
    for name, copy in running.items():
        assert room.wait_running(name) == copy
    room.create("more", demo_guests.container_spec())


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.3])
def test_a_create_that_is_repeated_after_the_leader_died_is_done_once(room: Room, delay_s: float) -> None:
    room.made.append("once")
    key = f"only-once-{delay_s}"
    spec = demo_guests.container_spec()
    first = ""
    try:
        first = room.operator.run(room.gugus.guests.create("once", spec, request_id=key)).meta.name
    finally:
        time.sleep(delay_s)
        kill(room, room.acting, "gugus-manager")
    second = room.operator.run(room.gugus.guests.create("once", spec, request_id=key))
    assert second.meta.name == first
    task = room.operator.run(room.gugus.tasks.wait(second, timeout_s=60))
    assert task.state == TASK_STATE_SUCCEEDED
    room.wait_running("once")
    volumes = room.operator.run(room.gugus.pools.volumes("shared"))
    assert len([volume for volume in volumes if volume.name.startswith("once-")]) == 1
    with pytest.raises(GugusError) as caught:
        room.operator.run(room.gugus.guests.create("once", spec, request_id=key + "-other"))
    assert caught.value.reason == "GUEST_ALREADY_EXISTS"
