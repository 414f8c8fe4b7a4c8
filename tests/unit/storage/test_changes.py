"""Changes of disks in a pool: growing, linked and full copies, bases, snapshots, and what a running guest forbids."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gugus.agent.v1 import volume_pb2

from agent.storage import qemu_img
from agent.storage.dir import DirPool
from agent.storage.pool import VolumeRequest
from common import abilities
from tests.unit.storage.helpers import (
    FILESYSTEM,
    MIB,
    QCOW2,
    RAW,
    copying,
    dir_spec,
    disk,
    failure,
    holds,
    leftovers,
    nothing,
    tree,
    write,
)

pytestmark = [
    pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@pytest.fixture
async def pool(tmp_path: Path) -> DirPool:
    made = DirPool(dir_spec(tmp_path / "pool"))
    await made.activate()
    return made


@contextmanager
def opened(path: Path, fmt: str = "qcow2") -> Iterator[None]:
    """Hold an image open for writing, as a running guest does."""
    argv = ["qemu-io", "-f", fmt, "-c", "sleep 30000", str(path)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 10
        while f":{path.stat().st_ino} " not in Path("/proc/locks").read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        try:
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("fmt", [QCOW2, RAW])
async def test_a_disk_grows_and_never_shrinks(pool: DirPool, fmt: int) -> None:
    await disk(pool, fmt=fmt)
    assert (await pool.resize_volume("web", 16 * MIB)).size_bytes == 16 * MIB
    assert (await pool.resize_volume("web", 16 * MIB)).size_bytes == 16 * MIB
    error = await failure(pool.resize_volume("web", 8 * MIB))
    assert (error.field, error.reason) == ("size_bytes", "INVALID_ARGUMENT")
    grown = VolumeRequest(name="web", format=fmt, size_bytes=16 * MIB)  # type: ignore[arg-type]
    assert (await pool.create_volume(grown)).size_bytes == 16 * MIB


async def test_a_running_guests_disk_is_left_alone(pool: DirPool) -> None:
    path = await disk(pool)
    await pool.snapshot_volume("web", "before")
    with opened(path):
        calls = (
            pool.resize_volume("web", 16 * MIB),
            pool.snapshot_volume("web", "now"),
            pool.revert_volume("web", "before"),
            pool.freeze_volume("web"),
            pool.rename_volume("web", "other"),
            pool.copy_volume(copying(pool, "copy", "web"), nothing),
        )
        for call in calls:
            assert (await failure(call)).reason == "VOLUME_BUSY"
        copied = await pool.copy_volume(copying(pool, "copy", "web", source_snapshot="before"), nothing)
        assert (copied.format, copied.backing) == (QCOW2, "")
    assert {volume.name for volume in await pool.list_volumes()} == {"web", "copy"}


async def test_what_a_guest_did_itself_is_written_down(pool: DirPool) -> None:
    path = await disk(pool)
    assert (await failure(pool.resize_volume("web", 16 * MIB, done_by_guest=True))).reason == "NOT_RESIZED"
    await qemu_img.resize(path, "qcow2", 16 * MIB)
    assert (await pool.resize_volume("web", 16 * MIB, done_by_guest=True)).size_bytes == 16 * MIB


async def test_linked_clones_keep_their_base_until_they_are_flat(pool: DirPool) -> None:
    path = await disk(pool, "template")
    write(path, 7)
    unfrozen = await failure(pool.create_volume(VolumeRequest(name="one", format=QCOW2, source="template")))
    assert unfrozen.field == "source"
    assert (await pool.freeze_volume("template")).kind == volume_pb2.VOLUME_KIND_BASE
    assert (await pool.freeze_volume("template")).kind == volume_pb2.VOLUME_KIND_BASE
    for name in ("one", "two"):
        assert (await pool.create_volume(VolumeRequest(name=name, format=QCOW2, source="template"))).backing
    error = await failure(pool.delete_volume("template"))
    assert error.reason == "VOLUME_IN_USE"
    assert error.metadata["volumes"] == "one,two"
    for call in (
        pool.resize_volume("template", 16 * MIB),
        pool.snapshot_volume("template", "x"),
        pool.revert_volume("template", "x"),
    ):
        assert (await failure(call)).reason in ("VOLUME_IS_BASE", "SNAPSHOT_UNSUPPORTED")
    assert (await failure(pool.flatten_volume("one", nothing, done_by_guest=True))).reason == "NOT_FLAT"
    flat = await pool.flatten_volume("one", nothing)
    assert flat.backing == ""
    await pool.delete_volume("two")
    await pool.delete_volume("template")
    assert holds(await pool.path_of("one"), 7)
    assert (await pool.create_volume(VolumeRequest(name="one", format=QCOW2, source="template"))).backing == ""


async def test_a_clone_with_snapshots_is_not_flattened(pool: DirPool) -> None:
    write(await disk(pool, "template"), 7)
    (await pool.companion("template")).mkdir()
    await pool.freeze_volume("template")
    await pool.create_volume(VolumeRequest(name="one", format=QCOW2, source="template"))
    assert (await pool.companion("one")).is_dir()
    await pool.snapshot_volume("one", "before")
    assert (await failure(pool.flatten_volume("one", nothing))).reason == "VOLUME_HAS_SNAPSHOTS"
    await pool.delete_snapshot("one", "before")
    assert (await pool.flatten_volume("one", nothing)).backing == ""


async def test_a_full_copy_is_independent_and_may_have_another_format_and_pool(pool: DirPool, tmp_path: Path) -> None:
    other = DirPool(dir_spec(tmp_path / "other", name="other"))
    await other.activate()
    write(await disk(pool), 9)
    told: list[int] = []
    copy = await other.copy_volume(copying(pool, "web", "web", format=RAW), lambda percent, _: told.append(percent))
    assert (copy.format, copy.pool, copy.size_bytes) == (RAW, "other", 8 * MIB)
    assert told == sorted(told)
    assert told[-1] == 100
    assert holds(await other.path_of("web"), 9, "raw")
    assert await other.copy_volume(copying(pool, "web", "web", format=RAW), nothing) == copy
    assert (await failure(other.copy_volume(copying(pool, "web", "web"), nothing))).reason == "VOLUME_ALREADY_EXISTS"
    image = await pool.copy_volume(copying(pool, "image", "web", as_image=True), nothing)
    assert image.kind == volume_pb2.VOLUME_KIND_IMAGE
    await pool.delete_volume("web")
    assert (await pool.create_volume(VolumeRequest(name="new", format=QCOW2, source="image"))).backing == "image"


async def test_a_copy_keeps_to_its_rate(pool: DirPool, tmp_path: Path) -> None:
    other = DirPool(dir_spec(tmp_path / "other", name="other"))
    await other.activate()
    with (await disk(pool, fmt=RAW)).open("r+b") as file:
        file.write(os.urandom(8 * MIB))
    (await tree(pool, "db", "x")).joinpath("big").write_bytes(os.urandom(8 * MIB))
    for name in ("web", "db"):
        slow = copying(pool, f"{name}-slow", name, bytes_per_s=64 << 10)
        limited = asyncio.create_task(other.copy_volume(slow, nothing))
        await other.copy_volume(copying(pool, f"{name}-fast", name), nothing)
        assert not limited.done(), "that takes it two minutes"
        limited.cancel()
        with pytest.raises(asyncio.CancelledError):
            await limited
        await other.copy_volume(copying(pool, f"{name}-whole", name, bytes_per_s=32 * MIB), nothing)
    copy = await other.path_of("db-whole")
    assert (copy / "big").read_bytes() == (await pool.path_of("db") / "big").read_bytes()
    assert (copy / "etc/version").read_text() == "x"


async def test_a_copy_that_is_cancelled_leaves_nothing(pool: DirPool, tmp_path: Path) -> None:
    path = await disk(pool, size=512 * MIB, fmt=RAW)
    with path.open("r+b") as file:
        for _ in range(64):
            file.write(os.urandom(MIB))
    task = asyncio.create_task(pool.copy_volume(copying(pool, "copy", "web", format=QCOW2), nothing))
    await asyncio.sleep(0.03)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert leftovers(tmp_path / "pool") == ["disks/web.raw", "volumes/web.json"]


async def test_snapshots_of_a_disk_come_back_with_its_companion(pool: DirPool) -> None:
    path = await disk(pool)
    companion = await pool.companion("web")
    companion.mkdir()
    (companion / "nvram").write_text("old")
    write(path, 1)
    made = await pool.snapshot_volume("web", "one")
    assert made.name == "one"
    assert await pool.snapshot_volume("web", "one") == made
    write(path, 2)
    (companion / "nvram").write_text("new")
    await pool.snapshot_volume("web", "two")
    assert [snapshot.name for snapshot in await pool.snapshots_of("web")] == ["one", "two"]
    assert (await pool.get_volume("web")).snapshot_count == 2
    await pool.revert_volume("web", "one")
    assert holds(path, 1)
    assert (companion / "nvram").read_text() == "old"
    await pool.delete_snapshot("web", "one")
    await pool.delete_snapshot("web", "one")
    await pool.revert_volume("web", "two")
    assert (companion / "nvram").read_text() == "new"
    missing = await failure(pool.revert_volume("web", "one"))
    assert missing.reason == "SNAPSHOT_NOT_FOUND"
    copy = await pool.copy_volume(copying(pool, "copy", "web", source_snapshot="two"), nothing)
    assert copy.snapshot_count == 0
    assert ((await pool.companion("copy")) / "nvram").read_text() == "new"
    await pool.delete_volume("web")
    await pool.delete_volume("copy")
    assert leftovers(Path(pool.spec.dir.path)) == []


async def test_a_snapshot_brings_back_the_size(pool: DirPool) -> None:
    await disk(pool)
    await pool.snapshot_volume("web", "small")
    await pool.resize_volume("web", 32 * MIB)
    assert (await pool.revert_volume("web", "small")).size_bytes == 8 * MIB


async def test_what_cannot_be_snapshotted_says_so_before_anything_starts(pool: DirPool) -> None:
    await disk(pool, "raw", fmt=RAW)
    root = await tree(pool)
    status = await pool.status()
    for name, fmt in (("raw", RAW), ("db", FILESYSTEM)):
        error = await failure(pool.snapshot_volume(name, "one"))
        assert error.reason == "SNAPSHOT_UNSUPPORTED"
        why = abilities.why_not(status, fmt, volume_pb2.POOL_ABILITY_SNAPSHOT)
        assert why
        assert why.split(": ", 1)[1] in error.message
        assert (await pool.snapshot_obstacle(name)) in error.message
    assert not abilities.why_not(status, QCOW2, volume_pb2.POOL_ABILITY_SNAPSHOT)
    copy = await pool.copy_volume(copying(pool, "copy", "db"), nothing)
    assert copy.format == FILESYSTEM
    image = await pool.copy_volume(copying(pool, "image", "db", as_image=True), nothing)
    assert (image.format, image.kind) == (volume_pb2.VOLUME_FORMAT_ARCHIVE, volume_pb2.VOLUME_KIND_IMAGE)
    await pool.create_volume(VolumeRequest(name="db-2", format=FILESYSTEM, source="image", privileged=True))
    assert ((await pool.path_of("db-2")) / "etc/version").read_text() == "one"
    (root / "etc/version").write_text("two")
    assert ((await pool.path_of("copy")) / "etc/version").read_text() == "one"


async def test_a_volume_for_a_migration_is_the_same_or_refused(pool: DirPool) -> None:
    request = VolumeRequest(name="web", format=QCOW2, size_bytes=8 * MIB)
    made = await pool.ensure_volume(request)
    assert await pool.ensure_volume(request) == made
    larger = VolumeRequest(name="web", format=QCOW2, size_bytes=9 * MIB)
    assert (await failure(pool.ensure_volume(larger))).reason == "VOLUME_ALREADY_EXISTS"


async def test_a_renamed_volume_keeps_all_it_has(pool: DirPool) -> None:
    write(await disk(pool), 3)
    (await pool.companion("web")).mkdir()
    assert (await pool.rename_volume("web", "shop")).name == "shop"
    assert (await pool.rename_volume("web", "shop")).name == "shop"
    assert holds(await pool.path_of("shop"), 3)
    assert (await pool.companion("shop")).is_dir()
    await disk(pool, "taken")
    assert (await failure(pool.rename_volume("shop", "taken"))).reason == "VOLUME_ALREADY_EXISTS"
    assert (await failure(pool.rename_volume("web", "nothing"))).reason == "VOLUME_NOT_FOUND"


async def test_an_orphan_is_deleted_only_when_it_is_old_and_closed(pool: DirPool) -> None:
    path = await disk(pool)
    assert (await failure(pool.delete_orphan("web", 60))).reason == "VOLUME_TOO_YOUNG"
    await asyncio.sleep(1.1)
    with opened(path):
        assert (await failure(pool.delete_orphan("web", 1))).reason == "VOLUME_BUSY"
    await pool.delete_orphan("web", 1)
    await pool.delete_orphan("web", 1)
    assert await pool.list_volumes() == []


COPIES = """
import asyncio, sys
from agent.storage.long_command import run_long
asyncio.run(run_long(["sleep", "8761"], lambda _: None))
"""


def test_what_copies_dies_with_the_agent() -> None:
    agent = subprocess.Popen([sys.executable, "-c", COPIES])
    wait_for(lambda: Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split())
    copier = Path("/proc", Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()[0], "cmdline")
    wait_for(lambda: copier.read_bytes() == b"sleep\x008761\0")
    agent.kill()
    agent.wait()
    wait_for(lambda: not copier.exists() or not copier.read_bytes())


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


KILLED = """
import asyncio, os, sys
from pathlib import Path
from agent.storage import layout
from agent.storage.dir import DirPool
from tests.unit.storage.helpers import dir_spec, disk

