"""The ways in which a machine can go over: parallel connections, compression, limits, post-copy; and with firmware and a TPM of its own."""

from collections.abc import Iterator

import pytest
from gugus.agent.v1.machine_pb2 import FIRMWARE_KIND_UEFI
from gugus.agent.v1.migration_pb2 import (
    MIGRATION_COMPRESSION_XBZRLE,
    MIGRATION_TIMEOUT_ACTION_POST_COPY,
    MIGRATION_TIMEOUT_ACTION_SUSPEND,
    MigrationPolicy,
)
from gugus.agent.v1.task_pb2 import TASK_STATE_FAILED, TASK_STATE_SUCCEEDED
from gugus.agent.v1.volume_pb2 import DirPool, PoolSpec
from gugus.cluster.v1.guest_pb2 import POWER_OFF, DiskSpec
from gugus.cluster.v1.task_pb2 import Task

from lab import demo_guests
from tests.lab.conftest import Room
from tests.lab.test_26_migration import MIB, boots, ended, move, percent, wait_for_beats

USERFAULTFD = "vm.unprivileged_userfaultfd"
"""A setting of the machine's kernel, which all nodes share."""

POOL, POOL_PATH = "local27", "/var/lib/gugus-local27"
SECONDS = 60.0
POST_COPY = MigrationPolicy(
    post_copy=True, bandwidth_bytes_per_s=2 * MIB, timeout_s=5, timeout_action=MIGRATION_TIMEOUT_ACTION_POST_COPY
)
"""After some seconds the guest goes over, and fetches what it lacks."""


@pytest.fixture
def userfaultfd(room: Room) -> Iterator[None]:
    """Let QEMU fetch memory on demand, as an administrator does who wants post-copy."""
    before = room.shell("n1", "sysctl", "--values", USERFAULTFD).strip()
    room.shell("n1", "sysctl", "--quiet", "--write", f"{USERFAULTFD}=1")
    yield
    room.shell("n1", "sysctl", "--quiet", "--write", f"{USERFAULTFD}={before}")


def states(room: Room, *nodes: str) -> list[str]:
    """What libvirt says of `web` on nodes; "" where it is not."""
    words = ("virsh", "-c", "qemu:///system", "domstate", "web", "--reason")
    return [room.shell(node, *words, check=False).strip() for node in nodes]


def owner_of_its_disk(room: Room, node: str) -> str:
    """Whose the disk of `web` is, once no libvirt has any more to do with it."""
    room.shell(node, "sleep", "2")
    (disk,) = room.operator.guest("web").spec.disks
    return room.shell(node, "stat", "--format=%U", f"/srv/shared/pool/gugus/disks/{disk.volume}.qcow2").strip()


def goes(room: Room, target: str, policy: MigrationPolicy) -> Task:
    """Move `web`, which goes on there without a boot."""
    count = room.beats("web")
    task = ended(room, move(room, "web", target, policy), TASK_STATE_SUCCEEDED)
    room.wait_running("web", target)
    wait_for_beats(room, "web", count)
    assert len(boots(room, "web")) == 1
    return task


def fetch_at(room: Room, source: str, mib_per_s: int) -> None:
    """Let what a guest lacks after its switch travel no faster than that, which no policy does."""
    words = ("virsh", "-c", "qemu:///system", "migrate-setspeed", "web", "--bandwidth", str(mib_per_s), "--postcopy")
    room.shell(source, *words)


def fetches(room: Room, source: str, target: str) -> Task:
    """Begin a move of `web` by post-copy, and wait until its memory is in two places, where it stays for a while."""
    task = move(room, "web", target, POST_COPY)
    room.operator.wait("it to be under way", lambda: percent(room, task) > 0, SECONDS)
    fetch_at(room, source, 2)
    torn = ["paused (post-copy)", "running (post-copy)"]
    room.operator.wait("it to run there", lambda: states(room, source, target) == torn, SECONDS)
    return task


def test_every_way_leads_there_and_the_guest_never_boots(room: Room) -> None:
    room.create("web", demo_guests.vm_spec("n1", ha=False))
    wait_for_beats(room, "web")
    goes(room, "n2", MigrationPolicy(channels=16))  # by one connection each: their order must not be lost
    goes(room, "n1", MigrationPolicy(channels=4, compression=MIGRATION_COMPRESSION_XBZRLE, downtime_limit_ms=1000))
    late = MigrationPolicy(bandwidth_bytes_per_s=2 * MIB, timeout_s=2)
    failed = ended(room, move(room, "web", "n2", late), TASK_STATE_FAILED)
    assert "did not get over within 2 s; it stays" in failed.error.message
    late.bandwidth_bytes_per_s, late.timeout_action = 8 * MIB, MIGRATION_TIMEOUT_ACTION_SUSPEND
    held = goes(room, "n2", late)
    assert "it stood still for" in held.log[-1].text
    refused = ended(room, move(room, "web", "n1", MigrationPolicy(post_copy=True)), TASK_STATE_FAILED)
    assert f"`sysctl {USERFAULTFD}=1`" in refused.error.message


