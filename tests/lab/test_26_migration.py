"""Guests that change hosts: machines while they run, with shared and local disks; containers by a short stop; and what goes wrong."""

import subprocess
import time
from collections.abc import Iterator

import pytest
from gugus.agent.v1.migration_pb2 import MigrationPolicy
from gugus.agent.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_FAILED, TASK_STATE_SUCCEEDED, TaskState
from gugus.agent.v1.volume_pb2 import DirPool, PoolSpec
from gugus.cluster.v1.guest_pb2 import DiskSpec
from gugus.cluster.v1.task_pb2 import Task

from lab import demo_guests
from tests.lab.conftest import BOOT_SECONDS, Room

LOCAL, LOCAL_PATH = "local26", "/var/lib/gugus-local26"
MIB = 2**20
SLOW = MigrationPolicy(bandwidth_bytes_per_s=4 * MIB, auto_converge=False)
"""So slow that a fault comes in the middle."""

END_SECONDS = 60.0

KILL_WHEN_HALTED = (
    "agent=$(systemctl show --property MainPID --value gugus-agent.service); qemu=$(pgrep -f guest=[w]eb,);"
    " while read -r _ _ state _ </proc/$qemu/stat; do"
    ' if [ "$state" = T ]; then kill -KILL $agent; echo killed; exit; fi; sleep 0.005; done'
)
"""Run at a source: kills the agent between the halting of its guest and the guest's end there."""


@pytest.fixture
def local_pool(room: Room) -> Iterator[str]:
    """A pool that every node has for itself."""
    spec = PoolSpec(name=LOCAL, dir=DirPool(path=LOCAL_PATH))
    room.operator.run(room.gugus.pools.create(spec))

    def everywhere() -> bool:  # or a guest with a disk in it is placed where it was seen first
        return all(LOCAL in node.status.facts.pools for node in room.operator.nodes())

    room.operator.wait("the pool on every node", everywhere, demo_guests.READY_SECONDS)
    yield LOCAL
    demo_guests.remove_guests(room.operator, tuple(room.made))
    room.operator.run(room.gugus.pools.delete(LOCAL))


def move(room: Room, guest: str, target: str, policy: MigrationPolicy | None = None) -> Task:
    """Ask for a migration."""
    return room.operator.run(room.gugus.migrations.migrate(guest, target, policy=policy))


def ended(room: Room, task: Task, state: TaskState.ValueType) -> Task:
    """Wait until a task has ended, in this state."""

    def over() -> Task | None:
        now = room.operator.run(room.gugus.tasks.get(task.meta.name))
        return now if now.HasField("ended_at") else None

    found = room.operator.wait("the migration to end", over, END_SECONDS)
    assert found.state == state, found
    return found


def boots(room: Room, name: str) -> set[str]:
    """The boots of a guest that wrote to its disk."""
    return {beat.boot_id for beat in demo_guests.beats(room.lab.plan, room.operator.guest(name))}


def wait_for_beats(room: Room, name: str, more_than: int = 0) -> int:
    return room.operator.wait(
        f"{name} to write to its disk", lambda: (room.beats(name) > more_than) and room.beats(name), BOOT_SECONDS
    )


def percent(room: Room, task: Task) -> int:
    return room.operator.run(room.gugus.tasks.get(task.meta.name)).progress_percent


def test_a_machine_under_ha_goes_over_while_it_runs(room: Room) -> None:
    room.create("web", demo_guests.vm_spec("n1"))
    count = wait_for_beats(room, "web")
    generation = room.operator.guest("web").meta.generation
    ended(room, move(room, "web", "n2"), TASK_STATE_SUCCEEDED)
    room.wait_running("web", "n2")
    wait_for_beats(room, "web", count + 2)
    assert len(boots(room, "web")) == 1
    room.assert_one_writer("web")
    assert room.is_given_anew("web", generation)


def test_a_machine_goes_there_and_back_without_a_pause(room: Room) -> None:
    room.create("web", demo_guests.vm_spec("n1", ha=False))
    wait_for_beats(room, "web")
    for target in ("n2", "n1", "n2", "n1"):
        ended(room, move(room, "web", target), TASK_STATE_SUCCEEDED)
        assert room.operator.guest("web").status.node == target
    count = room.beats("web")
    wait_for_beats(room, "web", count + 2)
    room.operator.do(room.gugus.guests.hibernate("web"))
    room.shell("n1", "rm", "-r", "/run/libvirt/gugus")  # as a reboot of the host would
    room.operator.do(room.gugus.guests.start("web"))
    wait_for_beats(room, "web", room.beats("web"))
    assert len(boots(room, "web")) == 1
    room.assert_one_writer("web")


