"""Idempotency keys: a call that is repeated with its key, because its answer was lost, does its work once and gets the same answer."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from gugus.agent.v1.network_pb2 import BridgeNetwork, NetworkSpec
from gugus.agent.v1.volume_pb2 import DirPool, PoolSpec
from gugus.cluster.v1.event_pb2 import Event
from gugus.cluster.v1.guest_pb2 import POWER_OFF, Guest, HaSpec
from gugus.cluster.v1.network_pb2 import Network
from gugus.cluster.v1.pool_pb2 import Pool
from gugus.cluster.v1.task_pb2 import Task

from client.sdk import Gugus
from client.tasks import check
from common.errors import GugusError
from tests.unit.manager.cluster import IMAGE, POOL, Cluster, guest_spec
from tests.unit.manager.hypervisor import Hypervisor
from tests.unit.manager.storage import Storage

KEY = "a-key"
OTHER_POOL = PoolSpec(name="other", dir=DirPool(path="/srv/other"))
LAN = NetworkSpec(name="lan", bridge=BridgeNetwork(bridge="br-lan"))

Begin = Callable[[Gugus], Awaitable[Task]]

BEGUN: dict[str, Begin] = {
    "create-guest": lambda gugus: gugus.guests.create("db", guest_spec(), request_id=KEY),
    "start-guest": lambda gugus: gugus.guests.start("web", request_id=KEY),
    "stop-guest": lambda gugus: gugus.guests.stop("web", request_id=KEY),
    "delete-guest": lambda gugus: gugus.guests.delete("web", force=True, request_id=KEY),
    "import-image": lambda gugus: gugus.pools.import_image(POOL.name, "alpine", "/alpine.qcow2", request_id=KEY),
    "delete-image": lambda gugus: gugus.pools.delete_image(POOL.name, "unused", request_id=KEY),
}
"""Calls that begin a task, with one key. They find a guest web and an image that no guest uses."""


@pytest.fixture
async def gugus(gugus: Gugus) -> Gugus:
    check(await gugus.tasks.wait(await gugus.guests.create("web", guest_spec(POWER_OFF))))
    check(await gugus.tasks.wait(await gugus.pools.import_image(POOL.name, "unused", "/unused.qcow2")))
    return gugus


def tasks(cluster: Cluster, kind: str) -> list[str]:
    """Ids of the tasks of a kind; what the fixture made apart."""
    return [task.meta.name for task in cluster.store.peek_all(Task) if task.kind == kind]


@pytest.mark.parametrize("kind", BEGUN)
async def test_repeated_call_gets_the_same_task_while_it_runs_and_when_it_has_ended(
    cluster: Cluster, gugus: Gugus, kind: str
) -> None:
    before = tasks(cluster, kind)
    begin = BEGUN[kind]
    first, again = await begin(gugus), await begin(gugus)
    assert again.meta.name == first.meta.name
    ended = check(await cluster.ended(first))
    assert await begin(gugus) == ended
    assert len(tasks(cluster, kind)) == len(before) + 1


@pytest.mark.parametrize("kind", BEGUN)
async def test_call_that_is_repeated_before_it_was_answered_gets_the_same_task(
    cluster: Cluster, gugus: Gugus, kind: str
) -> None:
    begin = BEGUN[kind]
    answers = await asyncio.gather(*(begin(gugus) for _ in range(5)))
    assert len({task.meta.name for task in answers}) == 1
    check(await cluster.ended(answers[0]))


async def test_repeated_calls_do_their_work_once(
    cluster: Cluster, gugus: Gugus, storage: Storage, hypervisor: Hypervisor
) -> None:
    for kind in ("create-guest", "import-image"):
        for _ in range(3):
            task = await BEGUN[kind](gugus)
        check(await cluster.ended(task))
        await BEGUN[kind](gugus)
    await cluster.beats(2)
    volume = (await gugus.guests.get("db")).spec.disks[0].volume
    assert storage.made[volume] == storage.made["alpine"] == 1
    assert hypervisor.asked == ["start db"]


async def test_key_of_other_work_is_another_key(cluster: Cluster, gugus: Gugus) -> None:
    start = check(await cluster.ended(await BEGUN["start-guest"](gugus)))
    stop = check(await cluster.ended(await BEGUN["stop-guest"](gugus)))
    assert stop.meta.name != start.meta.name
    await gugus.pools.create(OTHER_POOL, request_id=KEY)
    await gugus.networks.create(LAN, request_id=KEY)


async def test_late_repetition_does_not_undo_what_was_asked_for_since(cluster: Cluster, gugus: Gugus) -> None:
    started = check(await cluster.ended(await gugus.guests.start("web", request_id=KEY)))
    check(await cluster.ended(await gugus.guests.stop("web")))
    assert await gugus.guests.start("web", request_id=KEY) == started
    guest = cluster.store.peek(Guest, "web")
    assert guest is not None
    assert guest.spec.power == POWER_OFF


@pytest.mark.parametrize("kind", BEGUN)
async def test_key_of_another_actor_is_another_key(cluster: Cluster, gugus: Gugus, kind: str) -> None:
    first = await BEGUN[kind](gugus)
    async with cluster.client(operator="bob") as bob:
        try:
            second = await BEGUN[kind](bob)
        except GugusError as error:
            # It was done already, or is being done: bob is told so, and never that it was he who did it.
            assert error.reason.endswith(("_ALREADY_EXISTS", "_NOT_FOUND"))  # noqa: PT017
        else:
            assert second.meta.name != first.meta.name
            assert second.actor == "operator bob"
    check(await cluster.ended(first))


async def test_repeated_creation_of_a_pool_or_network_gets_the_one_that_was_made(
    cluster: Cluster, gugus: Gugus
) -> None:
    pools = [await gugus.pools.create(OTHER_POOL, request_id="pool") for _ in range(3)]
    networks = await asyncio.gather(*(gugus.networks.create(LAN, request_id="network") for _ in range(3)))
    assert len({pool.meta.uid for pool in pools}) == 1
    assert len({network.meta.uid for network in networks}) == 1
    made = [event.about for event in cluster.store.peek_all(Event) if event.reason.endswith("_CREATED")]
    assert made.count("pool/other") == made.count("network/lan") == 1
    for call in (gugus.pools.create(OTHER_POOL), gugus.networks.create(LAN)):
        with pytest.raises(GugusError) as caught:
            await call
        assert caught.value.reason.endswith("_ALREADY_EXISTS"), "with another key it is another wish"


async def test_key_of_another_actor_gets_no_pool_of_the_first(cluster: Cluster, gugus: Gugus) -> None:
    await gugus.pools.create(OTHER_POOL, request_id=KEY)
    async with cluster.client(operator="bob") as bob:
        with pytest.raises(GugusError) as caught:
            await bob.pools.create(OTHER_POOL, request_id=KEY)
    assert caught.value.reason == "POOL_ALREADY_EXISTS"


async def test_keys_are_known_to_a_manager_that_was_started_again_from_its_disk(cluster: Cluster, gugus: Gugus) -> None:
    pool = await gugus.pools.create(OTHER_POOL, request_id=KEY)
    first = {kind: await BEGUN[kind](gugus) for kind in ("create-guest", "import-image")}
    await cluster.stop_manager()
    cluster.start_manager()
    again = {kind: await BEGUN[kind](gugus) for kind in first}
    assert {kind: task.meta.name for kind, task in again.items()} == {k: task.meta.name for k, task in first.items()}
    for task in first.values():
        check(await cluster.ended(task))
    assert (await gugus.pools.create(OTHER_POOL, request_id=KEY)).meta.uid == pool.meta.uid


async def test_keys_are_known_to_the_manager_that_acts_next(tmp_path: Path, storage: Storage) -> None:
    async with Cluster(tmp_path, voters=3) as cluster:
        for name in cluster.voters:
            cluster.start_manager(name)
        await cluster.eventually(lambda: cluster.acting)
        node = cluster.acting
        cluster.start_agent(node)
        await cluster.online(node)
        async with cluster.client() as gugus:
            await cluster.make_image(gugus)
            task = await BEGUN["create-guest"](gugus)
            pool = await gugus.pools.create(OTHER_POOL, request_id=KEY)
            await cluster.stop_manager(node)
            again = await BEGUN["create-guest"](gugus)
            assert again.meta.name == task.meta.name
            assert (await gugus.pools.create(OTHER_POOL, request_id=KEY)).meta.uid == pool.meta.uid
            assert [pool.meta.name for pool in cluster.store.peek_all(Pool)] == [OTHER_POOL.name, POOL.name]
            check(await cluster.ended(task))
    assert storage.made[IMAGE] == 1


async def test_a_repeated_deletion_of_a_network_or_pool_spares_a_new_one_of_its_name(gugus: Gugus) -> None:
    """The answer was lost; before the call is repeated somebody makes another one of that name."""
    for make, delete, get in (
        (lambda: gugus.networks.create(LAN), gugus.networks.delete, gugus.networks.get),
        (lambda: gugus.pools.create(OTHER_POOL), gugus.pools.delete, gugus.pools.get),
    ):
        name = (await make()).meta.name
        await delete(name, request_id=KEY)
        await delete(name, request_id=KEY)  # gone, or about to go: the same answer
        made = await _made_anew(make)
        await delete(name, request_id=KEY)
        assert (await get(name)).meta.uid == made.meta.uid
        assert not (await get(name)).meta.deleting
        await delete(name, request_id="another-key")


async def test_a_repeated_ha_setting_does_not_undo_a_later_one(gugus: Gugus) -> None:
    await gugus.guests.set_ha("web", HaSpec(enabled=True), request_id=KEY)
    await gugus.guests.set_ha("web", HaSpec(enabled=False))
    assert not (await gugus.guests.set_ha("web", HaSpec(enabled=True), request_id=KEY)).spec.ha.enabled
    assert (await gugus.guests.set_ha("web", HaSpec(enabled=True), request_id="another-key")).spec.ha.enabled


async def _made_anew(make: Callable[[], Awaitable[Pool | Network]]) -> Pool | Network:
    """Make what is being deleted still, once it is gone."""
    for _ in range(200):
        with suppress(GugusError):  # <KIND>_ALREADY_EXISTS
            return await make()
        await asyncio.sleep(0.05)
    raise AssertionError("it is not gone")