def test_post_copy_goes_on_when_it_is_cancelled_and_starts_the_guest_anew_when_it_breaks(
    room: Room, userfaultfd: None
) -> None:
    room.create("web", demo_guests.vm_spec("n1", ha=False))
    wait_for_beats(room, "web")
    task = fetches(room, "n1", "n2")
    room.operator.run(room.gugus.tasks.cancel(task.meta.name))
    fetch_at(room, "n1", 1000)
    ended(room, task, TASK_STATE_SUCCEEDED)
    room.wait_running("web", "n2")
    assert len(boots(room, "web")) == 1

    task = fetches(room, "n2", "n1")
    room.shell("n1", "systemctl", "kill", "--signal=KILL", "gugus-agent.service")
    lost = ended(room, task, TASK_STATE_FAILED)
    assert "was lost on its way" in lost.error.message
    room.wait_running("web", "n2")
    room.operator.wait("it to have booted again", lambda: len(boots(room, "web")) == 2, SECONDS)
    assert states(room, "n1") == [""]
    room.assert_one_writer("web")

    room.operator.do(room.gugus.guests.suspend("web"))
    ended(room, move(room, "web", "n1", MigrationPolicy(post_copy=True)), TASK_STATE_SUCCEEDED)
    assert states(room, "n1", "n2") == ["paused (user)", ""]
    assert owner_of_its_disk(room, "n1") == "libvirt-qemu", (
        "it was not opened yet: the other host must not take it away"
    )
    room.operator.do(room.gugus.guests.resume("web"))
    room.wait_running("web", "n1")


@pytest.fixture
def pool(room: Room) -> Iterator[str]:
    """A pool that every node has for itself."""
    room.operator.run(room.gugus.pools.create(PoolSpec(name=POOL, dir=DirPool(path=POOL_PATH))))
    yield POOL
    demo_guests.remove_guests(room.operator, tuple(room.made))
    room.operator.run(room.gugus.pools.delete(POOL))


def test_uefi_variables_and_a_tpm_go_along_running_and_stopped(room: Room, pool: str) -> None:
    spec = demo_guests.vm_spec("n1", ha=False)
    spec.memory_bytes = 256 * MIB
    spec.disks[0].CopyFrom(DiskSpec(pool=pool, size_bytes=16 * MIB))
    spec.virtual_machine.firmware.kind, spec.virtual_machine.tpm = FIRMWARE_KIND_UEFI, True
    spec.power = POWER_OFF
    guest = room.create("web", spec)
    for node in ("n2", "n1"):  # it never ran: no node has seen a grant of it
        ended(room, move(room, "web", node), TASK_STATE_SUCCEEDED)
    room.operator.do(room.gugus.guests.start("web"))
    folder = f"{POOL_PATH}/gugus/companions/{guest.spec.disks[0].volume}"
    state, variables = f"{folder}/tpm/tpm2/tpm2-00.permall", f"{folder}/uefi-variables.fd"
    room.operator.wait("the firmware to speak", lambda: "BdsDxe" in room.operator.console_log("web"), SECONDS)

    ended(room, move(room, "web", "n2"), TASK_STATE_SUCCEEDED)
    room.wait_running("web", "n2")
    tidy(room, "n1", guest.spec.disks[0].volume)
    where = f"/var/lib/libvirt/swtpm/{guest.meta.uid}"
    assert where in room.shell("n2", "cat", "/proc/mounts"), "what its TPM writes from now on is beside its disk"
    room.operator.do(room.gugus.guests.stop("web", timeout_s=1))
    kept = room.shell("n2", "sha256sum", state, variables)

    ended(room, move(room, "web", "n1"), TASK_STATE_SUCCEEDED)
    assert room.shell("n1", "sha256sum", state, variables) == kept
    tidy(room, "n2", guest.spec.disks[0].volume)
    room.operator.do(room.gugus.guests.start("web"))
    room.operator.wait("the firmware to speak", lambda: "BdsDxe" in room.operator.console_log("web"), SECONDS)
    room.operator.do(room.gugus.guests.delete("web", force=True))
    for node in ("n1", "n2"):
        assert guest.meta.uid not in room.shell(node, "ls", "/var/lib/libvirt/swtpm"), "secrets of a guest that is gone"


def tidy(room: Room, node: str, volume: str) -> None:
    """Wait until a node that a guest left has nothing of its volume any more: that is done behind the migration's task."""
    find = ["find", POOL_PATH, "-name", f"{volume}*"]
    room.operator.wait(f"{node} to be tidy", lambda: room.shell(node, *find) == "", SECONDS)
