"""A manager and an agent that stop leave nothing behind in their process: so any number of them can follow one another."""

import asyncio
import gc
import os
import threading
import time
from contextlib import aclosing
from pathlib import Path

from tests.unit.manager.cluster import Cluster

SETTLE_S = 10.0
"""Threads that are ending and sockets that are being closed are waited for."""


def held() -> set[str]:
    """Threads, files and sockets of this process, the loop's and gRPC's own pipes and epoll descriptors apart."""
    gc.collect()
    found = {f"thread {thread.name} {thread.ident}" for thread in threading.enumerate()}
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:  # the one of this very listing
            continue
    return {name for name in found if name.startswith(("thread", "socket", "/"))}


async def live_and_stop(cluster: Cluster) -> None:
    """Run a manager and an agent on their ports, with calls each way and a stream, and stop them."""
    cluster.start_manager()
    cluster.start_agent()
    async with cluster.client() as gugus:
        await cluster.online()
        assert [node.meta.name for node in await gugus.nodes.list()] == ["n1"]
        async with aclosing(gugus.events.watch()) as changes:
            assert await anext(changes)
            await cluster.stop()
    await cluster.eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})


def test_manager_and_agent_that_stop_leave_no_task_thread_file_or_socket(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    asyncio.run(live_and_stop(cluster))  # gRPC keeps one thread and its sockets from its first use on
    before = held()
    asyncio.run(live_and_stop(cluster))  # on the same addresses, which are free again
    end = time.monotonic() + SETTLE_S
    while (left := held() - before) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left
