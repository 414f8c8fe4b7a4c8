"""Clones, templates and moved disks through the whole cluster."""

import asyncio

import pytest
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER, GUEST_STATE_RUNNING, GUEST_STATE_STOPPED
from gugus.agent.v1.machine_pb2 import UsbDevice, VirtualMachineSpec
from gugus.agent.v1.volume_pb2 import (
    POOL_ABILITY_CLONE,
    POOL_ABILITY_SNAPSHOT,
    VOLUME_FORMAT_ARCHIVE,
    VOLUME_FORMAT_FILESYSTEM,
    VOLUME_KIND_BASE,
    DirPool,
    PoolSpec,
)
from gugus.cluster.v1.clone_pb2 import CLONE_MODE_FULL, CLONE_MODE_LINKED, CloneGuestRequest
from gugus.cluster.v1.guest_pb2 import POWER_OFF, POWER_ON, DiskSpec, Guest, GuestSpec
from gugus.cluster.v1.pool_pb2 import Pool
from gugus.cluster.v1.task_pb2 import Task

from client.sdk import Gugus
from client.tasks import check
from common.errors import GugusError, from_status, internal
from manager.guests import clones
from manager.store import Txn
from tests.unit.manager.cluster import POOL, Cluster, guest_spec
from tests.unit.manager.hypervisor import Hypervisor
from tests.unit.manager.snapshotting import Snapshotting
from tests.unit.manager.storage import Storage

OTHER = PoolSpec(name="other", dir=DirPool(path="/srv/other"))


async def done(gugus: Gugus, task: Task) -> Task:
    return check(await gugus.tasks.wait(task))


async def make(gugus: Gugus, power: int = POWER_OFF, name: str = "web") -> Guest:
    await done(gugus, await gugus.guests.create(name, guest_spec(power, 2)))  # type: ignore[arg-type]
    return await gugus.guests.get(name)


async def refused(call: object) -> str:
    with pytest.raises(GugusError) as caught:
        await call  # type: ignore[misc]
    return caught.value.reason


def observed(cluster: Cluster, name: str) -> int:
    guest = cluster.peek(Guest, name)
    return guest.status.observed if guest is not None else 0


async def test_full_clone_has_its_own_identity_and_copies_of_all_disks(
    cluster: Cluster, gugus: Gugus, storage: Storage
) -> None:
    source = await make(gugus)
    storage.content[source.spec.disks[1].volume] = 7
    request = CloneGuestRequest(source="web", name="shop", start=True, notes="a copy")
    await done(gugus, await gugus.clones.clone(request))
    await cluster.eventually(lambda: cluster.record("n1", "shop").exists())
    clone = await gugus.guests.get("shop")
    assert clone.spec.id != source.spec.id
    assert clone.meta.uid != source.meta.uid
    assert not {d.volume for d in clone.spec.disks} & {d.volume for d in source.spec.disks}
    assert [storage.content[d.volume] for d in clone.spec.disks] == [0, 7]
    assert (clone.spec.first_boot.hostname, clone.spec.notes, clone.spec.power) == ("shop", "a copy", POWER_ON)
    assert not clone.status.HasField("lock")
    assert not (await gugus.guests.get("web")).status.HasField("lock")


async def test_running_guest_is_cloned_as_it_was_at_one_moment(
    cluster: Cluster, gugus: Gugus, storage: Storage, hypervisor: Hypervisor
) -> None:
    hypervisor.snapshots = Snapshotting(storage, hypervisor)  # type: ignore[assignment]
    source = await make(gugus, POWER_ON)
    for disk in source.spec.disks:
        storage.content[disk.volume] = 5
    await done(gugus, await gugus.clones.clone(CloneGuestRequest(source="web", name="shop")))
    clone = await gugus.guests.get("shop")
    assert [storage.content[d.volume] for d in clone.spec.disks] == [5, 5]
    assert not any(storage.kept.values())
    assert cluster.record("n1", "web").exists()


async def test_clone_of_a_snapshot_is_as_the_source_was_then(gugus: Gugus, storage: Storage) -> None:
    source = await make(gugus)
    await done(gugus, await gugus.snapshots.create("web", "then"))
    storage.content[source.spec.disks[0].volume] = 9
    await done(gugus, await gugus.clones.clone(CloneGuestRequest(source="web", name="shop", snapshot="then")))
    clone = await gugus.guests.get("shop")
    assert [storage.content[d.volume] for d in clone.spec.disks] == [0, 0]