def test_local_disks_go_along_and_nothing_of_them_stays(room: Room, local_pool: str) -> None:
    spec = demo_guests.vm_spec("n1", ha=False)
    spec.disks.append(DiskSpec(name="data", pool=local_pool, size_bytes=64 * MIB))
    guest = room.create("web", spec)
    volume = guest.spec.disks[1].volume
    wait_for_beats(room, "web")
    ended(room, move(room, "web", "n2"), TASK_STATE_SUCCEEDED)
    room.wait_running("web", "n2")
    assert len(boots(room, "web")) == 1
    file = f"{LOCAL_PATH}/gugus/disks/{volume}.qcow2"
    room.shell("n2", "test", "-e", file)

    def gone() -> bool:
        return room.shell("n1", "find", LOCAL_PATH, "-name", f"{volume}*") == ""

    room.operator.wait("its former host to be tidy", gone, END_SECONDS)


def test_a_container_moves_with_its_local_root(room: Room, local_pool: str) -> None:
    source = next(
        image for image in demo_guests.place_images(room.lab.plan) if image.name == demo_guests.CONTAINER_IMAGE
    )
    room.operator.do(room.gugus.pools.import_image(local_pool, source.name, str(source.path), sha256=source.sha256))
    node = next(
        image.node
        for image in room.operator.run(room.gugus.pools.images(pool=local_pool))
        if image.volume.name == source.name
    )
    spec = demo_guests.container_spec(node, ha=False)
    spec.disks[0].pool = local_pool
    room.create("db", spec)
    room.wait_running("db", node)
    target = room.other_than(node)
    task = ended(room, move(room, "db", target), TASK_STATE_SUCCEEDED)
    assert "stood still for" in task.log[-1].text
    room.wait_running("db", target)


def test_a_migration_is_cancelled_and_the_guest_stays(room: Room) -> None:
    room.create("web", demo_guests.vm_spec("n1"))
    wait_for_beats(room, "web")
    task = move(room, "web", "n2", SLOW)
    room.operator.wait("it to be under way", lambda: percent(room, task) > 5, END_SECONDS)
    room.operator.run(room.gugus.tasks.cancel(task.meta.name))
    ended(room, task, TASK_STATE_CANCELLED)
    room.wait_running("web", "n1")
    assert len(boots(room, "web")) == 1


def test_a_target_that_loses_its_power_half_way_changes_nothing(room: Room) -> None:
    room.create("web", demo_guests.vm_spec("n1", ha=False))
    wait_for_beats(room, "web")
    target = room.other_than("n1", room.acting)
    task = move(room, "web", target, SLOW)
    room.operator.wait("it to be under way", lambda: percent(room, task) > 5, END_SECONDS)
    room.lab.power_off(target)
    began = time.monotonic()
    ended(room, task, TASK_STATE_FAILED)
    assert time.monotonic() - began < END_SECONDS
    room.wait_running("web", "n1")
    assert len(boots(room, "web")) == 1
    room.assert_one_writer("web")


def test_a_guest_that_was_let_go_of_is_not_taken_back_by_an_agent_that_died(room: Room) -> None:
    room.create("web", demo_guests.vm_spec("n1", ha=False))
    count = wait_for_beats(room, "web")
    words, environment = room.lab.command("n1", ["sh", "-c", KILL_WHEN_HALTED])
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as killer:
        time.sleep(1.0)
        task = move(room, "web", "n2")
        assert killer.communicate(timeout=END_SECONDS)[0].strip() == "killed"
    ended(room, task, TASK_STATE_SUCCEEDED)
    room.wait_running("web", "n2")
    wait_for_beats(room, "web", count + 2)
    assert len(boots(room, "web")) == 1
    room.assert_one_writer("web")

    def gone() -> bool:
        return room.shell("n1", "pgrep", "-f", "guest=web,", check=False) == ""

    room.operator.wait("its process at the source to be gone", gone, END_SECONDS)