def dies(*args): os.kill(os.getpid(), 9)

async def main():
    pool = DirPool(dir_spec(Path(sys.argv[1])))
    await pool.activate()
    layout.Layout.write = dies
    await disk(pool)

asyncio.run(main())
"""


async def test_an_agent_killed_in_the_middle_of_a_commit_leaves_nothing(tmp_path: Path) -> None:
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, str(tmp_path / "pool"))
    assert await agent.wait() == -9
    assert "disks/web.qcow2" in leftovers(tmp_path / "pool")
    pool = DirPool(dir_spec(tmp_path / "pool"))
    await pool.activate()
    assert leftovers(tmp_path / "pool") == []
    assert await pool.list_volumes() == []


COPYING = """
import asyncio, sys
from pathlib import Path
from agent.storage.dir import DirPool
from tests.unit.storage.helpers import copying, dir_spec, nothing

async def main():
    pool = DirPool(dir_spec(Path(sys.argv[1])))
    await pool.activate()
    if sys.argv[2] == "copy":
        await pool.copy_volume(copying(pool, "copy", "web"), nothing)
    else:
        await pool.import_volume("image", sys.argv[3], "", nothing)

asyncio.run(main())
"""


@pytest.mark.parametrize("work", ["copy", "import"])
async def test_an_agent_killed_while_it_copies_leaves_nothing(pool: DirPool, tmp_path: Path, work: str) -> None:
    path = await disk(pool, fmt=RAW, size=256 * MIB)
    foreign = tmp_path / "disk.vmdk"
    await asyncio.to_thread(fill, path)
    await qemu_img.convert(path, "raw", foreign, "vmdk", lambda _: None)
    top = tmp_path / "pool"
    before = leftovers(top)
    argv = (sys.executable, "-c", COPYING, str(top), work, str(foreign))
    agent = await asyncio.create_subprocess_exec(*argv)
    await asyncio.to_thread(wait_for, lambda: len(leftovers(top)) > len(before))
    agent.kill()
    await agent.wait()
    again = DirPool(pool.spec)
    await again.activate()
    assert leftovers(top) == before
    assert [volume.name for volume in await again.list_volumes()] == ["web"]


def fill(path: Path) -> None:
    with path.open("r+b") as file:
        for _ in range(96):
            file.write(os.urandom(MIB))
