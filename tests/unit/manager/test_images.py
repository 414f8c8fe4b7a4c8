"""Images through a whole cluster with real pools: uploads that break, downloads, images of disks, and orphans."""

import asyncio
import hashlib
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gugus.agent.v1 import volume_pb2
from gugus.agent.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_FAILED
from gugus.agent.v1.volume_pb2 import DirPool, PoolSpec
from gugus.cluster.v1 import pool_pb2
from gugus.cluster.v1.guest_pb2 import POWER_OFF, DiskSpec, Guest
from gugus.cluster.v1.pool_pb2 import Image, Pool
from gugus.cluster.v1.task_pb2 import Task

from agent.storage.pool import VolumeRequest
from client import images as client_images
from client.sdk import Gugus
from client.tasks import check
from common.errors import GugusError, from_status
from manager.controllers import images
from manager.services import pool_check, pool_volumes
from tests.unit.manager.cluster import Cluster, guest_spec, running
from tests.unit.manager.hypervisor import Hypervisor

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")

POOL = "local"
QCOW2 = volume_pb2.VOLUME_FORMAT_QCOW2


@pytest.fixture
async def cluster(tmp_path: Path, hypervisor: Hypervisor) -> AsyncIterator[Cluster]:
    async with running(tmp_path, hypervisor) as cluster:
        yield cluster


@pytest.fixture
def hypervisor(tmp_path: Path) -> Hypervisor:
    return Hypervisor(tmp_path / "n1")


@pytest.fixture
async def gugus(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Gugus]:
    async with cluster.client() as gugus:
        await gugus.pools.create(PoolSpec(name=POOL, dir=DirPool(path=str(tmp_path / "pool"))))
        yield gugus


def content(path: Path) -> bytes:
    return path.read_bytes()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    for argv in (["qemu-img", "create", "-q", "-f", "qcow2", path, "8M"], ["qemu-io", "-c", "write -P 5 0 1M", path]):
        subprocess.run([str(word) for word in argv], check=True, capture_output=True)
    return path


def files(tmp_path: Path, *folders: str) -> list[str]:
    top = tmp_path / "pool/gugus"
    return sorted(path.name for folder in folders for path in (top / folder).rglob("*") if path.is_file())


async def uploaded(gugus: Gugus, disk: Path, image: str = "debian") -> Image:
    task = await gugus.images.upload(POOL, image, disk)
    check(await gugus.tasks.wait(task))
    return next(item for item in await gugus.images.list() if item.volume.name == image)


async def test_an_upload_becomes_an_image(gugus: Gugus, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_images, "PIECE_BYTES", 64 * 1024)
    image = await uploaded(gugus, disk)
    assert image.volume.sha256 == hashlib.sha256(content(disk)).hexdigest()
    assert image.node == "n1"
    again = await gugus.images.upload(POOL, "debian", disk)
    check(await gugus.tasks.wait(again))


async def test_an_upload_outlives_client_and_agent(
    cluster: Cluster, gugus: Gugus, disk: Path, hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_images, "PIECE_BYTES", 64 * 1024)
    monkeypatch.setattr(client_images, "AWAY_PAUSE_S", 0.05)
    told: list[int] = []

    class Gone(Exception):
        """The client went away."""

    def leave(done: int, total: int) -> None:
        told.append(done)
        if done >= total // 2:
            raise Gone

    with pytest.raises(Gone):
        await gugus.images.upload(POOL, "debian", disk, progress=leave)
    await cluster.stop_agent()
    cluster.start_agent("n1", hypervisor)
    rest: list[int] = []
    task = await gugus.images.upload(POOL, "debian", disk, progress=lambda done, _: rest.append(done))
    check(await gugus.tasks.wait(task))
    assert rest[0] == told[-1]


async def test_a_wrong_checksum_fails_the_task_and_leaves_nothing(gugus: Gugus, disk: Path, tmp_path: Path) -> None:
    request = pool_pb2.UploadImageRequest(pool=POOL, image="x", size_bytes=4, sha256="0" * 64, request_id="k")
    task = await gugus.images._caller.call(gugus.images._stub, "UploadImage", request, Task)
    await gugus.images._write(task, 0, b"")
    await gugus.images._write(task, 0, b"text")
    ended = await gugus.tasks.wait(task)
    assert ended.state == TASK_STATE_FAILED
    assert from_status(ended.error).reason == "CHECKSUM_MISMATCH"
    assert files(tmp_path, "uploads", "images", "work") == []


