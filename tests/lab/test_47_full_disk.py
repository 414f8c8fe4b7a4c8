"""A pool without room: what needs some fails and says so, the guest runs on where it was, and all goes well once there is room again."""

from collections.abc import Iterator

import pytest
from gugus.agent.v1.task_pb2 import TASK_STATE_FAILED
from gugus.agent.v1.volume_pb2 import DirPool, PoolSpec
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING
from gugus.cluster.v1.task_pb2 import Task

from lab import demo_guests
from tests.lab.conftest import Room

NODE, POOL, FOLDER = "n1", "small", "/srv/small"
SIZE_MIB = 96
ENDED_SECONDS = 90.0


@pytest.fixture
def small_pool(room: Room) -> Iterator[str]:
    """A pool of n1 on a file system of 96 MiB, with the image of the small virtual machine."""
    room.shell(NODE, "mkdir", "-p", FOLDER)
    room.shell(NODE, "mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m,mode=755", "small", FOLDER)
    spec = PoolSpec(name=POOL, dir=DirPool(path=f"{FOLDER}/pool"))
    room.operator.run(room.gugus.pools.create(spec, nodes=[NODE]))
    vm, _ = demo_guests.place_images(room.lab.plan)
    room.operator.do(room.gugus.images.import_(POOL, vm.name, str(vm.path)))
    yield vm.name
    room.shell(NODE, "rm", "-f", f"{FOLDER}/ballast")
    room.mend()
    room.operator.do(room.gugus.images.delete(POOL, vm.name))
    room.operator.run(room.gugus.pools.delete(POOL))
    room.shell(NODE, "umount", "--lazy", FOLDER)


def failed(room: Room, task: Task) -> str:
    """Return the reason of a task that fails."""

    def look() -> Task | None:
        found = room.operator.run(room.gugus.tasks.get(task.meta.name))
        assert found.state == TASK_STATE_FAILED or not found.HasField("ended_at"), "it did not fail"
        return found if found.state == TASK_STATE_FAILED else None

    return str(room.operator.wait(f"{task.kind} to fail", look, ENDED_SECONDS).error.message)


def test_a_full_pool_costs_no_guest(room: Room, small_pool: str) -> None:
    spec = demo_guests.vm_spec(NODE, ha=False, image=small_pool)
    spec.disks[0].pool = POOL
    room.create("web", spec)
    copy = room.wait_running("web", NODE)
    room.shell(NODE, "sh", "-c", f"cat /dev/zero > {FOLDER}/ballast", check=False)
    for wanted in (
        room.gugus.snapshots.create("web", "full", memory=True),
        room.gugus.guests.hibernate("web"),
    ):
        said = failed(room, room.operator.run(wanted))
        assert "room" in said or "space" in said, said
        assert room.operator.guest("web").status.phase == GUEST_PHASE_RUNNING
        assert room.wait_running("web", NODE) == copy
    room.shell(NODE, "rm", f"{FOLDER}/ballast")
    room.operator.do(room.gugus.snapshots.create("web", "room", memory=False))
    assert room.wait_running("web", NODE) == copy
    found = room.operator.run(room.gugus.pools.check(POOL))
    assert not found.orphans
    assert not found.missing
