"""Changing guests from the call to the node: what can be changed at once is, the rest is told as pending, and no volume leaks."""

import asyncio

import pytest
from gugus.agent.v1.machine_pb2 import FIRMWARE_KIND_UEFI
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STOPPED,
    POWER_OFF,
    POWER_ON,
    Guest,
    GuestSpec,
)
from gugus.cluster.v1.pool_pb2 import Image
from gugus.cluster.v1.task_pb2 import Task

from client.sdk import Gugus
from client.tasks import TaskFailed, check
from common.errors import GugusError, resource_exhausted
from manager.controllers import guest_retries
from tests.unit.manager.cluster import IMAGE, POOL, Cluster, guest_spec
from tests.unit.manager.hypervisor import Hypervisor
from tests.unit.manager.storage import Storage

MIB = 2**20


async def done(gugus: Gugus, task: Task | None) -> Task:
    assert task is not None, "nothing was changed"
    return check(await gugus.tasks.wait(task))


async def create(gugus: Gugus, spec: GuestSpec | None = None) -> Guest:
    await done(gugus, await gugus.guests.create("web", spec or guest_spec()))
    return await gugus.guests.get("web")


def look(cluster: Cluster) -> Guest:
    found = cluster.peek(Guest, "web")
    assert found is not None
    return found


def more_memory(spec: GuestSpec) -> None:
    spec.memory_bytes = 32 * MIB


def more_disk(spec: GuestSpec) -> None:
    spec.disks.add(name="data", pool=POOL.name, size_bytes=MIB)


def less_disk(spec: GuestSpec) -> None:
    del spec.disks[1:]


async def test_change_of_a_running_guest_reaches_its_node(cluster: Cluster, gugus: Gugus) -> None:
    await create(gugus)
    life = cluster.life("n1", "web")
    await done(gugus, await gugus.guests.change("web", more_memory))
    after = look(cluster)
    assert after.status.applied_spec_number == after.spec_number == 2
    assert cluster.agents["n1"].state.guests["web"].memory_bytes == 32 * MIB
    assert cluster.life("n1", "web") == life


async def test_change_of_a_stopped_guest_reaches_its_node_too(cluster: Cluster, gugus: Gugus) -> None:
    await create(gugus, guest_spec(POWER_OFF))
    await done(gugus, await gugus.guests.change("web", more_memory))
    assert cluster.agents["n1"].state.guests["web"].memory_bytes == 32 * MIB
    assert look(cluster).status.phase == GUEST_PHASE_STOPPED


async def test_what_waits_for_the_next_start_is_told_until_then(cluster: Cluster, gugus: Gugus) -> None:
    await create(gugus)

    def firmware(spec: GuestSpec) -> None:
        spec.virtual_machine.firmware.kind = FIRMWARE_KIND_UEFI

    task = await done(gugus, await gugus.guests.change("web", firmware))
    fields = [change.field for change in look(cluster).status.pending]
    assert fields
    assert fields[0].startswith("virtual_machine.firmware")
    assert fields[0] in task.log[-1].text
    await done(gugus, await gugus.guests.reboot("web"))
    assert not look(cluster).status.pending


async def test_new_disk_is_made_and_a_removed_one_is_kept_until_it_is_to_go(
    cluster: Cluster, gugus: Gugus, storage: Storage
) -> None:
    await create(gugus)
    await done(gugus, await gugus.guests.change("web", more_disk))
    root, data = (disk.volume for disk in look(cluster).spec.disks)
    assert storage.names() == {IMAGE, root, data}
    await done(gugus, await gugus.guests.change("web", less_disk))
    assert [disk.volume for disk in look(cluster).status.unused_disks] == [data]
    assert storage.names() == {IMAGE, root, data}
    spec = look(cluster).spec
    await done(gugus, await gugus.guests.update("web", spec, delete_unused_volumes=[data]))
    await cluster.eventually(lambda: storage.names() == {IMAGE, root})
    await cluster.eventually(lambda: not look(cluster).status.leaving_disks)


async def test_removed_disk_goes_at_once_when_that_is_said(cluster: Cluster, gugus: Gugus, storage: Storage) -> None:
    await create(gugus)
    await done(gugus, await gugus.guests.change("web", more_disk))
    await done(gugus, await gugus.guests.change("web", less_disk, delete_removed_disks=True))
    await cluster.eventually(lambda: storage.names() == {IMAGE, look(cluster).spec.disks[0].volume})


async def test_guest_goes_with_its_unused_disks(cluster: Cluster, gugus: Gugus, storage: Storage) -> None:
    await create(gugus)
    await done(gugus, await gugus.guests.change("web", more_disk))
    await done(gugus, await gugus.guests.change("web", less_disk))
    await done(gugus, await gugus.guests.delete("web", force=True))
    assert storage.names() == {IMAGE}


async def test_kept_disks_of_a_deleted_guest_are_images(cluster: Cluster, gugus: Gugus, storage: Storage) -> None:
    volume = (await create(gugus)).spec.disks[0].volume
    await done(gugus, await gugus.guests.delete("web", force=True, keep_disks=True))
    assert storage.names() == {IMAGE, volume}
    kept = cluster.peek(Image, f"{POOL.name}.{volume}")
    assert kept is not None
    assert kept.meta.labels["kept-from"] == "web"