async def test_a_cancelled_upload_leaves_nothing(gugus: Gugus, tmp_path: Path) -> None:
    request = pool_pb2.UploadImageRequest(pool=POOL, image="x", size_bytes=8, request_id="k")
    task = await gugus.images._caller.call(gugus.images._stub, "UploadImage", request, Task)
    await gugus.images._write(task, 0, b"")
    await gugus.images._write(task, 0, b"text")
    await gugus.tasks.cancel(task.meta.name)
    assert (await gugus.tasks.wait(task)).state == TASK_STATE_CANCELLED
    assert files(tmp_path, "uploads") == []
    with pytest.raises(GugusError, match="cancelled"):
        await gugus.images._write(task, 4, b"text")


async def test_a_download_is_what_was_uploaded_or_another_format(gugus: Gugus, disk: Path, tmp_path: Path) -> None:
    await uploaded(gugus, disk)
    for format_, head in (("", b"QFI\xfb"), ("vmdk", b"KDMV")):
        task = check(await gugus.tasks.wait(await gugus.images.export(POOL, "debian", format_=format_)))
        target = tmp_path / f"out{format_}"
        sha256 = await gugus.images.download(task.meta.name, target)
        assert target.read_bytes().startswith(head)
        assert hashlib.sha256(target.read_bytes()).hexdigest() == sha256
        with pytest.raises(GugusError, match="does not exist"):
            await gugus.images.download(task.meta.name, target)
    assert content(tmp_path / "out") == content(disk)
    missing = await gugus.tasks.wait(await gugus.images.export(POOL, "nothing"))
    assert from_status(missing.error).reason == "VOLUME_NOT_FOUND"
    with pytest.raises(GugusError, match="is not a name") as caught:
        await gugus.images.export(POOL, "../debian")
    assert caught.value.field == "volume"


async def test_images_of_a_pool_that_is_not_there_are_not_none(gugus: Gugus) -> None:
    with pytest.raises(GugusError) as caught:
        await gugus.images.list(pool="nowhere")
    assert caught.value.reason == "POOL_NOT_FOUND"


async def test_an_image_is_made_from_a_guests_disk(gugus: Gugus, disk: Path) -> None:
    await uploaded(gugus, disk)
    spec = guest_spec(POWER_OFF)
    spec.disks[0].CopyFrom(DiskSpec(pool=POOL, image="debian"))
    check(await gugus.tasks.wait(await gugus.guests.create("web", spec)))
    check(await gugus.tasks.wait(await gugus.images.create(POOL, "golden", "web")))
    image = next(item for item in await gugus.images.list() if item.volume.name == "golden")
    assert (image.volume.kind, image.volume.backing) == (volume_pb2.VOLUME_KIND_IMAGE, "")
    with pytest.raises(GugusError, match="no-disk"):
        await gugus.images.create(POOL, "other", "web", disk="no-disk")
    refused = await gugus.tasks.wait(await gugus.images.delete(POOL, "golden"))
    check(refused)


async def test_a_check_finds_orphans_and_missing_volumes(
    cluster: Cluster, gugus: Gugus, disk: Path, tmp_path: Path
) -> None:
    await uploaded(gugus, disk)
    spec = guest_spec(POWER_OFF)
    spec.disks[0].CopyFrom(DiskSpec(pool=POOL, image="debian"))
    check(await gugus.tasks.wait(await gugus.guests.create("web", spec)))
    found = await gugus.pools.check(POOL)
    assert (list(found.orphans), list(found.missing), dict(found.unchecked_nodes)) == ([], [], {})
    assert found.checked == 2
    pool = cluster.agents["n1"].pools.get(POOL)
    await pool.create_volume(VolumeRequest(name="lost", format=QCOW2, size_bytes=1 << 20))
    await pool.create_volume(VolumeRequest(name="lost-clone", format=QCOW2, source="debian"))
    volume = (await gugus.guests.get("web")).spec.disks[0].volume
    (tmp_path / f"pool/gugus/disks/{volume}.qcow2").rename(tmp_path / "away")
    found = await gugus.pools.check(POOL)
    assert [stray.volume.name for stray in found.orphans] == ["lost", "lost-clone"]
    assert [(stray.node, stray.volume.name, stray.owner) for stray in found.missing] == [("n1", volume, "guest/web")]
    (tmp_path / "away").rename(tmp_path / f"pool/gugus/disks/{volume}.qcow2")
    young = await gugus.pools.repair(POOL, found.orphans)
    assert not young.deleted
    assert all("was made" in reason for reason in young.left.values())
    await asyncio.sleep(1.1)
    asked = [*found.orphans, pool_pb2.StrayVolume(node="n1", volume=volume_pb2.Volume(name=volume))]
    done = await gugus.pools.repair(POOL, asked, least_age_s=1)
    assert {stray.volume.name for stray in done.deleted} == {"lost", "lost-clone"}
    assert list(done.left) == [f"n1/{volume}"]
    assert {v.name for v in await gugus.pools.volumes(POOL)} == {"debian", volume}


