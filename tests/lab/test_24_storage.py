"""Storage of a real cluster: images from here and of foreign formats, disks that read from them, and volumes that nobody knows."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from gugus.agent.v1.volume_pb2 import VOLUME_KIND_IMAGE, VOLUME_KIND_ISO, BtrfsPool, PoolSpec
from gugus.cluster.v1.guest_pb2 import POWER_OFF, Guest
from gugus.cluster.v1.pool_pb2 import Image

from common.errors import GugusError
from lab import demo_guests
from tests.lab.conftest import Room

POOL = demo_guests.POOL


def tool(*argv: object) -> None:
    subprocess.run([str(word) for word in argv], check=True, capture_output=True)


@pytest.fixture
def folder(room: Room) -> Path:
    """A folder that all nodes see as /srv/shared/images."""
    return room.lab.plan.shared / "images"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "small.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", path, "32M")
    tool("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 6M", path)
    return path


@pytest.fixture
def images(room: Room) -> Iterator[list[str]]:
    """Names of images to be deleted after the test."""
    made: list[str] = []
    yield made
    room.mend()
    for name in made:
        room.operator.do(room.gugus.images.delete(POOL, name))


def image(room: Room, name: str) -> Image:
    return next(item for item in room.operator.run(room.gugus.images.list(pool=POOL)) if item.volume.name == name)


def stopped(room: Room, name: str, image_: str) -> Guest:
    """Make a guest whose disk is a linked clone of an image."""
    spec = demo_guests.vm_spec()
    spec.power = POWER_OFF
    spec.ha.enabled = False
    spec.disks[0].image = image_
    return room.create(name, spec)


def test_an_image_goes_in_and_out(room: Room, disk: Path, images: list[str], tmp_path: Path) -> None:
    images.append("small")
    room.operator.do(room.gugus.images.upload(POOL, "small", disk))
    found = image(room, "small")
    assert (found.volume.kind, found.node) == (VOLUME_KIND_IMAGE, "")
    task = room.operator.do(room.gugus.images.export(POOL, "small"))
    out = tmp_path / "out.qcow2"
    room.operator.run(room.gugus.images.download(task.meta.name, out))
    assert out.read_bytes() == disk.read_bytes()


def test_foreign_formats_and_a_base_in_use(room: Room, disk: Path, folder: Path, images: list[str]) -> None:
    tool("qemu-img", "convert", "-f", "qcow2", "-O", "vmdk", disk, folder / "small.vmdk")
    (folder / "cd.iso").write_bytes(b"\0" * 32769 + b"CD001" + b"\0" * 4096)
    images += ["from-vmdk", "cd"]
    room.operator.do(room.gugus.images.import_(POOL, "from-vmdk", "/srv/shared/images/small.vmdk"))
    room.operator.do(room.gugus.images.import_(POOL, "cd", "/srv/shared/images/cd.iso"))
    assert image(room, "cd").volume.kind == VOLUME_KIND_ISO
    volume = stopped(room, "web", "from-vmdk").spec.disks[0].volume
    disks = {item.name: item for item in room.operator.run(room.gugus.pools.volumes(POOL))}
    assert disks[volume].backing == "from-vmdk"
    with pytest.raises(GugusError, match="web") as caught:
        room.operator.do(room.gugus.images.delete(POOL, "from-vmdk"))
    assert caught.value.reason == "IMAGE_IN_USE"
    task = room.operator.do(room.gugus.images.create(POOL, "golden", "web"))
    images.append("golden")
    assert task.node
    assert image(room, "golden").volume.backing == ""


def test_what_nobody_knows_is_found_and_removed(room: Room, disk: Path, images: list[str]) -> None:
    images.append("small")
    room.operator.do(room.gugus.images.upload(POOL, "small", disk))
    volume = stopped(room, "web", "small").spec.disks[0].volume
    top = room.lab.plan.shared / "pool/gugus"
    record = json.loads((top / f"volumes/{volume}.json").read_text())
    shutil.copyfile(top / record["file"], top / "disks/stray.qcow2")
    stray = {**record, "name": "stray", "file": "disks/stray.qcow2", "created": record["created"] - 3600}
    (top / "volumes/stray.json").write_text(json.dumps(stray))
    found = room.operator.run(room.gugus.pools.check(POOL))
    assert [orphan.volume.name for orphan in found.orphans] == ["stray"]
    assert not found.missing
    done = room.operator.run(room.gugus.pools.repair(POOL, found.orphans))
    assert [orphan.volume.name for orphan in done.deleted] == ["stray"]
    assert not (top / "disks/stray.qcow2").exists()
    assert not room.operator.run(room.gugus.pools.check(POOL)).orphans


def test_a_pool_on_btrfs_says_what_it_can(room: Room) -> None:
    if room.shell("n1", "stat", "-f", "-c", "%T", "/srv/btrfs", check=False).strip() != "btrfs":
        pytest.skip("the nodes have no btrfs")
    pools = room.gugus.pools
    room.operator.run(pools.create(PoolSpec(name="fast", btrfs=BtrfsPool(path="/srv/btrfs/fast"))))
    try:
        spec = demo_guests.container_spec()
        spec.power = POWER_OFF
        spec.ha.enabled = False
        spec.disks[0].pool = "fast"
        source = demo_guests.place_images(room.lab.plan)[1]
        room.operator.do(room.gugus.images.import_("fast", source.name, str(source.path), node="n1"))
        spec.pinned_node = "n1"
        room.create("db", spec)
        listed = room.shell("n1", "btrfs", "subvolume", "list", "/srv/btrfs")
        assert "filesystems/db" in listed
        room.mend()
        assert "filesystems/db" not in room.shell("n1", "btrfs", "subvolume", "list", "/srv/btrfs")
        room.operator.do(room.gugus.images.delete("fast", source.name))
    finally:
        room.operator.run(pools.delete("fast"))
