"""Uploads and exports: whole, resumed at any byte, and gone when nobody wants them."""

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest

from agent.compute import idmap
from agent.storage import exports, transfer
from agent.storage.dir import DirPool
from agent.storage.pool import VolumeRequest
from tests.unit.storage.helpers import (
    ARCHIVE,
    FILESYSTEM,
    MIB,
    QCOW2,
    command,
    copying,
    dir_spec,
    disk,
    failure,
    leftovers,
    nothing,
    tree,
    write,
)

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


@pytest.fixture
async def pool(tmp_path: Path) -> DirPool:
    made = DirPool(dir_spec(tmp_path / "pool"))
    await made.activate()
    return made


@pytest.fixture
def qcow2(tmp_path: Path) -> bytes:
    path = tmp_path / "image.qcow2"
    command("qemu-img", "create", "-q", "-f", "qcow2", path, "8M")
    write(path, 5)
    return path.read_bytes()


async def download(pool: DirPool, id_: str, offset: int = 0) -> tuple[bytes, str]:
    content, sha256 = b"", ""
    async for chunk in pool.transfer.read_export(id_, offset):
        assert chunk.offset == offset + len(content)
        content += chunk.data
        sha256 = chunk.sha256
    return content, sha256


async def test_an_upload_goes_on_where_it_was(pool: DirPool, tmp_path: Path, qcow2: bytes) -> None:
    moves = pool.transfer
    half = len(qcow2) // 2
    assert (await moves.begin_upload("a-1", len(qcow2))).received_bytes == 0
    assert (await moves.write_upload("a-1", 0, qcow2[:half])).received_bytes == half
    early = await failure(pool.import_volume("image", "upload:a-1", "", nothing))
    assert early.reason == "UPLOAD_INCOMPLETE"
    again = DirPool(pool.spec)  # the agent was restarted
    await again.activate()
    moves = again.transfer
    assert (await moves.begin_upload("a-1", len(qcow2))).received_bytes == half
    assert (await moves.write_upload("a-1", 0, qcow2[:half])).received_bytes == half
    assert (await failure(moves.write_upload("a-1", half + 1, b"x"))).field == "offset"
    assert (await failure(moves.write_upload("a-1", half, qcow2))).field == "offset"
    await moves.write_upload("a-1", half - 10, qcow2[half - 10 :])
    wrong = await failure(again.import_volume("image", "upload:a-1", "0" * 64, nothing))
    assert wrong.reason == "CHECKSUM_MISMATCH"
    digest = hashlib.sha256(qcow2).hexdigest()
    image = await again.import_volume("image", "upload:a-1", digest, nothing)
    assert (image.format, image.sha256) == (QCOW2, digest)
    assert leftovers(tmp_path / "pool") == ["images/image.qcow2", "volumes/image.json"]
    assert (await failure(moves.get_upload("a-1"))).reason == "UPLOAD_NOT_FOUND"


async def test_wrong_uploads_are_refused(pool: DirPool) -> None:
    moves = pool.transfer
    assert (await failure(moves.begin_upload("../a", 1))).field == "id"
    assert (await failure(moves.begin_upload("a", 0))).field == "total_bytes"
    assert (await failure(moves.begin_upload("a", 1 << 60))).reason == "NO_SPACE"
    assert (await failure(moves.write_upload("a", 0, b"x"))).reason == "UPLOAD_NOT_FOUND"
    assert (await failure(moves.write_upload("a", 0, b"x" * (transfer.PIECE_BYTES + 1)))).field == "data"
    await moves.begin_upload("a", 10)
    assert (await failure(moves.begin_upload("a", 11))).field == "total_bytes"
    await moves.end_upload("a")
    await moves.end_upload("a")
    assert leftovers(Path(pool.spec.dir.path)) == []


async def test_an_upload_that_was_given_up_is_removed(pool: DirPool) -> None:
    await pool.transfer.begin_upload("old", 10)
    part = Path(pool.spec.dir.path) / "gugus/uploads/old.part"
    past = time.time() - transfer.IDLE_S - 1
    os.utime(part, (past, past))
    await pool.activate()
    assert leftovers(Path(pool.spec.dir.path)) == []


