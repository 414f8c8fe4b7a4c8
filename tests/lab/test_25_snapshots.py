"""Real guests go back to what they were: with memory and without, in a tree, and others are made from them."""

import time

import pytest
from gugus.agent.v1.snapshot_pb2 import SNAPSHOT_CONSISTENCY_MEMORY, SNAPSHOT_CONSISTENCY_PAUSED
from gugus.agent.v1.task_pb2 import TASK_STATE_FAILED, TASK_STATE_SUCCEEDED
from gugus.agent.v1.volume_pb2 import BtrfsPool, DirPool, PoolSpec
from gugus.cluster.v1.clone_pb2 import CLONE_MODE_FULL, CloneGuestRequest
from gugus.cluster.v1.guest_pb2 import POWER_OFF, GuestSpec

from common.errors import GugusError
from lab import demo_guests
from tests.lab.conftest import Room

BTRFS, SECOND = "btr", "second"
TYPED_SECONDS = 2.0
"""QEMU looks for somebody at a terminal once a second."""


def vm_spec() -> GuestSpec:
    spec = demo_guests.vm_spec("n1", ha=False)
    spec.disks.add(name="data", pool=demo_guests.POOL, size_bytes=16 << 20)
    return spec


def boots(room: Room, name: str) -> None:
    room.operator.wait(f"{name} to be ready", lambda: "ready" in room.operator.console_log(name), 60)


def types(room: Room, name: str, words: str, answer: str = "") -> None:
    """Type a line at a guest's serial console, and wait for what it is to answer."""
    node = room.operator.guest(name).status.node
    script = 'exec 3>"$(virsh ttyconsole "$1")"; stty -F "$(virsh ttyconsole "$1")" raw -echo; printf "%s\\n" "$2" >&3; sleep "$3"'
    room.shell(node, "sh", "-c", script, "sh", name, words, str(TYPED_SECONDS))
    if answer:
        room.operator.wait(f"{name} to say {answer}", lambda: answer in room.operator.console_log(name), 20)


def test_virtual_machine_goes_back_with_its_memory_and_in_a_tree(room: Room) -> None:
    room.create("web", vm_spec())
    boots(room, "web")
    do, snapshots = room.operator.do, room.gugus.snapshots
    types(room, "web", "echo one | dd of=/dev/vdb conv=fsync; word=al; echo $word'pha-set'", "alpha-set")
    do(snapshots.create("web", "disks"))
    task = do(snapshots.create("web", "memory", memory=True))
    assert "stood still" in task.log[-1].text
    taken = room.operator.run(snapshots.get("web", "memory"))
    assert taken.consistency == SNAPSHOT_CONSISTENCY_MEMORY
    assert taken.memory_bytes > 1 << 20
    types(room, "web", "echo two | dd of=/dev/vdb conv=fsync; word=be; echo $word'ta-set'", "beta-set")
    do(snapshots.create("web", "later"))

    do(snapshots.rollback("web", "memory"))
    room.wait_running("web", "n1")
    types(room, "web", "echo GOT-$word-$(head -c 3 /dev/vdb)", "GOT-al-one")

    do(snapshots.delete("web", "memory"))
    tree = [(one.name, one.parent) for one in room.operator.run(snapshots.list("web"))]
    assert tree == [("disks", ""), ("later", "disks")]
    do(snapshots.rollback("web", "later", start=True))
    boots(room, "web")
    types(room, "web", "echo DISK-$(head -c 3 /dev/vdb)", "DISK-two")
    do(room.gugus.guests.delete("web", force=True))
    assert not list((room.lab.plan.shared / "pool" / "gugus" / "disks").glob("web-*"))


def qemu(room: Room, name: str) -> str:
    """Return the process of a virtual machine, as its node numbers it."""
    words = ["pgrep", "-f", f"qemu-system.*guest={name},"]
    return room.shell("n1", *words).split()[0]


def test_snapshot_survives_the_agent_and_leaves_nothing_of_a_machine_that_dies(room: Room) -> None:
    room.create("web", vm_spec())
    boots(room, "web")
    snapshots, tasks = room.gugus.snapshots, room.gugus.tasks
    pid = qemu(room, "web")
    room.shell("n1", "kill", "-STOP", pid)  # it answers nobody: whatever is asked of it is under way
    task = room.operator.run(snapshots.create("web", "a"))
    room.operator.wait("its disks to be taken", lambda: _step(room, task.meta.name) == "take", 20)
    room.shell("n1", "systemctl", "kill", "--signal=KILL", "gugus-agent.service")
    time.sleep(1.0)
    room.shell("n1", "kill", "-CONT", pid)
    assert room.operator.run(tasks.wait(task)).state == TASK_STATE_SUCCEEDED
    assert [one.name for one in room.operator.run(snapshots.list("web"))] == ["a"]

    room.shell("n1", "kill", "-STOP", pid)
    task = room.operator.run(snapshots.create("web", "b"))
    room.operator.wait("its disks to be taken", lambda: _step(room, task.meta.name) == "take", 20)
    room.shell("n1", "kill", "-KILL", pid)
    ended = room.operator.run(tasks.wait(task))
    assert ended.state == TASK_STATE_FAILED
    assert ended.error.message
    assert [one.name for one in room.operator.run(snapshots.list("web"))] == ["a"]
    room.wait_running("web", "n1")
    disk = f"/srv/shared/pool/gugus/disks/{room.operator.guest('web').spec.disks[0].volume}.qcow2"
    listed = room.shell("n1", "qemu-img", "snapshot", "-U", "-l", disk)
    assert " a-" in listed
    assert " b-" not in listed
    room.operator.do(snapshots.create("web", "b"))


