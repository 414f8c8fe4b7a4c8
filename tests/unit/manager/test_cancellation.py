"""Background work that is cancelled ends, also when what it waits for happens in the same moment.

`asyncio.wait_for` loses such a cancellation before Python 3.12; `asyncio.timeout` does not.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest

from common.clock import SystemClock
from manager.acting import Acting
from tests.unit.manager.cluster import Cluster

MOMENTS = 6
"""Turns of the event loop between the event and the cancellation; with some number of them the two meet."""


class Work(NamedTuple):
    """Background work, and the event that it waits for."""

    run: Callable[[], Awaitable[None]]
    event: asyncio.Event


def node_controller(cluster: Cluster) -> Work:
    work = cluster.managers["n1"]._work
    assert work is not None
    return Work(work.nodes.run, work.nodes._news)


def recovery(cluster: Cluster) -> Work:
    work = cluster.managers["n1"]._work
    assert work is not None
    return Work(work.placing.run, work.placing._news)


def acting(cluster: Cluster) -> Work:
    """The lease of a manager that finds it taken."""

    async def nothing(takeover_ns: int) -> None:
        raise AssertionError("another manager holds the lease")

    made = Acting("n9", cluster.store, cluster.managers["n1"]._consensus, SystemClock(), nothing)
    return Work(made.run, made._nudge)


def observer(cluster: Cluster) -> Work:
    seen = cluster.agents["n1"].observer
    return Work(seen.run, seen._dirty)


@pytest.mark.parametrize("kind", [node_controller, recovery, acting, observer])
async def test_cancellation_is_not_lost_in_the(cluster: Cluster, kind: Callable[[Cluster], Work]) -> None:
    run, event = kind(cluster)
    for moment in range(MOMENTS):
        task = asyncio.ensure_future(run())
        await asyncio.sleep(0.05)
        event.set()
        for _ in range(moment):
            await asyncio.sleep(0)
        task.cancel()
        ended, _ = await asyncio.wait({task}, timeout=2)
        task.cancel()
        assert ended, f"it goes on, cancelled {moment} turns of the loop after the event"
