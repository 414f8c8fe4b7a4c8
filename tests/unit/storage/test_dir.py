"""A dir pool: volumes are whole or absent, whatever goes wrong, and errors say what to do."""

import asyncio
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Awaitable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from gugus.agent.v1 import volume_pb2

from agent.compute import idmap
from agent.storage import registry
from agent.storage.dir import DirPool
from agent.storage.pool import VolumeRequest
from common.errors import GugusError

QCOW2, RAW = volume_pb2.VOLUME_FORMAT_QCOW2, volume_pb2.VOLUME_FORMAT_RAW
FILESYSTEM, ARCHIVE = volume_pb2.VOLUME_FORMAT_FILESYSTEM, volume_pb2.VOLUME_FORMAT_ARCHIVE
MIB = 1024 * 1024
needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def spec(path: Path, *, name: str = "local", shared: bool = False) -> volume_pb2.PoolSpec:
    return volume_pb2.PoolSpec(name=name, dir=volume_pb2.DirPool(path=str(path), shared=shared))


@pytest.fixture
async def pool(tmp_path: Path) -> DirPool:
    made = DirPool(spec(tmp_path / "pool"))
    await made.activate()
    return made


@pytest.fixture
def qcow2(tmp_path: Path) -> Path:
    path = tmp_path / "image.qcow2"
    command("qemu-img", "create", "-q", "-f", "qcow2", path, "8M")
    return path


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    path = tmp_path / "rootfs.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, uid in (("etc", 0), ("bin", 0), ("home", 1000)):
            folder = tarfile.TarInfo(f"./{name}")
            folder.type, folder.mode, folder.uid, folder.gid = tarfile.DIRTYPE, 0o755, uid, uid
            tar.addfile(folder)
        file = tarfile.TarInfo("./etc/hostname")
        file.size = 3
        tar.addfile(file, io.BytesIO(b"db\n"))
    return path


def nothing(percent: int, message: str) -> None:
    """Progress that nobody reads."""


def command(*argv: object) -> bytes:
    return subprocess.run([str(word) for word in argv], check=True, capture_output=True).stdout


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def leftovers(pool: DirPool) -> list[str]:
    root = Path(pool.spec.dir.path) / "gugus"
    return [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name != "pool.json"]


async def failure(awaitable: Awaitable[object]) -> GugusError:
    with pytest.raises(GugusError) as caught:
        await awaitable
    return caught.value


@needs_qemu_img
async def test_an_image_is_imported_cloned_and_kept_while_clones_need_it(pool: DirPool, qcow2: Path) -> None:
    told: list[int] = []
    image = await pool.import_volume("debian", str(qcow2), "", lambda percent, _: told.append(percent))
    assert (image.format, image.size_bytes) == (QCOW2, 8 * MIB)
    assert image.sha256 == sha256_of(qcow2)
    assert told == sorted(told)
    assert told[-1] == 100
    request = VolumeRequest(name="web", format=QCOW2, source="debian", size_bytes=16 * MIB)
    clone = await pool.create_volume(request)
    assert (clone.backing, clone.size_bytes) == ("debian", 16 * MIB)
    assert await pool.create_volume(request) == clone
    error = await failure(pool.delete_volume("debian"))
    assert error.reason == "VOLUME_IN_USE"
    assert "web" in error.message
    await pool.delete_volume("web")
    await pool.delete_volume("debian")
    await pool.delete_volume("debian")
    assert await pool.list_volumes() == []
    assert leftovers(pool) == []


@needs_qemu_img
async def test_a_clone_finds_its_image_after_the_pool_moved(pool: DirPool, qcow2: Path, tmp_path: Path) -> None:
    await pool.import_volume("debian", str(qcow2), "", nothing)
    await pool.create_volume(VolumeRequest(name="web", format=QCOW2, source="debian"))
    shutil.move(pool.spec.dir.path, tmp_path / "elsewhere")
    disk = tmp_path / "elsewhere/gugus/disks/web.qcow2"
    assert len(json.loads(command("qemu-img", "info", "--backing-chain", "--output=json", disk))) == 2


