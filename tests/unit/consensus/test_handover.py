"""Handing over between threads: nothing is lost or doubled, and nobody hangs when the other side has ended."""

import asyncio

import pytest

from manager.consensus import NotLeader, Unavailable
from manager.consensus.handover import Handover
from tests.unit.consensus.conftest import Cluster


async def test_everything_put_by_any_thread_is_taken_once_in_order() -> None:
    taken: list[int] = []
    rounds = 0

    def count() -> None:
        nonlocal rounds
        rounds += 1

    handover = Handover(asyncio.get_running_loop(), taken.append, count)

    def produce() -> None:
        for number in range(20_000):
            handover.put(number)
            handover.wake()

    await asyncio.to_thread(produce)
    await asyncio.sleep(0)  # whatever woke us is before this
    assert taken == list(range(20_000))
    assert rounds < 20_000


async def test_a_call_to_a_member_that_has_stopped_is_refused_at_once(cluster: Cluster) -> None:
    one = await cluster.start("n1", ["n1", "n2"])
    with pytest.raises(NotLeader):
        await one.propose(b"x", 5)
    actor = one._actor
    assert actor is not None
    actor.stop()
    actor.join()
    async with asyncio.timeout(1):
        with pytest.raises(Unavailable, match="stopped"):
            await one.propose(b"x", 5)
