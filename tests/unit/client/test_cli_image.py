"""`gugus image` and `gugus pool check` on fake managers: pieces in order, resumed, and orphans that are only deleted when one says so."""

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gugus.agent.v1.task_pb2 import TASK_STATE_RUNNING, TASK_STATE_SUCCEEDED
from gugus.agent.v1.volume_pb2 import VOLUME_KIND_ISO, ExportChunk, Volume
from gugus.cluster.v1 import pool_pb2
from gugus.cluster.v1.task_pb2 import Task

from client import images
from common.errors import unavailable
from tests.unit.client.conftest import Gugus
from tests.unit.client.fake import Cluster, Manager

CONTENT = bytes(range(256)) * 40


class Store:
    """What the fake managers have of an image; it breaks off `breaks` times."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.offsets: list[int] = []
        self.breaks = 0
        self.orphans = [
            pool_pb2.StrayVolume(node="n1", volume=Volume(name="old", used_bytes=1 << 20), age_s=4000),
            pool_pb2.StrayVolume(node="n1", volume=Volume(name="new"), age_s=4),
        ]
        self.repaired: list[pool_pb2.RepairPoolRequest] = []


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """Teach the fake managers, before they start, what images need."""
    kept = Store()

    def task(manager: Any, kind: str, state: Any) -> Task:
        made = Task(kind=kind, state=state)
        made.meta.name = kind
        manager.state.tasks[kind] = made
        return made

    async def upload(self: Any, request: pool_pb2.UploadImageRequest, context: Any) -> Task:
        assert request.sha256 == hashlib.sha256(CONTENT).hexdigest()
        return task(self, "upload-image", TASK_STATE_RUNNING)

    async def write(self: Any, request: pool_pb2.WriteImageRequest, context: Any) -> pool_pb2.WriteImageResponse:
        if request.data and kept.breaks:
            kept.breaks -= 1
            raise unavailable("NO_LEADER", "there is no leader.")
        if request.data:
            kept.offsets.append(request.offset)
            assert request.offset == len(kept.received)
            kept.received += request.data
        if len(kept.received) == len(CONTENT):
            task(self, "upload-image", TASK_STATE_SUCCEEDED)
        return pool_pb2.WriteImageResponse(received_bytes=len(kept.received))

    async def export(self: Any, request: pool_pb2.ExportVolumeRequest, context: Any) -> Task:
        return task(self, "export-volume", TASK_STATE_SUCCEEDED)

    async def read(self: Any, request: pool_pb2.ReadExportRequest, context: Any) -> AsyncIterator[ExportChunk]:
        kept.offsets.append(request.offset)
        end = min(len(CONTENT), request.offset + 4096)
        yield ExportChunk(offset=request.offset, data=CONTENT[request.offset : end], total_bytes=len(CONTENT))
        if end < len(CONTENT):
            raise unavailable("NO_LEADER", "there is no leader.")  # cut off
        yield ExportChunk(offset=end, total_bytes=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())

    async def end(self: Any, request: pool_pb2.EndExportRequest, context: Any) -> pool_pb2.EndExportResponse:
        return pool_pb2.EndExportResponse()

    async def listed(self: Any, request: pool_pb2.ListImagesRequest, context: Any) -> pool_pb2.ListImagesResponse:
        volume = Volume(name="cd", kind=VOLUME_KIND_ISO, sha256="ab" * 32)
        return pool_pb2.ListImagesResponse(images=[pool_pb2.Image(pool="local", volume=volume)])

    async def check(self: Any, request: pool_pb2.CheckPoolRequest, context: Any) -> pool_pb2.CheckPoolResponse:
        return pool_pb2.CheckPoolResponse(orphans=kept.orphans, checked=2)

    async def repair(self: Any, request: pool_pb2.RepairPoolRequest, context: Any) -> pool_pb2.RepairPoolResponse:
        kept.repaired.append(request)
        return pool_pb2.RepairPoolResponse(deleted=request.orphans[:1], left={"n1/new": "it is young."})

    calls = {
        "UploadImage": upload,
        "WriteImage": write,
        "ExportVolume": export,
        "ReadExport": read,
        "EndExport": end,
        "ListImages": listed,
        "CheckPool": check,
        "RepairPool": repair,
    }
    for name, call in calls.items():
        monkeypatch.setattr(Manager, name, call, raising=False)
    monkeypatch.setattr(images, "PIECE_BYTES", 4096)
    return kept


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    return path


def test_a_file_is_sent_in_pieces_through_breaks(cluster: Cluster, gugus: Gugus, file: Path, store: Store) -> None:
    store.breaks = 3
    done = gugus("image", "upload", "local", "debian", "--from", str(file))
    assert (done.exit_code, bytes(store.received) == CONTENT) == (0, True), done.stderr
    assert store.offsets == [0, 4096, 8192]


def test_an_upload_goes_on_where_an_earlier_one_was(gugus: Gugus, file: Path, store: Store) -> None:
    store.received += CONTENT[:5000]
    assert gugus("image", "upload", "local", "debian", "--from", str(file)).exit_code == 0
    assert store.offsets == [5000, 9096]


def test_a_file_of_another_checksum_is_not_sent(gugus: Gugus, file: Path, store: Store) -> None:
    done = gugus("image", "upload", "local", "debian", "--from", str(file), "--sha256", "0" * 64)
    assert done.exit_code
    assert hashlib.sha256(CONTENT).hexdigest() in done.stderr
    assert not store.offsets


def test_a_download_that_is_cut_off_goes_on(gugus: Gugus, tmp_path: Path, store: Store) -> None:
    out = tmp_path / "out"
    done = gugus("image", "export", "local", "debian", "--to", str(out))
    assert done.exit_code == 0, done.stderr
    assert out.read_bytes() == CONTENT
    assert store.offsets == [0, 4096, 8192]
    assert not list(tmp_path.glob("*.part"))
    again = gugus("image", "export", "local", "debian", "--to", str(out))
    assert "--force" in again.stderr


def test_a_file_that_cannot_be_made_or_is_empty_is_told_before_anything_begins(
    gugus: Gugus, tmp_path: Path, store: Store
) -> None:
    out = tmp_path / "none" / "out"
    done = gugus("image", "export", "local", "debian", "--to", str(out))
    assert (done.exit_code, done.stderr) == (
        2,
        f"error: --to: {out} cannot be written: there is no folder {out.parent}.\n  what to do: Make it first.\n",
    )
    empty = tmp_path / "empty"
    empty.touch()
    done = gugus("image", "upload", "local", "debian", "--from", str(empty))
    assert done.exit_code == 2
    assert f"--from: {empty} is empty." in done.stderr
    assert not store.offsets


def test_a_download_that_fails_leaves_nothing_behind(
    gugus: Gugus, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_sha256_of", lambda file: "0" * 64)
    done = gugus("image", "export", "local", "debian", "--to", str(tmp_path / "out"))
    assert "is not what was sent" in done.stderr
    assert not list(tmp_path.glob("out*"))


def test_images_are_shown_with_their_kind(gugus: Gugus) -> None:
    assert "iso" in gugus("image", "list").stdout
    assert gugus("pool", "images").stdout == gugus("image", "list").stdout
    assert "ab" * 32 in gugus("image", "show", "local", "cd").stdout
    assert gugus("image", "show", "local", "dvd").exit_code


def test_a_check_tells_and_deletes_only_when_asked(gugus: Gugus, store: Store) -> None:
    told = gugus("pool", "check", "local")
    assert told.exit_code == 1
    assert "old" in told.stdout
    assert not store.repaired
    unsure = gugus("pool", "check", "local", "--repair")
    assert "--yes" in unsure.stderr
    assert not store.repaired
    done = gugus("pool", "check", "local", "--repair", "--yes", "--older-than", "1h", "-o", "json")
    assert store.repaired[0].least_age_s == 3600
    assert [stray["volume"]["name"] for stray in json.loads(done.stdout)["orphans"]] == ["new"]
    assert "young" in done.stderr


def test_a_pool_is_on_one_kind_of_folder(gugus: Gugus, cluster: Cluster) -> None:
    assert gugus("pool", "create", "fast", "--btrfs", "/srv/btrfs/pool").exit_code == 0
    assert cluster.state.pools["fast"].spec.btrfs.path == "/srv/btrfs/pool"
    for wrong in (["--dir", "/a", "--btrfs", "/b"], [], ["--btrfs", "b"], ["--btrfs", "/b", "--shared"]):
        assert gugus("pool", "create", "x", *wrong).exit_code == 2