def _step(room: Room, task: str) -> str:
    return room.operator.run(room.gugus.tasks.get(task)).step


def test_clones_run_and_go_without_a_trace(room: Room) -> None:
    spec = vm_spec()
    spec.power = POWER_OFF
    room.create("base", spec)
    do, clone = room.operator.do, room.gugus.clones.clone
    do(room.gugus.clones.template("base"))
    with pytest.raises(GugusError, match="template"):
        do(room.gugus.guests.start("base"))
    room.made += ["linked", "full"]
    began_s = time.monotonic()
    do(clone(CloneGuestRequest(source="base", name="linked", start=True, preferred_node="n1")))
    assert time.monotonic() - began_s < 20
    do(clone(CloneGuestRequest(source="base", name="full", mode=CLONE_MODE_FULL, start=True)))
    for name in ("linked", "full"):
        room.wait_running(name)
        boots(room, name)
    with pytest.raises(GugusError):
        do(room.gugus.guests.delete("base"))
    works_on_disks_of_a_guest_that_runs(room, "linked")
    for name in ("linked", "full", "base"):
        do(room.gugus.guests.delete(name, force=True))
    assert not list((room.lab.plan.shared / "pool" / "gugus" / "disks").iterdir())


def works_on_disks_of_a_guest_that_runs(room: Room, name: str) -> None:
    """Flatten its root disk, and move the other one away and back, while it writes."""
    do, pools = room.operator.do, room.gugus.pools
    types(room, name, "echo three | dd of=/dev/vdb conv=fsync; echo wro'te'", "wrote")
    pid = room.wait_running(name, "n1").pid
    do(room.gugus.clones.flatten_disk(name, "disk0"))
    room.operator.run(pools.create(PoolSpec(name=SECOND, dir=DirPool(path="/srv/second")), nodes=["n1"]))
    for pool in (SECOND, demo_guests.POOL):
        do(room.gugus.clones.move_disk(name, "data", pool))
        types(room, name, f"echo {pool}-$(head -c 5 /dev/vdb)", f"{pool}-three")
    assert room.wait_running(name, "n1").pid == pid
    assert not room.operator.guest(name).spec.disks[0].base_volume
    room.operator.wait("the old volume to go", lambda: not room.operator.run(pools.volumes(SECOND)), 20)
    room.operator.run(pools.delete(SECOND))


def test_container_on_btrfs_goes_back_and_one_on_a_plain_folder_is_refused(room: Room) -> None:
    do, snapshots, pools = room.operator.do, room.gugus.snapshots, room.gugus.pools
    room.create("db", demo_guests.container_spec("n1", ha=False))
    with pytest.raises(GugusError) as caught:
        do(snapshots.create("db", "a"))
    assert caught.value.reason == "SNAPSHOT_UNSUPPORTED"
    assert demo_guests.POOL in caught.value.message
    do(room.gugus.guests.delete("db", force=True))

    room.operator.run(pools.create(PoolSpec(name=BTRFS, btrfs=BtrfsPool(path="/srv/btrfs/pool")), nodes=["n1"]))
    source = next(one for one in demo_guests.place_images(room.lab.plan) if one.name == demo_guests.CONTAINER_IMAGE)
    do(pools.import_image(BTRFS, source.name, str(source.path), sha256=source.sha256, node="n1"))
    spec = demo_guests.container_spec("n1", ha=False)
    spec.disks[0].pool = BTRFS
    guest = room.create("db", spec)
    room.wait_running("db", "n1")
    folder = f"/srv/btrfs/pool/gugus/filesystems/{guest.spec.disks[0].volume}"
    room.shell("n1", "sh", "-c", f"echo one > {folder}/word")
    do(snapshots.create("db", "a"))
    assert room.operator.run(snapshots.get("db", "a")).consistency == SNAPSHOT_CONSISTENCY_PAUSED
    room.wait_running("db", "n1")
    room.shell("n1", "sh", "-c", f"echo two > {folder}/word")
    do(snapshots.rollback("db", "a", start=True))
    room.wait_running("db", "n1")
    assert room.shell("n1", "cat", f"{folder}/word").strip() == "one"
    do(room.gugus.guests.delete("db", force=True))
    left = room.shell("n1", "btrfs", "subvolume", "list", "/srv/btrfs")
    assert guest.spec.disks[0].volume not in left
    do(pools.delete_image(BTRFS, source.name))
    room.operator.run(pools.delete(BTRFS))
