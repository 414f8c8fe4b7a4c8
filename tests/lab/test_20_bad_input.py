"""Wrong input and broken hosts: a clear error, nothing half-made left, and the same call works once the cause is gone."""

from collections.abc import Iterator

import pytest
from gugus.agent.v1.network_pb2 import BridgeNetwork, NetworkSpec
from gugus.agent.v1.volume_pb2 import DirPool, PoolSpec

from common.errors import GugusError
from lab import demo_guests
from tests.lab.conftest import Room

LIBVIRT_UNITS = ("libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket", "libvirtd.service")


def names(room: Room) -> set[str]:
    return {guest.meta.name for guest in room.operator.guests()}


def test_a_name_that_is_taken(room: Room) -> None:
    room.create("db", demo_guests.container_spec())
    with pytest.raises(GugusError) as caught:
        room.operator.do(room.gugus.guests.create("db", demo_guests.container_spec()))
    assert caught.value.reason == "GUEST_ALREADY_EXISTS"
    room.operator.do(room.gugus.guests.delete("db", force=True))
    room.create("db", demo_guests.container_spec())


def test_an_image_that_is_no_image(room: Room) -> None:
    bad = room.lab.plan.shared / "images" / "letter.txt"
    bad.write_text("Dear operator,\n" * 100)
    pools = room.gugus.pools
    with pytest.raises(GugusError) as caught:
        room.operator.do(pools.import_image("shared", "letter", "/srv/shared/images/letter.txt"))
    assert caught.value.reason == "NOT_AN_IMAGE"
    assert "letter" not in {image.volume.name for image in room.operator.run(pools.images(pool="shared"))}
    assert not list((room.lab.plan.shared / "pool").rglob("letter*"))
    source = demo_guests.place_images(room.lab.plan)[1]
    room.operator.do(pools.import_image("shared", "letter", str(source.path), sha256=source.sha256))
    room.operator.do(pools.delete_image("shared", "letter"))


def test_an_image_with_another_checksum(room: Room) -> None:
    source = demo_guests.place_images(room.lab.plan)[1]
    with pytest.raises(GugusError) as caught:
        room.operator.do(room.gugus.pools.import_image("shared", "other", str(source.path), sha256="0" * 64))
    assert caught.value.reason == "CHECKSUM_MISMATCH"
    assert not list((room.lab.plan.shared / "pool").rglob("other*"))


def test_more_memory_than_any_host_has(room: Room) -> None:
    spec = demo_guests.vm_spec()
    spec.memory_bytes = 2**46
    with pytest.raises(GugusError) as caught:
        room.operator.do(room.gugus.guests.create("big", spec))
    assert caught.value.reason == "NO_NODE_FITS"
    assert "memory" in caught.value.message
    assert "big" not in names(room)


def test_a_pool_that_is_not_there(room: Room) -> None:
    spec = demo_guests.container_spec()
    spec.disks[0].pool = "shard"
    with pytest.raises(GugusError) as caught:
        room.operator.do(room.gugus.guests.create("db", spec))
    assert caught.value.reason == "POOL_NOT_FOUND"
    assert "db" not in names(room)


def test_a_bridge_of_somebody_else(room: Room) -> None:
    room.shell("n1", "ip", "link", "add", "br-mine", "type", "bridge")
    networks = room.gugus.networks
    spec = NetworkSpec(name="office", bridge=BridgeNetwork(bridge="br-mine"))
    with pytest.raises(GugusError) as caught:
        room.operator.run(networks.create(spec, nodes=["n1"]))
    assert caught.value.reason == "NETWORK_NOT_READY"
    assert "br-mine" in str(caught.value)
    assert "br-mine" in room.shell("n1", "ip", "-br", "link")
    room.operator.wait("the network to be taken back", lambda: "office" not in _networks(room), 30)
    room.shell("n1", "ip", "link", "delete", "br-mine")
    assert room.operator.run(networks.create(spec, nodes=["n1"])).status.nodes["n1"].ready
    room.operator.run(networks.delete("office"))
    room.operator.wait("its bridge to go", lambda: "br-mine" not in room.shell("n1", "ip", "-br", "link"), 30)


def _networks(room: Room) -> set[str]:
    return {network.meta.name for network in room.operator.run(room.gugus.networks.list())}


@pytest.fixture
def small_pool(room: Room) -> Iterator[str]:
    """A pool on n1 whose file system holds 24 MiB."""
    room.shell("n1", "mkdir", "-p", "/var/small")
    room.shell("n1", "mount", "-t", "tmpfs", "-o", "size=24m,mode=755", "small", "/var/small")
    pools = room.gugus.pools
    room.operator.run(pools.create(PoolSpec(name="small", dir=DirPool(path="/var/small")), nodes=["n1"]))
    room.operator.wait("the pool on n1", lambda: room.operator.run(pools.get("small")).status.nodes["n1"].ready, 30)
    yield "small"
    room.operator.run(pools.delete("small"))
    room.shell("n1", "umount", "--lazy", "/var/small")


def test_a_full_disk_in_the_middle_of_an_import(room: Room, small_pool: str) -> None:
    disk = bytearray(32 * 2**20)
    disk[510:512] = b"\x55\xaa"
    (room.lab.plan.shared / "images" / "thick.raw").write_bytes(disk)
    pools = room.gugus.pools

    def files() -> str:
        return room.shell("n1", "find", "/var/small", "-type", "f", "-printf", "%p %s\\n")

    before = files()
    with pytest.raises(GugusError) as caught:
        room.operator.do(pools.import_image(small_pool, "thick", "/srv/shared/images/thick.raw", node="n1"))
    assert caught.value.reason == "NO_SPACE"
    assert files() == before
    room.shell("n1", "mount", "-o", "remount,size=96m", "/var/small")
    room.operator.do(pools.import_image(small_pool, "thick", "/srv/shared/images/thick.raw", node="n1"))
    room.operator.do(pools.delete_image(small_pool, "thick"))


def test_libvirtd_is_down(room: Room) -> None:
    spec = demo_guests.vm_spec()
    spec.pinned_node = "n1"
    spec.ha.enabled = False
    room.create("web", spec)
    room.operator.do(room.gugus.guests.stop("web", force=True))
    room.shell("n1", "systemctl", "stop", *LIBVIRT_UNITS)
    try:
        with pytest.raises(GugusError) as caught:
            room.operator.do(room.gugus.guests.start("web"), seconds=30)
        assert "libvirt" in str(caught.value)
        assert not room.judge.now.of("web")
    finally:
        room.shell("n1", "systemctl", "start", *LIBVIRT_UNITS[:-1])
    room.operator.wait("n1 to run virtual machines again", lambda: _ready(room, "n1"), 60)
    room.operator.do(room.gugus.guests.start("web"))
    room.wait_running("web", "n1")


def _ready(room: Room, node: str) -> bool:
    facts = room.operator.node(node).status.facts
    return any(hypervisor.driver == "kvm" and hypervisor.ready for hypervisor in facts.hypervisors)
