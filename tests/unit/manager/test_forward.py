"""Any manager's address works: three managers, and calls that reach one that does not act."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import grpc
import pytest
import pytest_asyncio
from gugus.agent.v1.task_pb2 import TASK_STATE_RUNNING, TASK_STATE_SUCCEEDED
from gugus.agent.v1.volume_pb2 import DirPool, PoolSpec
from gugus.cluster.v1 import guest_pb2, pool_pb2, pool_pb2_grpc
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.task_pb2 import Task

from common.errors import GugusError, from_rpc_error
from common.identity.names import Identity, Role, any_of
from common.rpc.channel import open_channel
from manager.services.forward import ACTOR_HEADER, Forward
from manager.store import Change, Store
from manager.store.kinds import new
from tests.unit.manager.cluster import Cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Managers only: calls about nodes and guests are not what is passed on here."""
    async with Cluster(tmp_path_factory.mktemp("cluster"), voters=3) as cluster:
        for name in cluster.voters:
            cluster.start_manager(name)
        await cluster.eventually(lambda: cluster.acting and cluster.store.peek_all(Node))
        await all_know_who_acts(cluster)
        yield cluster


async def all_know_who_acts(cluster: Cluster) -> None:
    def agree() -> bool:
        holders = {manager._context.acting.holder() for manager in cluster.managers.values()}
        return holders == {cluster.acting}

    await cluster.eventually(agree)


def followers(cluster: Cluster) -> list[str]:
    return [name for name in cluster.managers if name != cluster.acting]


def pool(name: str) -> PoolSpec:
    return PoolSpec(name=name, dir=DirPool(path=f"/srv/{name}", shared=True))


def creator(cluster: Cluster, name: str) -> str:
    """Return who made a pool, as the event about it says."""
    return next(e.message for e in cluster.events() if (e.about, e.reason) == (f"pool/{name}", "POOL_CREATED"))