async def test_clone_into_another_pool_stays_where_that_is(cluster: Cluster, gugus: Gugus) -> None:
    await make(gugus)
    await gugus.pools.create(OTHER)
    await done(gugus, await gugus.clones.clone(CloneGuestRequest(source="web", name="shop", pool="other")))
    clone = await gugus.guests.get("shop")
    assert {disk.pool for disk in clone.spec.disks} == {"other"}
    assert clone.spec.pinned_node == "n1"


async def test_clone_that_fails_leaves_nothing(cluster: Cluster, gugus: Gugus, storage: Storage) -> None:
    source = await make(gugus)
    before = storage.names()
    storage.faults[f"copy {source.spec.disks[1].volume}"] = internal("COMMAND_FAILED", "the disk is on fire.")
    ended = await gugus.tasks.wait(await gugus.clones.clone(CloneGuestRequest(source="web", name="shop")))
    assert from_status(ended.error).reason == "COMMAND_FAILED"
    assert cluster.peek(Guest, "shop") is None
    assert storage.names() == before


async def test_clone_cancelled_before_its_turn_leaves_nothing(cluster: Cluster, gugus: Gugus) -> None:
    await make(gugus)
    tasks = [await gugus.clones.clone(CloneGuestRequest(source="web", name=f"shop-{i}")) for i in range(3)]
    await gugus.tasks.cancel(tasks[2].meta.name)
    await asyncio.gather(*(gugus.tasks.wait(task) for task in tasks))
    assert cluster.peek(Guest, "shop-0") is not None
    found = cluster.peek(Guest, "shop-2")
    assert found is None or not found.status.HasField("lock")


async def test_template_never_runs_and_goes_when_nothing_reads_from_it(
    cluster: Cluster, gugus: Gugus, storage: Storage
) -> None:
    source = await make(gugus)
    await done(gugus, await gugus.clones.template("web"))
    for disk in source.spec.disks:
        assert storage.volumes[POOL.name, disk.volume].kind == VOLUME_KIND_BASE
    assert await refused(gugus.guests.start("web")) == "GUEST_IS_TEMPLATE"
    assert await refused(gugus.snapshots.create("web", "a")) == "GUEST_IS_TEMPLATE"
    await done(gugus, await gugus.clones.clone(CloneGuestRequest(source="web", name="shop", start=True)))
    clone = await gugus.guests.get("shop")
    assert [d.base_volume for d in clone.spec.disks] == [d.volume for d in source.spec.disks]
    assert [storage.volumes[POOL.name, d.volume].backing for d in clone.spec.disks] == [
        d.volume for d in source.spec.disks
    ]
    assert not clone.spec.template
    with pytest.raises(GugusError):
        await gugus.guests.delete("web")
    await done(gugus, await gugus.guests.delete("shop", force=True))
    await done(gugus, await gugus.guests.delete("web"))
    assert storage.names() == {"debian"}


async def test_full_clone_of_a_template_stands_alone(gugus: Gugus, storage: Storage) -> None:
    await make(gugus)
    await done(gugus, await gugus.clones.template("web"))
    request = CloneGuestRequest(source="web", name="shop", mode=CLONE_MODE_FULL)
    await done(gugus, await gugus.clones.clone(request))
    clone = await gugus.guests.get("shop")
    assert not clone.spec.template
    assert not any(d.base_volume for d in clone.spec.disks)
    await done(gugus, await gugus.guests.delete("web"))


async def test_what_cannot_be_cloned_is_refused_at_the_door(gugus: Gugus) -> None:
    await make(gugus)
    clone = gugus.clones.clone
    assert (
        await refused(clone(CloneGuestRequest(source="web", name="shop", mode=CLONE_MODE_LINKED))) == "NOT_A_TEMPLATE"
    )
    assert await refused(clone(CloneGuestRequest(source="web", name="web"))) == "INVALID_ARGUMENT"
    linked = CloneGuestRequest(source="web", name="shop", mode=CLONE_MODE_LINKED, bytes_per_s=1 << 20)
    assert await refused(clone(linked)) == "INVALID_ARGUMENT", "nothing is copied"
    assert await refused(clone(CloneGuestRequest(source="web", name="Not A Name"))) == "INVALID_ARGUMENT"
    assert await refused(clone(CloneGuestRequest(source="nope", name="shop"))) == "GUEST_NOT_FOUND"
    assert await refused(clone(CloneGuestRequest(source="web", name="shop", snapshot="x"))) == "SNAPSHOT_NOT_FOUND"
    await make(gugus, name="other")
    assert await refused(clone(CloneGuestRequest(source="web", name="other"))) == "GUEST_ALREADY_EXISTS"