async def test_volumes_of_a_local_pool_are_told_of_every_node_and_who_could_not_be_asked(
    cluster: Cluster, gugus: Gugus, tmp_path: Path
) -> None:
    await cluster.add_node("n2", Hypervisor(tmp_path / "n2"))
    await cluster.eventually(lambda: len(cluster.store.peek_all(Pool)[0].status.nodes) == 2)
    pool = cluster.agents["n2"].pools.get(POOL)
    await pool.create_volume(VolumeRequest(name="data", format=QCOW2, size_bytes=1 << 20))
    found = await gugus.pools.list_volumes(POOL)
    assert [(item.name, node) for item, node in zip(found.volumes, found.nodes, strict=True)] == [
        ("data", "n1"),
        ("data", "n2"),
    ]
    assert not found.unasked_nodes
    await cluster.stop_agent("n2")
    found = await gugus.pools.list_volumes(POOL)
    assert (list(found.nodes), list(found.unasked_nodes)) == (["n1"], ["n2"])
    with pytest.raises(GugusError, match="node n2 cannot be asked") as caught:
        await gugus.pools.list_volumes(POOL, node="n2")
    assert "gugus pool show local" in caught.value.remedy
    with pytest.raises(GugusError) as caught:
        await gugus.pools.list_volumes(POOL, node="nope")
    assert caught.value.reason == "NODE_NOT_FOUND"


async def test_a_volume_that_stayed_where_its_guest_came_from_is_an_orphan_there(
    cluster: Cluster, gugus: Gugus
) -> None:
    """The source went offline right after the guest was handed over; it is back, with a disk that nobody reads."""
    spec = guest_spec(POWER_OFF)
    spec.disks[0].CopyFrom(DiskSpec(pool=POOL, size_bytes=1 << 20))
    check(await gugus.tasks.wait(await gugus.guests.create("web", spec)))
    guest = await cluster.store.require(Guest, "web")
    guest.status.node = "n2"
    left = volume_pb2.Volume(name=guest.spec.disks[0].volume)

    class Moved:
        """The state after the move: this guest is all there is."""

        def peek_all(self, kind: type) -> list[Guest]:
            return [guest] if kind is Guest else []

    answer = pool_pb2.CheckPoolResponse()
    pool = await gugus.pools.get(POOL)
    there = [pool_volumes.Listed("n1", [left]), pool_volumes.Listed("n2", [left])]
    pool_check.compare(Moved(), pool, there, answer)  # type: ignore[arg-type]
    assert [(stray.node, stray.volume.name) for stray in answer.orphans] == [("n1", left.name)]
    assert not answer.missing


async def test_a_volume_of_a_task_under_way_is_no_orphan(cluster: Cluster, gugus: Gugus) -> None:
    request = pool_pb2.UploadImageRequest(pool=POOL, image="coming", size_bytes=8, request_id="k")
    await gugus.images._caller.call(gugus.images._stub, "UploadImage", request, Task)
    pool = cluster.agents["n1"].pools.get(POOL)
    await pool.create_volume(VolumeRequest(name="coming", format=QCOW2, size_bytes=1 << 20))
    assert not (await gugus.pools.check(POOL)).orphans


async def test_an_upload_that_does_not_fit_is_refused_at_the_door_and_others_under_way_count(
    cluster: Cluster, gugus: Gugus
) -> None:
    free = (await gugus.pools.get(POOL)).status.nodes["n1"].available_bytes

    async def begin(image: str, size_bytes: int) -> Task:
        request = pool_pb2.UploadImageRequest(pool=POOL, image=image, size_bytes=size_bytes, request_id=image)
        return await gugus.images._caller.call(gugus.images._stub, "UploadImage", request, Task)

    with pytest.raises(GugusError, match=r"the file has .*; pool local on n1 has .* free\.") as caught:
        await begin("huge", free * 2)
    assert caught.value.reason == "NO_SPACE"
    first = await begin("first", free // 2 + 1)
    with pytest.raises(GugusError, match="of which 1 uploads under way need"):
        await begin("second", free // 2 + 1)
    await gugus.tasks.cancel(first.meta.name)
    await cluster.ended(first)
    await begin("second", free // 2 + 1)


async def test_wrong_requests_are_refused_by_field(gugus: Gugus) -> None:
    wrong = pool_pb2.UploadImageRequest(pool=POOL, image="Bad", sha256="x")
    with pytest.raises(GugusError) as caught:
        await gugus.images._caller.call(gugus.images._stub, "UploadImage", wrong, Task)
    assert {violation.field for violation in caught.value.violations} == {"image", "sha256", "size_bytes"}
    with pytest.raises(GugusError) as caught:
        await gugus.pools.create(PoolSpec(name="fast", btrfs=volume_pb2.BtrfsPool(path="relative")))
    assert caught.value.field == "spec.btrfs.path"
    assert images.UPLOAD in images.CANCELLABLE
