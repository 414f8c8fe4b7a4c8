"""Streams of requests at a manager that does not act: passed on to the one that does, which gives tickets of its own."""

import asyncio
import os
import select
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, Guest
from gugus.cluster.v1.node_pb2 import Node

from client.access import run
from client.tasks import check
from common.errors import GugusError
from tests.unit.access.driver import Enterable
from tests.unit.manager.cluster import Cluster, guest_spec
from tests.unit.manager.conftest import storage  # noqa: F401  (a fixture)
from tests.unit.manager.storage import Storage

MIB = 1 << 20


@pytest.fixture
async def cluster(tmp_path: Path, storage: Storage) -> AsyncIterator[Cluster]:  # noqa: F811
    async with Cluster(tmp_path, voters=3) as cluster:
        for name in cluster.voters:
            cluster.start_manager(name)
        await cluster.eventually(lambda: cluster.acting and cluster.store.peek_all(Node))
        yield cluster


def agrees(cluster: Cluster) -> bool:
    return {manager._context.acting.holder() for manager in cluster.managers.values()} == {cluster.acting}


async def test_programs_files_and_tickets_at_a_manager_that_does_not_act(cluster: Cluster, tmp_path: Path) -> None:
    acting, follower = cluster.acting, next(name for name in cluster.voters if name != cluster.acting)
    hypervisor = Enterable(tmp_path / "inside")
    cluster.start_agent(acting, hypervisor)
    await cluster.online(acting)
    await cluster.eventually(lambda: agrees(cluster))
    async with cluster.client(follower, operator="bob") as bob:
        await cluster.make_image(bob)
        check(await bob.tasks.wait(await bob.guests.create("web", guest_spec())))
        await cluster.eventually(lambda: _phase(cluster) == GUEST_PHASE_RUNNING)

        data = os.urandom(2 * MIB)
        assert await run(bob.access, "web", ["sh", "-c", "cat; exit 3"], input=data) == (3, data, b"")
        assert (await run(bob.access, "web", ["head", "-c", "1"], input=data))[:2] == (0, data[:1])

        async def content() -> AsyncIterator[bytes]:
            for at in range(0, len(data), 65536):
                yield data[at : at + 65536]

        assert (await bob.access.push("web", "/file", content())).size_bytes == len(data)
        assert b"".join([piece async for piece in bob.access.pull("web", "/file")]) == data
        for _ in range(5):  # errors that come while requests are still on their way
            with pytest.raises(GugusError) as caught:
                await bob.access.push("web", "/none/file", content())
            assert caught.value.reason == "FILE_NOT_WRITTEN"
        with pytest.raises(GugusError) as caught:
            await run(bob.access, "nobody", ["true"])
        assert caught.value.reason == "GUEST_NOT_FOUND"

        ticket = await bob.access.console_ticket("web")
        assert ticket.url == f"wss://{cluster.address(acting)}:7449/console/web"
        async with bob.access.console(ticket) as console:
            await console.write(b"typed")
            await cluster.eventually(lambda: hypervisor.inside.serial)
            async with asyncio.timeout(5):
                await asyncio.to_thread(_wait_readable, hypervisor.inside.serial["web"])
    told = {(event.reason, event.message) for event in cluster.events() if event.about == "guest/web"}
    assert ("GUEST_EXECUTED", "operator bob asked to run sh in it") in told
    assert ("GUEST_CONSOLE_OPENED", "its serial console was opened by operator bob") in told


def _phase(cluster: Cluster) -> object:
    guest = cluster.peek(Guest, "web")
    return guest and guest.status.phase


def _wait_readable(fd: int) -> None:
    assert select.select([fd], [], [], 5)[0]