@needs_qemu_img
@pytest.mark.parametrize("volume_format", [QCOW2, RAW])
async def test_an_empty_disk_has_the_size_asked_for(
    pool: DirPool, volume_format: volume_pb2.VolumeFormat.ValueType
) -> None:
    request = VolumeRequest(name="data", format=volume_format, size_bytes=64 * MIB)
    volume = await pool.create_volume(request)
    assert volume.size_bytes == 64 * MIB
    assert volume.used_bytes < MIB
    assert (await pool.path_of("data")).is_file()
    assert (
        await failure(pool.create_volume(VolumeRequest(name="data", format=volume_format, size_bytes=MIB)))
    ).reason == ("VOLUME_ALREADY_EXISTS")


@needs_qemu_img
async def test_wrong_requests_are_refused_by_field(pool: DirPool, qcow2: Path, rootfs: Path) -> None:
    await pool.import_volume("debian", str(qcow2), "", nothing)
    await pool.import_volume("rootfs", str(rootfs), "", nothing)
    await pool.create_volume(VolumeRequest(name="web", format=QCOW2, source="debian"))
    wrong = {
        "size_bytes": VolumeRequest(name="a", format=QCOW2, source="debian", size_bytes=MIB),
        "format": VolumeRequest(name="a", format=RAW, source="debian"),
        "source": VolumeRequest(name="a", format=QCOW2, source="web"),
        "name": VolumeRequest(name="../a", format=QCOW2, size_bytes=MIB),
    }
    for field, request in wrong.items():
        assert (await failure(pool.create_volume(request))).field == field
    for source, volume_format in (("rootfs", QCOW2), ("debian", FILESYSTEM)):
        error = await failure(pool.create_volume(VolumeRequest(name="a", format=volume_format, source=source)))
        assert error.field == "source"
    missing = await failure(pool.create_volume(VolumeRequest(name="a", format=QCOW2, source="nope")))
    assert missing.reason == "VOLUME_NOT_FOUND"
    assert {volume.name for volume in await pool.list_volumes()} == {"debian", "rootfs", "web"}