async def test_template_is_refused_while_the_guest_runs_or_has_snapshots(cluster: Cluster, gugus: Gugus) -> None:
    await make(gugus, POWER_ON)
    assert await refused(gugus.clones.template("web")) == "GUEST_RUNNING"
    await done(gugus, await gugus.guests.stop("web", force=True))
    await done(gugus, await gugus.snapshots.create("web", "a"))
    assert await refused(gugus.clones.template("web")) == "GUEST_HAS_SNAPSHOTS"


async def test_disk_of_a_stopped_guest_is_moved_and_its_old_volume_goes(
    cluster: Cluster, gugus: Gugus, storage: Storage
) -> None:
    source = await make(gugus)
    await gugus.pools.create(OTHER)
    disk = source.spec.disks[1]
    storage.content[disk.volume] = 3
    await done(gugus, await gugus.clones.move_disk("web", disk.name, "other"))
    moved = (await gugus.guests.get("web")).spec.disks[1]
    assert (moved.pool, storage.content[moved.volume]) == ("other", 3)
    await cluster.eventually(lambda: (POOL.name, disk.volume) not in storage.volumes)
    await done(gugus, await gugus.guests.start("web"))


async def test_copies_keep_to_the_rate_that_was_asked_for(gugus: Gugus, storage: Storage) -> None:
    source = await make(gugus)
    await gugus.pools.create(OTHER)
    await done(gugus, await gugus.clones.move_disk("web", source.spec.disks[1].name, "other", bytes_per_s=1000))
    await done(gugus, await gugus.clones.clone(CloneGuestRequest(source="web", name="shop", bytes_per_s=2000)))
    moved, clone = (await gugus.guests.get("web")).spec.disks[1], await gugus.guests.get("shop")
    assert [storage.rates[disk.volume] for disk in (moved, *clone.spec.disks)] == [1000, 2000, 2000]


async def test_disk_that_a_snapshot_holds_is_neither_moved_nor_flattened(gugus: Gugus) -> None:
    source = await make(gugus)
    await gugus.pools.create(OTHER)
    await done(gugus, await gugus.snapshots.create("web", "a"))
    name = source.spec.disks[0].name
    assert await refused(gugus.clones.move_disk("web", name, "other")) == "GUEST_HAS_SNAPSHOTS"
    assert await refused(gugus.clones.flatten_disk("web", name)) == "GUEST_HAS_SNAPSHOTS"
    assert await refused(gugus.clones.move_disk("web", "nope", "other")) == "DISK_NOT_FOUND"
    await done(gugus, await gugus.snapshots.delete("web", "a"))
    assert await refused(gugus.clones.move_disk("web", name, "nope")) == "POOL_NOT_FOUND"
    await done(gugus, await gugus.clones.move_disk("web", name, "other"))


async def test_move_that_fails_leaves_the_disk_where_it_was(gugus: Gugus, storage: Storage) -> None:
    source = await make(gugus)
    await gugus.pools.create(OTHER)
    disk, before = source.spec.disks[0], storage.names()
    storage.faults[f"copy {disk.volume}"] = internal("COMMAND_FAILED", "the disk is on fire.")
    ended = await gugus.tasks.wait(await gugus.clones.move_disk("web", disk.name, "other"))
    assert from_status(ended.error).reason == "COMMAND_FAILED"
    after = await gugus.guests.get("web")
    assert (after.spec.disks[0].pool, after.spec.disks[0].volume) == (disk.pool, disk.volume)
    assert storage.names() == before


async def test_flattened_disk_reads_from_nothing(gugus: Gugus, storage: Storage) -> None:
    source = await make(gugus)
    disk = source.spec.disks[0]
    assert storage.volumes[POOL.name, disk.volume].backing
    await done(gugus, await gugus.clones.flatten_disk("web", disk.name))
    assert not storage.volumes[POOL.name, disk.volume].backing
    assert not (await gugus.guests.get("web")).spec.disks[0].image
    assert await refused(gugus.clones.flatten_disk("web", disk.name)) == "DISK_NOT_LINKED"


def test_clone_of_a_guest_whose_host_lends_devices_stays_there() -> None:
    spec = GuestSpec(virtual_machine=VirtualMachineSpec(usb_devices=[UsbDevice(port="1-2")]))
    clones.keep_near(spec, "n2", {})
    assert spec.pinned_node == "n2"
    free = GuestSpec()
    clones.keep_near(free, "n2", {})
    assert not free.pinned_node


async def make_container(gugus: Gugus, storage: Storage) -> Guest:
    storage.image_format = VOLUME_FORMAT_ARCHIVE
    await done(gugus, await gugus.pools.import_image(POOL.name, "root", "/root.tar"))
    disks = [DiskSpec(pool=POOL.name, image="root"), DiskSpec(pool=POOL.name)]
    disks[1].settings.mount_path = "/srv/data"
    spec = GuestSpec(kind=GUEST_KIND_CONTAINER, memory_bytes=16 << 20, disks=disks, power=POWER_OFF)
    await done(gugus, await gugus.guests.create("box", spec))
    return await gugus.guests.get("box")