async def test_a_linked_clone_is_exported_without_its_base(
    pool: DirPool, tmp_path: Path, qcow2: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "CHUNK_BYTES", 64 * 1024)
    source = tmp_path / "image.qcow2"
    await pool.import_volume("image", str(source), "", nothing)
    await pool.create_volume(VolumeRequest(name="web", format=QCOW2, source="image"))
    size = await pool.transfer.begin_export("x", "web", "", "", nothing)
    assert (await failure(pool.delete_volume("web"))).reason == "VOLUME_IN_USE"
    content, sha256 = await download(pool, "x")
    assert (len(content), sha256) == (size, hashlib.sha256(content).hexdigest())
    assert (await download(pool, "x", 70_000))[0] == content[70_000:]
    exported = tmp_path / "out.qcow2"
    exported.write_bytes(content)
    await pool.import_volume("again", str(exported), "", nothing)
    await pool.transfer.end_export("x")
    await pool.transfer.end_export("x")
    await pool.delete_volume("web")
    assert (await failure(download(pool, "x"))).reason == "EXPORT_NOT_FOUND"
    assert not [name for name in leftovers(tmp_path / "pool") if name.startswith("work")]


async def test_an_image_is_exported_as_it_is_or_converted(pool: DirPool, tmp_path: Path, qcow2: bytes) -> None:
    await pool.import_volume("image", str(tmp_path / "image.qcow2"), "", nothing)
    await pool.transfer.begin_export("same", "image", "", "", nothing)
    assert (await download(pool, "same"))[0] == qcow2
    await pool.transfer.begin_export("vmdk", "image", "vmdk", "", nothing)
    assert (await download(pool, "vmdk"))[0].startswith(b"KDMV")
    assert (await failure(pool.transfer.begin_export("y", "image", "tar", "", nothing))).field == "format"
    for id_ in ("same", "vmdk"):
        await pool.transfer.end_export(id_)


async def test_an_export_of_a_snapshot_is_what_it_was(pool: DirPool, tmp_path: Path) -> None:
    path = await disk(pool)
    write(path, 1)
    await pool.snapshot_volume("web", "one")
    write(path, 2)
    await pool.transfer.begin_export("x", "web", "raw", "one", nothing)
    assert (await download(pool, "x"))[0][:16] == b"\x01" * 16
    await pool.transfer.end_export("x")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_a_root_file_system_goes_out_and_comes_in(pool: DirPool, tmp_path: Path) -> None:
    root = await tree(pool)
    (root / "etc/owned").write_text("x")
    os.chown(root / "etc/owned", 1000, 1000)
    await pool.transfer.begin_export("x", "db", "", "", nothing)
    content, _ = await download(pool, "x")
    await pool.transfer.begin_upload("u", len(content))
    await pool.transfer.write_upload("u", 0, content)
    assert (await pool.import_volume("copy", "upload:u", "", nothing)).format == ARCHIVE
    if problem := idmap.available():
        pytest.skip(problem)
    await pool.create_volume(VolumeRequest(name="two", format=FILESYSTEM, source="copy", privileged=True))
    assert ((await pool.path_of("two")) / "etc/owned").stat().st_uid == 1000
    await pool.transfer.end_export("x")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_a_full_disk_ends_an_upload_and_a_copy_with_numbers(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    command("mount", "-t", "tmpfs", "-o", "size=6m", "gugus-test", small)
    try:
        pool = DirPool(dir_spec(small))
        await pool.activate()
        assert (await failure(pool.transfer.begin_upload("u", 8 * MIB))).reason == "NO_SPACE"
        path = await disk(pool, size=5 * MIB)
        command("qemu-io", "-f", "qcow2", "-c", "write -P 3 0 4M", path)
        error = await failure(pool.copy_volume(copying(pool, "copy", "web"), nothing))
        assert error.reason == "NO_SPACE"
        assert leftovers(small) == ["disks/web.qcow2", "volumes/web.json"]
    finally:
        command("umount", small)


async def test_uploads_under_way_count_against_the_room_of_the_next(pool: DirPool, tmp_path: Path) -> None:
    free = (await pool.status()).available_bytes
    await pool.transfer.begin_upload("a-1", free * 6 // 10)
    refused = await failure(pool.transfer.begin_upload("b-2", free * 6 // 10))
    assert refused.reason == "NO_SPACE"
    assert "of which uploads under way need" in refused.message
    assert (await pool.transfer.begin_upload("a-1", free * 6 // 10)).received_bytes == 0, "it has its room already"
    await pool.transfer.end_upload("a-1")
    await pool.transfer.begin_upload("b-2", free * 6 // 10)