@needs_qemu_img
async def test_what_is_no_image_is_refused_and_leaves_nothing(pool: DirPool, tmp_path: Path, qcow2: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not an image\n" * 1000)
    spy = tmp_path / "spy.qcow2"
    command("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw", spy, "1M")
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(b"\x1f\x8b" + b"\0" * 100)
    for source in (text, spy, broken):
        error = await failure(pool.import_volume("x", str(source), "", nothing))
        assert error.reason == "NOT_AN_IMAGE"
        assert str(source) in error.message
    wrong = await failure(pool.import_volume("x", str(qcow2), "0" * 64, nothing))
    assert wrong.reason == "CHECKSUM_MISMATCH"
    assert (await failure(pool.import_volume("x", str(tmp_path / "none"), "", nothing))).reason == "SOURCE_UNREADABLE"
    assert (await failure(pool.import_volume("x", "image.qcow2", "", nothing))).field == "source"
    assert leftovers(pool) == []


@needs_qemu_img
async def test_an_image_comes_over_http(pool: DirPool, qcow2: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(qcow2.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        base = f"http://127.0.0.1:{server.server_port}"
        image = await pool.import_volume("debian", f"{base}/{qcow2.name}", "", nothing)
        assert image.size_bytes == 8 * MIB
        assert (await failure(pool.import_volume("y", f"{base}/none", "", nothing))).reason == "SOURCE_UNREADABLE"
    finally:
        server.shutdown()
        server.server_close()


async def test_a_cancelled_import_leaves_nothing(pool: DirPool, tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(4096 * MIB)
    begun = asyncio.Event()
    task = asyncio.create_task(pool.import_volume("big", str(big), "", lambda *_: begun.set()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert leftovers(pool) == []


@needs_root
async def test_a_full_disk_in_the_middle_of_an_import_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    command("mount", "-t", "tmpfs", "-o", "size=4m", "gugus-test", small)
    try:
        pool = DirPool(spec(small))
        await pool.activate()
        big = tmp_path / "big.raw"
        big.write_bytes(b"\0" * 510 + b"\x55\xaa" + b"x" * (8 * MIB))
        error = await failure(pool.import_volume("big", str(big), "", nothing))
        assert error.reason == "NO_SPACE"
        assert "4MiB" in error.message
        assert leftovers(pool) == []
        big.write_bytes(b"\0" * 510 + b"\x55\xaa" + b"x" * MIB)
        assert (await pool.import_volume("big", str(big), "", nothing)).format == RAW
    finally:
        command("umount", small)


async def test_what_a_killed_agent_left_is_removed_and_a_living_ones_is_not(pool: DirPool) -> None:
    work = Path(pool.spec.dir.path) / "gugus/work"
    dead = work / f"{os.uname().nodename}.999999999.1"
    other_host = work / "other-host.1.1"
    for folder in (dead, other_host):
        folder.mkdir()
        (folder / "half").write_text("half")
    await pool.activate()
    assert not dead.exists()
    assert other_host.exists()


async def test_a_shared_path_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    error = await failure(DirPool(spec(tmp_path / "mnt", shared=True)).activate())
    assert error.reason == "PATH_MISSING"
    assert not (tmp_path / "mnt").exists()


async def test_two_pools_do_not_share_a_path(tmp_path: Path) -> None:
    await DirPool(spec(tmp_path)).activate()
    assert (await failure(DirPool(spec(tmp_path, name="other")).activate())).reason == "PATH_TAKEN"


async def test_status_tells_room_and_what_is_wrong(pool: DirPool) -> None:
    status = await pool.status()
    assert status.ready
    assert 0 < status.available_bytes <= status.capacity_bytes
    assert volume_pb2.POOL_ABILITY_SHARED not in status.abilities
    shutil.rmtree(pool.spec.dir.path)
    status = await pool.status()
    assert not status.ready
    assert pool.spec.dir.path in status.reason


@needs_root
async def test_a_privileged_file_system_keeps_its_owners(pool: DirPool, rootfs: Path) -> None:
    await pool.import_volume("rootfs", str(rootfs), "", nothing)
    volume = await pool.create_volume(VolumeRequest(name="db", format=FILESYSTEM, source="rootfs", privileged=True))
    root = await pool.path_of("db")
    assert volume.format == FILESYSTEM
    assert (root / "etc/hostname").read_text() == "db\n"
    assert (root / "home").stat().st_uid == 1000
    await pool.delete_volume("rootfs")
    await pool.delete_volume("db")
    assert leftovers(pool) == []


@needs_root
async def test_an_unprivileged_file_system_belongs_to_the_containers_range(pool: DirPool, rootfs: Path) -> None:
    before = {file: file.read_text() if file.exists() else None for file in (idmap.SUBUID, idmap.SUBGID)}
    if problem := idmap.available():
        pytest.skip(problem)
    try:
        await pool.import_volume("rootfs", str(rootfs), "", nothing)
        await pool.create_volume(VolumeRequest(name="db", format=FILESYSTEM, source="rootfs"))
        root = await pool.path_of("db")
        assert root.stat().st_uid == idmap.IDMAP.base
        assert (root / "home").stat().st_uid == idmap.IDMAP.host_id(1000)
        assert (root / "etc/hostname").stat().st_gid == idmap.IDMAP.base
    finally:
        for file, text in before.items():
            if text is not None:
                file.write_text(text)


def test_the_registry_makes_pools_by_driver(tmp_path: Path) -> None:
    assert isinstance(registry.create(spec(tmp_path)), DirPool)
    with pytest.raises(GugusError, match="no driver"):
        registry.create(volume_pb2.PoolSpec(name="x"))