async def test_container_is_cloned_in_full(cluster: Cluster, gugus: Gugus, storage: Storage) -> None:
    source = await make_container(gugus, storage)
    storage.content[source.spec.disks[1].volume] = 7
    await done(gugus, await gugus.clones.clone(CloneGuestRequest(source="box", name="copy", start=True)))
    await cluster.eventually(lambda: cluster.record("n1", "copy").exists())
    clone = await gugus.guests.get("copy")
    assert [storage.content[d.volume] for d in clone.spec.disks] == [0, 7]
    assert not any(d.image or d.base_volume for d in clone.spec.disks)
    assert clone.spec.disks[1].settings.mount_path == "/srv/data"
    changed = await gugus.guests.change("copy", lambda spec: setattr(spec, "notes", "changed"))
    assert changed is not None
    await done(gugus, changed)
    await done(gugus, await gugus.clones.clone(CloneGuestRequest(source="copy", name="again")))


@pytest.mark.parametrize("mode", [CLONE_MODE_LINKED, CLONE_MODE_FULL])
async def test_template_of_a_container_is_cloned(mode: int, cluster: Cluster, gugus: Gugus, storage: Storage) -> None:
    source = await make_container(gugus, storage)
    await done(gugus, await gugus.clones.template("box"))
    request = CloneGuestRequest(source="box", name="copy", mode=mode, start=True)  # type: ignore[arg-type]
    await done(gugus, await gugus.clones.clone(request))
    await cluster.eventually(lambda: cluster.record("n1", "copy").exists())
    bases = [d.base_volume for d in (await gugus.guests.get("copy")).spec.disks]
    assert bases == ([d.volume for d in source.spec.disks] if mode == CLONE_MODE_LINKED else ["", ""])
    await done(gugus, await gugus.guests.stop("copy", force=True))
    await done(gugus, await gugus.clones.clone(CloneGuestRequest(source="copy", name="again")))


async def test_linked_clone_in_a_pool_that_cannot_is_refused_at_the_door(
    cluster: Cluster, gugus: Gugus, storage: Storage
) -> None:
    await make_container(gugus, storage)
    await done(gugus, await gugus.clones.template("box"))
    pool = await cluster.store.require(Pool, POOL.name)
    tree = pool.status.nodes["n1"].formats.add(format=VOLUME_FORMAT_FILESYSTEM)
    tree.refusals.add(ability=POOL_ABILITY_CLONE, reason="plain folders cannot be cloned")
    await cluster.store.txn(Txn().put(pool, expect_revision=pool.meta.revision))
    request = CloneGuestRequest(source="box", name="copy")
    with pytest.raises(GugusError) as caught:
        await gugus.clones.clone(request)
    assert (caught.value.reason, "--full" in caught.value.remedy) == ("CLONE_UNSUPPORTED", True)
    request.mode = CLONE_MODE_FULL
    await done(gugus, await gugus.clones.clone(request))


async def test_full_clone_of_a_running_container_in_plain_folders_is_refused_at_the_door(
    cluster: Cluster, gugus: Gugus, storage: Storage
) -> None:
    await make_container(gugus, storage)
    pool = await cluster.store.require(Pool, POOL.name)
    tree = pool.status.nodes["n1"].formats.add(format=VOLUME_FORMAT_FILESYSTEM)
    tree.refusals.add(ability=POOL_ABILITY_SNAPSHOT, reason="plain folders cannot be snapshotted")
    await cluster.store.txn(Txn().put(pool, expect_revision=pool.meta.revision))
    await done(gugus, await gugus.guests.start("box"))
    await cluster.eventually(lambda: observed(cluster, "box") == GUEST_STATE_RUNNING)
    with pytest.raises(GugusError) as caught:
        await gugus.clones.clone(CloneGuestRequest(source="box", name="copy"))
    assert (caught.value.reason, "Stop it first" in caught.value.remedy) == ("CLONE_UNSUPPORTED", True)
    assert "plain folders cannot be snapshotted" in caught.value.message
    assert "clone-guest" not in [task.kind for task in cluster.store.peek_all(Task)]
    await done(gugus, await gugus.guests.stop("box", force=True))
    await cluster.eventually(lambda: observed(cluster, "box") == GUEST_STATE_STOPPED)
    await done(gugus, await gugus.clones.clone(CloneGuestRequest(source="box", name="copy")))
