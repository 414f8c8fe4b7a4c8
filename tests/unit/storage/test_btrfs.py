"""A btrfs pool, on a real btrfs file system in a file: snapshots, clones at once, limits, and nothing left behind."""

import asyncio
import errno
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from gugus.agent.v1 import volume_pb2

from agent.storage import registry, subvolumes
from agent.storage.btrfs import BtrfsPool
from agent.storage.pool import VolumeRequest
from common import abilities
from tests.unit.storage.helpers import (
    FILESYSTEM,
    MIB,
    QCOW2,
    command,
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

SIZE = 512 * MIB


def _why_not() -> str:
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in ("mkfs.btrfs", "btrfs", "qemu-img") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} is not installed"
    return "" if "btrfs" in Path("/proc/filesystems").read_text() else "this kernel has no btrfs"


pytestmark = pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "-")


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A btrfs file system of its own; unmounted by its own path."""
    top = tmp_path_factory.mktemp("btrfs")
    image, place = top / "image", top / "mnt"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZE)
    command("mkfs.btrfs", "-q", "-m", "single", image)
    done = subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"btrfs cannot be mounted here: {done.stderr.strip()}")
    yield place
    command("umount", place)


def spec(path: Path, name: str = "fast") -> volume_pb2.PoolSpec:
    return volume_pb2.PoolSpec(name=name, btrfs=volume_pb2.BtrfsPool(path=str(path)))


@pytest.fixture
async def pool(mounted: Path, request: pytest.FixtureRequest) -> AsyncIterator[BtrfsPool]:
    path = mounted / str(abs(hash(request.node.name)))
    made = registry.create(spec(path))
    assert isinstance(made, BtrfsPool)
    await made.activate()
    yield made
    for volume in sorted(await made.list_volumes(), key=lambda volume: not volume.backing):
        await made.delete_volume(volume.name)
    assert leftovers(path) == []
    assert [found for name in ("work", "snapshots") for found in (path / "gugus" / name).glob("*/*")] == []


async def test_only_btrfs_will_do(tmp_path: Path) -> None:
    error = await failure(registry.create(spec(tmp_path / "pool")).activate())
    assert error.reason == "NOT_BTRFS"
    assert not (tmp_path / "pool").exists()


async def test_a_root_file_system_goes_back_to_any_snapshot(pool: BtrfsPool) -> None:
    root = await tree(pool)
    assert root.stat().st_ino == 256
    await pool.snapshot_volume("db", "one")
    (root / "etc/version").write_text("two")
    await pool.snapshot_volume("db", "two")
    (root / "etc/version").write_text("three")
    await pool.revert_volume("db", "one")
    assert (root / "etc/version").read_text() == "one"
    await pool.revert_volume("db", "two")
    assert (root / "etc/version").read_text() == "two"
    assert [snapshot.name for snapshot in await pool.snapshots_of("db")] == ["one", "two"]
    await pool.delete_snapshot("db", "one")
    assert (await failure(pool.revert_volume("db", "one"))).reason == "SNAPSHOT_NOT_FOUND"
    assert (await failure(pool.rename_volume("db", "other"))).reason == "VOLUME_HAS_SNAPSHOTS"


async def test_clones_are_made_at_once_and_are_independent(pool: BtrfsPool) -> None:
    root = await tree(pool, "template")
    await pool.freeze_volume("template")
    with pytest.raises(OSError, match="Read-only"):
        (root / "etc/version").write_text("never")
    clone = await pool.create_volume(VolumeRequest(name="db", format=FILESYSTEM, source="template", privileged=True))
    assert clone.backing == ""
    await pool.delete_volume("template")
    path = await pool.path_of("db")
    (path / "etc/version").write_text("mine")
    await pool.snapshot_volume("db", "one")
    (path / "etc/version").write_text("later")
    await pool.copy_volume(copying(pool, "copy", "db", source_snapshot="one"), nothing)
    assert ((await pool.path_of("copy")) / "etc/version").read_text() == "mine"
    ((await pool.path_of("copy")) / "etc/version").write_text("writable")


async def test_a_size_is_a_limit_that_can_grow(pool: BtrfsPool) -> None:
    root = await tree(pool, size=16 * MIB)
    assert (await pool.get_volume("db")).size_bytes == 16 * MIB

    def fill() -> None:
        with (root / "big").open("wb") as file:
            for _ in range(24):
                file.write(os.urandom(MIB))
                file.flush()
                os.fsync(file.fileno())

    with pytest.raises(OSError, match="quota"):
        await asyncio.to_thread(fill)
    assert (await pool.resize_volume("db", 64 * MIB)).size_bytes == 64 * MIB
    await asyncio.to_thread(fill)
    (root / "big").unlink()


async def test_quota_groups_of_what_is_gone_are_cleared_and_that_may_fail(
    pool: BtrfsPool, mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels before 6.12 keep the group of every subvolume that ever was; newer ones refuse while they are not done with it."""
    asked: list[tuple[str, ...]] = []
    run = subvolumes._btrfs

    def btrfs(*words: str) -> None:
        asked.append(words)
        if words[:2] == ("qgroup", "clear-stale"):
            raise OSError(errno.EIO, "btrfs qgroup: ERROR: quotas not enabled")
        run(*words)

    monkeypatch.setattr(subvolumes, "_btrfs", btrfs)
    root = await tree(pool, size=16 * MIB)
    await pool.delete_volume("db")
    assert not root.exists()
    names = [words[:2] for words in asked]
    assert names.index(("subvolume", "delete")) < names.index(("qgroup", "clear-stale"))


async def test_disks_are_files_there_as_ever(pool: BtrfsPool) -> None:
    path = await disk(pool)
    write(path, 5)
    await pool.snapshot_volume("web", "one")
    write(path, 6)
    await pool.revert_volume("web", "one")
    assert holds(path, 5)


async def test_what_it_can_do_is_told_by_format(pool: BtrfsPool, tmp_path: Path) -> None:
    status = await pool.status()
    assert status.ready
    for ability in (volume_pb2.POOL_ABILITY_SNAPSHOT, volume_pb2.POOL_ABILITY_QUOTA):
        assert not abilities.why_not(status, FILESYSTEM, ability)
        plain = await registry.create(dir_spec(tmp_path)).status()
        assert abilities.why_not(plain, FILESYSTEM, ability)
    assert not abilities.why_not(status, QCOW2, volume_pb2.POOL_ABILITY_CLONE)


async def test_subvolumes_of_a_nested_container_go_with_it(pool: BtrfsPool) -> None:
    root = await tree(pool)
    command("btrfs", "subvolume", "create", root / "var")
    (root / "var/file").write_text("inner")
    await pool.delete_volume("db")
    assert not root.exists()


async def test_what_a_killed_agent_left_half_made_is_removed(pool: BtrfsPool) -> None:
    work = Path(pool.spec.btrfs.path) / "gugus/work" / f"{os.uname().nodename}.999999999.1"
    work.mkdir()
    command("btrfs", "subvolume", "create", work / "half")
    command("btrfs", "property", "set", "-ts", work / "half", "ro", "true")
    await pool.activate()
    assert not work.exists()
