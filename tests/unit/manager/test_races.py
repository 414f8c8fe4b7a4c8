"""Calls that meet one another, and controllers that write meanwhile: none is refused for it, and nothing is deleted under a guest."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from gugus.agent.v1.network_pb2 import BridgeNetwork, NetworkSpec
from gugus.agent.v1.task_pb2 import TASK_STATE_FAILED, TASK_STATE_SUCCEEDED
from gugus.cluster.v1.guest_pb2 import POWER_OFF, Guest, NicSpec
from gugus.cluster.v1.network_pb2 import Network
from gugus.cluster.v1.pool_pb2 import Image, Pool

from client.sdk import Gugus
from client.tasks import TaskFailed, check
from common.errors import GugusError, precondition
from manager.store import Store, Txn, TxnResult
from tests.unit.manager.cluster import IMAGE, POOL, Cluster, guest_spec
from tests.unit.manager.storage import Storage

Call = Callable[[Gugus], Awaitable[Any]]

LAN = NetworkSpec(name="lan", bridge=BridgeNetwork(bridge="br-lan"))
EMPTY = POOL.__class__(name="empty", dir=POOL.dir)

ABOUT: dict[str, tuple[type[Any], str, Call]] = {
    "start of a guest": (Guest, "web", lambda gugus: gugus.guests.start("web")),
    "stop of a guest": (Guest, "web", lambda gugus: gugus.guests.stop("web")),
    "deletion of a guest": (Guest, "web", lambda gugus: gugus.guests.delete("web")),
    "deletion of a pool": (Pool, "empty", lambda gugus: gugus.pools.delete("empty")),
    "deletion of a network": (Network, "lan", lambda gugus: gugus.networks.delete("lan")),
    "deletion of an image": (Image, f"{POOL.name}.{IMAGE}", lambda gugus: gugus.pools.delete_image(POOL.name, IMAGE)),
}


@pytest.fixture
async def gugus(gugus: Gugus) -> Gugus:
    await gugus.networks.create(LAN)
    await gugus.pools.create(EMPTY)
    return gugus


async def make_web(gugus: Gugus) -> None:
    """Make a guest that reads from no image."""
    spec = guest_spec(POWER_OFF)
    spec.disks[0].image, spec.disks[0].size_bytes = "", 1 << 20
    check(await gugus.tasks.wait(await gugus.guests.create("web", spec)))


@pytest.mark.parametrize(("kind", "name", "call"), ABOUT.values(), ids=ABOUT)
async def test_change_by_a_controller_just_then_is_no_reason_to_refuse_the(
    cluster: Cluster, gugus: Gugus, monkeypatch: pytest.MonkeyPatch, kind: type[Any], name: str, call: Call
) -> None:
    await make_web(gugus)
    get, touched = Store.get, list[str]()

    def touch(obj: Any) -> Any:
        obj.meta.labels["touched"] = "yes"
        return obj

    async def get_and_touch(self: Store, kind_: type[Any], name_: str) -> Any:
        found = await get(self, kind_, name_)
        if (kind_, name_) == (kind, name) and not touched:
            touched.append(name_)
            await self.update(kind_, name_, touch)
        return found

    monkeypatch.setattr(Store, "get", get_and_touch)
    await call(gugus)
    assert touched


async def test_calls_about_one_guest_at_once_are_all_accepted_and_all_end(cluster: Cluster, gugus: Gugus) -> None:
    await make_web(gugus)
    calls = [call for _ in range(4) for call in (gugus.guests.start("web"), gugus.guests.stop("web"))]
    tasks = [await cluster.ended(task) for task in await asyncio.gather(*calls)]
    assert {task.state for task in tasks} <= {TASK_STATE_SUCCEEDED, TASK_STATE_FAILED}
    guest = cluster.store.peek(Guest, "web")
    assert guest is not None
    assert cluster.record("n1", "web").exists() == (guest.spec.power != POWER_OFF)


def guest_with_all() -> Any:
    spec = guest_spec(POWER_OFF)
    spec.nics.append(NicSpec(network=LAN.name))
    return spec


DELETIONS: dict[str, Call] = {
    "POOL_IN_USE": lambda gugus: gugus.pools.delete(POOL.name),
    "IMAGE_IN_USE": lambda gugus: gugus.pools.delete_image(POOL.name, IMAGE),
    "NETWORK_IN_USE": lambda gugus: gugus.networks.delete(LAN.name),
}


@pytest.mark.parametrize("reason", DELETIONS)
async def test_nothing_is_deleted_under_a_guest_that_is_just_being_written_down(
    cluster: Cluster, gugus: Gugus, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    asked, may_commit, txn = asyncio.Event(), asyncio.Event(), Store.txn

    async def txn_of_guests_later(self: Store, wanted: Txn) -> TxnResult:
        if any(put.key == "guest/web" for put in wanted.message.puts):
            asked.set()
            await may_commit.wait()
        return await txn(self, wanted)

    monkeypatch.setattr(Store, "txn", txn_of_guests_later)
    creation = asyncio.create_task(gugus.guests.create("web", guest_with_all()))
    await asked.wait()
    deletion = asyncio.ensure_future(DELETIONS[reason](gugus))
    await asyncio.sleep(0.1)  # if it did not wait, it would be through now
    may_commit.set()
    check(await cluster.ended(await creation))
    with pytest.raises(GugusError) as caught:
        await deletion
    assert caught.value.reason == reason


async def test_image_that_is_being_deleted_is_given_to_no_new_guest_until_that_failed(
    cluster: Cluster, gugus: Gugus, storage: Storage
) -> None:
    storage.may_delete.clear()
    deletion = await gugus.pools.delete_image(POOL.name, IMAGE)
    with pytest.raises(GugusError) as caught:
        await gugus.guests.create("web", guest_spec())
    assert caught.value.field == "spec.disks[0].image"
    storage.faults[IMAGE] = precondition("VOLUME_IN_USE", "somebody reads from it.")
    storage.may_delete.set()
    with pytest.raises(TaskFailed):
        check(await cluster.ended(deletion))
    storage.faults.clear()
    check(await cluster.ended(await gugus.guests.create("web", guest_spec())))


async def test_pool_that_is_being_deleted_gets_no_image(cluster: Cluster, gugus: Gugus) -> None:
    await cluster.stop_agent()  # its node keeps it for now
    await gugus.pools.delete("empty")
    with pytest.raises(GugusError) as caught:
        await gugus.pools.import_image("empty", "alpine", "/alpine.qcow2")
    assert caught.value.reason == "POOL_DELETING"
