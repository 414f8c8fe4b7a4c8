"""A container in depth: limits, changes while it runs, disks, programs, files, holding, and an application from an OCI image."""

import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_PAUSED, GUEST_PHASE_RUNNING, DiskSpec, Guest, GuestSpec

from agent.compute.idmap import IDMAP
from client import access
from lab import demo_guests
from tests.lab.conftest import Room
from tests.lab.test_10_guests import cgroup_value
from tests.lab.test_22_hardware import change, pending

SECONDS = 30.0
MIB = 1 << 20
APPLICATION = "app"


def run(room: Room, *command: str, input: bytes = b"") -> tuple[int, str]:
    """Run a program in the container; return its exit code and output."""
    code, out, err = room.operator.run(access.run(room.gugus.access, "db", command, input=input))
    return code, (out + err).decode()


def altered(room: Room, alter: Callable[[GuestSpec], None]) -> Guest:
    return change(room, "db", alter)


async def content(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def carry(room: Room) -> None:
    placed = await room.gugus.access.push("db", "/srv/data/file", content(b"there and back"), mode=0o600, uid=7)
    assert (placed.size_bytes, placed.mode, placed.uid) == (14, 0o600, 7)
    async with aclosing(room.gugus.access.pull("db", "/srv/data/file")) as pieces:
        assert b"".join([piece async for piece in pieces]) == b"there and back"


def test_a_container_changes_while_it_runs(room: Room) -> None:
    room.create("db", demo_guests.container_spec("n1", ha=False))
    pid = room.wait_running("db", "n1").pid
    first, size = map(int, Path(f"/proc/{pid}/uid_map").read_text().split()[1:])
    assert first > IDMAP.base, room.operator.guest("db").status.reason  # a range of its own
    assert size == IDMAP.size

    def alter(spec: GuestSpec) -> None:
        spec.memory_bytes, spec.cpu_limit_milli = 96 * MIB, 250
        spec.resources.pids, spec.resources.cpu_weight = 123, 200
        spec.nics[0].settings.rate_bytes_per_s = 1_000_000
        spec.disks.append(DiskSpec(name="data", pool=demo_guests.POOL))
        spec.disks[1].settings.mount_path = "/srv/data"
        spec.container.environment["WHO"] = "me"

    guest = altered(room, alter)
    assert set(pending(guest)) == {"container.environment[WHO]"}
    assert cgroup_value(pid, "memory", "memory.limit_in_bytes", "memory.max") == str(96 * MIB)
    assert cgroup_value(pid, "cpu", "cpu.cfs_quota_us", "cpu.max") == "25000"
    assert cgroup_value(pid, "pids", "pids.max", "pids.max") == "123"
    assert "tbf" in room.shell("n1", "tc", "qdisc", "show", "dev", f"gv{guest.spec.id}-0")

    assert run(room, "sh", "-c", "read a; echo $a; exit 3", input=b"hello\n") == (3, "hello\n")
    room.operator.run(carry(room))
    volume = guest.spec.disks[1].volume
    owner = (room.lab.plan.shared / "pool/gugus/filesystems" / volume / "file").stat().st_uid
    assert owner == IDMAP.base + 7

    room.operator.do(room.gugus.guests.suspend("db"))
    room.operator.wait(
        "it to stand still", lambda: room.operator.guest("db").status.phase == GUEST_PHASE_PAUSED, SECONDS
    )
    room.operator.do(room.gugus.guests.resume("db"))
    room.operator.wait("it to go on", lambda: room.operator.guest("db").status.phase == GUEST_PHASE_RUNNING, SECONDS)
    room.operator.do(room.gugus.guests.stop("db", force=True))
    room.operator.do(room.gugus.guests.start("db"))
    pid = room.wait_running("db", "n1").pid
    assert b"WHO=me" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert run(room, "cat", "/srv/data/file") == (0, "there and back")
    assert not pending(room.operator.guest("db"))


@pytest.mark.skipif(not shutil.which("umoci"), reason="umoci makes the image")
def test_an_application_runs_from_an_oci_image(room: Room) -> None:
    folder = room.lab.plan.shared / "images"
    files, layout = folder / "app-files", folder / "app-oci"
    for old in (files, layout):
        shutil.rmtree(old, ignore_errors=True)
    files.mkdir()
    shutil.copy(str(shutil.which("busybox")), files / "busybox")
    for name in ("sh", "sleep", "cat"):
        (files / name).symlink_to("busybox")
    tag = f"{layout}:{APPLICATION}"
    command = [
        "/bin/sh",
        "-c",
        'trap "exit 0" TERM; echo "$GREETING from $(cat /proc/1/comm)"; while :; do sleep 0.2; done',
    ]
    settings = [word for argument in command for word in ("--config.cmd", argument)]
    for words in (
        ["init", "--layout", str(layout)],
        ["new", "--image", tag],
        ["insert", "--image", tag, str(files), "/bin"],
        ["config", "--image", tag, *settings, "--config.env", "GREETING=hello"],
    ):
        subprocess.run(["umoci", *words], check=True, capture_output=True, timeout=60)
    source = f"oci:/srv/shared/images/app-oci:{APPLICATION}"
    images = {image.volume.name for image in room.operator.run(room.gugus.pools.images(pool=demo_guests.POOL))}
    if APPLICATION not in images:
        room.operator.do(room.gugus.pools.import_image(demo_guests.POOL, APPLICATION, source))
    room.create("app", demo_guests.container_spec("n1", ha=False, image=APPLICATION))
    room.wait_running("app", "n1")
    room.operator.wait("its greeting", lambda: "hello from sh" in room.operator.console_log("app"), SECONDS)
    room.operator.do(room.gugus.guests.stop("app"))
    room.operator.wait("it to end", lambda: not room.judge.now.of("app"), SECONDS)