async def test_change_that_fails_leaves_the_guest_running_and_can_be_repeated(
    cluster: Cluster, gugus: Gugus, storage: Storage
) -> None:
    await create(gugus)
    life = cluster.life("n1", "web")
    storage.faults[""] = resource_exhausted("NO_SPACE", "the pool is full.")
    with pytest.raises(TaskFailed) as caught:
        await done(gugus, await gugus.guests.change("web", more_disk))
    assert caught.value.reason == "NO_SPACE"
    assert look(cluster).status.phase == GUEST_PHASE_RUNNING
    assert "the pool is full" in look(cluster).status.reason
    assert cluster.life("n1", "web") == life
    del storage.faults[""]
    await done(gugus, await gugus.guests.update("web", look(cluster).spec))
    assert look(cluster).spec.disks[1].volume in storage.names()


async def test_guest_that_cannot_be_changed_is_still_stopped_and_started(
    cluster: Cluster, gugus: Gugus, storage: Storage
) -> None:
    await create(gugus)
    storage.faults[""] = resource_exhausted("NO_SPACE", "the pool is full.")
    with pytest.raises(TaskFailed):
        await done(gugus, await gugus.guests.change("web", more_disk))
    await done(gugus, await gugus.guests.stop("web"))
    await done(gugus, await gugus.guests.change("web", less_disk))
    del storage.faults[""]
    await done(gugus, await gugus.guests.start("web"))
    await cluster.eventually(lambda: storage.names() == {IMAGE, look(cluster).spec.disks[0].volume})


async def test_change_after_failed_ones_is_tried_at_once(
    cluster: Cluster, gugus: Gugus, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_retries, "backoff_s", lambda failures: 3600.0)
    await create(gugus)
    storage.faults[""] = resource_exhausted("NO_SPACE", "the pool is full.")
    with pytest.raises(TaskFailed):
        await done(gugus, await gugus.guests.change("web", more_disk))
    async with asyncio.timeout(5):
        await done(gugus, await gugus.guests.change("web", less_disk))


async def test_update_may_change_power_too(cluster: Cluster, gugus: Gugus) -> None:
    await create(gugus)

    def off(spec: GuestSpec) -> None:
        more_memory(spec)
        spec.power = POWER_OFF

    await done(gugus, await gugus.guests.change("web", off))
    assert look(cluster).status.phase == GUEST_PHASE_STOPPED
    assert not cluster.record("n1", "web").exists()

    def on(spec: GuestSpec) -> None:
        spec.power = POWER_ON

    await done(gugus, await gugus.guests.change("web", on))
    assert cluster.record("n1", "web").exists()


async def test_spec_changed_meanwhile_is_refused(cluster: Cluster, gugus: Gugus) -> None:
    guest = await create(gugus)
    await done(gugus, await gugus.guests.change("web", more_memory))
    with pytest.raises(GugusError) as caught:
        await gugus.guests.update("web", guest.spec, spec_number=guest.spec_number)
    assert caught.value.reason == "SPEC_CHANGED"


async def test_protected_guest_is_not_deleted(cluster: Cluster, gugus: Gugus) -> None:
    spec = guest_spec()
    spec.protected = True
    await create(gugus, spec)
    with pytest.raises(GugusError) as caught:
        await gugus.guests.delete("web", force=True)
    assert caught.value.reason == "GUEST_PROTECTED"
    assert "`gugus guest protect web --off`" in caught.value.remedy
    await done(gugus, await gugus.guests.change("web", lambda spec: setattr(spec, "protected", False)))
    await done(gugus, await gugus.guests.delete("web", force=True))


async def test_more_than_its_node_has_is_refused(cluster: Cluster, gugus: Gugus) -> None:
    await create(gugus)
    with pytest.raises(GugusError) as caught:
        await gugus.guests.change("web", lambda spec: setattr(spec, "memory_bytes", 2**45))
    assert caught.value.reason == "NO_NODE_FITS"
    assert "memory" in caught.value.message
    await done(gugus, await gugus.guests.change("web", more_memory))


async def test_all_faults_are_told_at_once(gugus: Gugus) -> None:
    spec = guest_spec()
    spec.cpus, spec.boot.order = 10_000, 99_999
    spec.disks[0].settings.serial = "?"
    with pytest.raises(GugusError) as caught:
        await gugus.guests.create("web", spec)
    assert {violation.field for violation in caught.value.violations} == {
        "spec.cpus",
        "spec.boot.order",
        "spec.disks[0].settings.serial",
    }


async def test_change_survives_the_end_of_the_manager(cluster: Cluster, gugus: Gugus, storage: Storage) -> None:
    await create(gugus)
    await cluster.stop_agent()
    task = await gugus.guests.change("web", more_disk)
    assert task is not None
    await cluster.stop_manager()
    cluster.start_manager()
    cluster.start_agent("n1", Hypervisor(cluster.folder / "n1"))
    check(await cluster.ended(task))
    assert look(cluster).spec.disks[1].volume in storage.names()