async def create_pool(
    cluster: Cluster, at: str, name: str, peer: Identity, *metadata: tuple[str, str]
) -> pool_pb2.Pool:
    """Make a pool by a bare call with metadata of one's choice. Raises GugusError."""
    credentials = cluster.pki(peer.name, peer.role).credentials(peer.role)
    verify = any_of(Role.MANAGER, cluster.cluster_id)
    async with open_channel(cluster.endpoint(at), credentials, verify=verify) as channel:
        stub: Any = pool_pb2_grpc.PoolServiceStub(channel)
        try:
            made: pool_pb2.Pool = await stub.CreatePool(pool_pb2.CreatePoolRequest(spec=pool(name)), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
    return made


def member(cluster: Cluster, role: Role, name: str) -> Identity:
    return Identity(cluster.cluster_id, role, name)


async def test_follower_passes_a_call_to_the_acting_manager_and_its_answer_back(cluster: Cluster) -> None:
    for follower in followers(cluster):
        async with cluster.client(follower) as gugus:
            made = await gugus.pools.create(pool(f"by-{follower}"))
            assert made.meta.name == f"by-{follower}"
            assert made == cluster.store.peek(pool_pb2.Pool, f"by-{follower}")


async def test_each_manager_tells_itself_how_the_cluster_is(cluster: Cluster) -> None:
    for name in cluster.voters:
        async with cluster.client(name) as gugus:
            status = await gugus.cluster.status()
            assert (status.answered_by, status.acting) == (name, cluster.acting)


async def test_call_that_was_passed_on_is_its_callers_and_not_the_followers(cluster: Cluster) -> None:
    async with cluster.client(followers(cluster)[0], operator="bob") as bob:
        await bob.pools.create(pool("bobs"))
    assert creator(cluster, "bobs") == "created by operator bob"


async def test_claim_to_be_another_is_believed_of_a_manager(cluster: Cluster) -> None:
    alice, peer = member(cluster, Role.OPERATOR, "alice"), member(cluster, Role.MANAGER, followers(cluster)[0])
    await create_pool(cluster, cluster.acting, "claimed", peer, (ACTOR_HEADER, alice.uri))
    assert creator(cluster, "claimed") == "created by operator alice"


async def test_claim_to_be_another_is_not_believed_of_an_operator(cluster: Cluster) -> None:
    alice, mallory = member(cluster, Role.OPERATOR, "alice"), member(cluster, Role.OPERATOR, "mallory")
    for at, name in ((cluster.acting, "direct"), (followers(cluster)[0], "passed-on")):
        await create_pool(cluster, at, name, mallory, (ACTOR_HEADER, alice.uri))
        assert creator(cluster, name) == "created by operator mallory"


async def test_node_gets_no_further_by_a_claim(cluster: Cluster) -> None:
    alice, node = member(cluster, Role.OPERATOR, "alice"), member(cluster, Role.NODE, "n1")
    for at in cluster.voters:
        with pytest.raises(GugusError) as caught:
            await create_pool(cluster, at, "stolen", node, (ACTOR_HEADER, alice.uri))
        assert caught.value.reason == "ROLE_NOT_ALLOWED"


async def test_error_survives_being_passed_on_with_all_its_details(cluster: Cluster) -> None:
    spec = guest_pb2.GuestSpec(cpus=100_000, memory_bytes=1, disks=[guest_pb2.DiskSpec()] * 20)
    errors = []
    for at in (cluster.acting, followers(cluster)[0]):
        async with cluster.client(at) as gugus:
            for call in (gugus.guests.create("Not A Name", spec), gugus.guests.get("nobody")):
                with pytest.raises(GugusError) as caught:
                    await call
                errors.append(caught.value)
    for here, passed_on in ((errors[0], errors[2]), (errors[1], errors[3])):
        assert vars(passed_on) == vars(here)
    assert len(errors[2].violations) > 3
    assert errors[3].metadata == {"kind": "guest", "name": "nobody"}


async def test_stream_is_passed_on_to_its_end(cluster: Cluster) -> None:
    task = new(Task, "a-task")
    await cluster.store.create(task)
    async with cluster.client(followers(cluster)[0]) as gugus:
        seen: list[int] = []

        async def follow() -> None:
            async with aclosing(gugus.tasks.follow("a-task")) as changes:
                async for change in changes:
                    seen.append(change.progress_percent)

        following = asyncio.create_task(follow())
        await cluster.eventually(lambda: seen == [0])
        await cluster.store.update(Task, "a-task", lambda task: progressed(task, 50))
        await cluster.eventually(lambda: seen == [0, 50])
        await cluster.store.update(Task, "a-task", lambda task: progressed(task, 100))
        await following
        assert seen == [0, 50, 100]


def progressed(task: Task, percent: int) -> Task:
    task.progress_percent = percent
    task.state = TASK_STATE_SUCCEEDED if percent == 100 else TASK_STATE_RUNNING
    return task


async def test_error_of_a_stream_survives_being_passed_on(cluster: Cluster) -> None:
    async with cluster.client(followers(cluster)[0]) as gugus, aclosing(gugus.tasks.follow("no-task")) as changes:
        with pytest.raises(GugusError) as caught:
            await anext(changes)
    assert caught.value.reason == "TASK_NOT_FOUND"


async def test_stream_that_its_caller_gave_up_ends_at_the_acting_manager_too(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching, watch = [0], Store.watch

    async def counted(self: Store, prefixes: Sequence[str] = (), **options: Any) -> AsyncIterator[Change]:
        ours = list(prefixes) == ["pool/"]  # the controllers watch, too
        watching[0] += ours
        try:
            async for change in watch(self, prefixes, **options):
                yield change
        finally:
            watching[0] -= ours

    monkeypatch.setattr(Store, "watch", counted)
    async with cluster.client(followers(cluster)[0]) as gugus:
        async with aclosing(gugus.events.watch(["pool/"])) as changes:
            await anext(changes)
            await cluster.eventually(lambda: watching == [1])
        await cluster.eventually(lambda: watching == [0])


async def test_call_is_passed_on_once_and_not_from_follower_to_follower(cluster: Cluster) -> None:
    one, other = followers(cluster)
    with pytest.raises(GugusError) as caught:
        await create_pool(
            cluster,
            other,
            "lost",
            member(cluster, Role.MANAGER, one),
            (ACTOR_HEADER, member(cluster, Role.OPERATOR, "bob").uri),
        )
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_ACTING")
    assert cluster.store.peek(pool_pb2.Pool, "lost") is None


async def told_by(cluster: Cluster, follower: str) -> GugusError:
    """Return the error of a call at a follower that nobody can serve, without the SDK's repetitions."""
    with pytest.raises(GugusError) as caught:
        await create_pool(cluster, follower, "nowhere", member(cluster, Role.OPERATOR, "operator"))
    return caught.value


async def test_follower_says_that_the_acting_manager_cannot_be_reached_and_who_it_is(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower, acting = followers(cluster)[0], cluster.acting
    monkeypatch.setattr(Forward, "acting_endpoint", lambda self: (acting, "127.0.0.1:9"))
    error = await told_by(cluster, follower)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ACTING_MANAGER_UNREACHABLE")
    assert acting in error.message


async def test_follower_goes_on_with_the_manager_that_acts_next_and_without_one_says_so(cluster: Cluster) -> None:
    last = followers(cluster)[0]
    await cluster.stop_manager(cluster.acting)
    async with cluster.client(last) as gugus:
        await gugus.pools.create(pool("after-a-change"))
    await all_know_who_acts(cluster)
    await cluster.stop_manager(next(name for name in cluster.managers if name != last))
    await cluster.eventually(lambda: not cluster.acting)
    error = await told_by(cluster, last)
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert error.reason in ("NO_ACTING_MANAGER", "ACTING_MANAGER_UNREACHABLE"), "it may not know yet"
