"""The work queue: one turn at a time for a key, none lost, none held up by another lane, failures tried again later."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from common.errors import unavailable
from manager.consensus import Unavailable
from manager.controllers import queue
from manager.controllers.queue import WorkQueue
from manager.store import Conflict

Outcome = Callable[[int], Awaitable[float | None]]
"""What a turn does, given how many the key had before it."""


class Turns:
    """Counts the turns of keys; a key of `gates` waits in its turn until its gate is opened."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.under_way: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.outcomes: dict[str, Outcome] = {}

    async def turn(self, key: str) -> float | None:
        before = self.begun[key]
        self.begun[key] += 1
        self.under_way[key] += 1
        self.most[key] = max(self.most[key], self.under_way[key])
        try:
            if key in self.gates:
                await self.gates[key].wait()
            return await self.outcomes[key](before) if key in self.outcomes else None
        finally:
            self.under_way[key] -= 1


@pytest.fixture
def turns() -> Turns:
    return Turns()


@asynccontextmanager
async def working(
    turns: Turns, *, slots: int = 4, lane: Callable[[str], str] = lambda key: ""
) -> AsyncIterator[WorkQueue]:
    work = WorkQueue("key", turns.turn, slots=slots, lane=lane)
    running = asyncio.create_task(work.run())
    try:
        yield work
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert running.cancelled(), "it ends as it was asked to"


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 (the tests look from outside)
            await asyncio.sleep(0.001)


async def idle() -> None:
    """Let everything happen that needs no time."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_key_that_is_woken_before_or_after_the_queue_runs_has_a_turn(turns: Turns) -> None:
    work = WorkQueue("key", turns.turn, slots=1)
    work.wake("early")
    running = asyncio.create_task(work.run())
    await until(lambda: turns.begun["early"])
    work.wake("late")
    await until(lambda: turns.begun["late"])
    running.cancel()


async def test_wakes_that_wait_for_a_turn_are_one_turn(turns: Turns) -> None:
    async with working(turns, slots=1) as work:
        turns.gates["busy"].clear()
        for key in ("busy", "web", "web", "web"):
            work.wake(key)
        await idle()
        turns.gates["busy"].set()
        await until(lambda: turns.begun["web"])
        await idle()
        assert turns.begun == {"busy": 1, "web": 1}


async def test_wakes_during_a_turn_lead_to_one_more_turn_after_it(turns: Turns) -> None:
    async with working(turns) as work:
        gate = turns.gates["web"]
        work.wake("web")
        await until(lambda: turns.begun["web"])
        for _ in range(3):
            work.wake("web")
        await idle()
        assert turns.begun["web"] == 1, "two turns for a key never overlap"
        gate.set()
        await until(lambda: turns.begun["web"] == 2)
        await idle()
        assert (turns.begun["web"], turns.most["web"]) == (2, 1)


async def test_slow_lane_holds_up_no_other(turns: Turns) -> None:
    async with working(turns, slots=2, lane=lambda key: key[0]) as work:
        slow = [f"a{number}" for number in range(5)]
        for key in slow:
            turns.gates[key].clear()
            work.wake(key)
        quick = [f"b{number}" for number in range(5)]
        for key in quick:
            work.wake(key)
        await until(lambda: all(turns.begun[key] for key in quick))
        assert [turns.begun[key] for key in slow] == [1, 1, 0, 0, 0], "and takes no more than its own slots"
        for key in slow:
            turns.gates[key].set()
        await until(lambda: all(turns.begun[key] for key in slow))


async def test_key_goes_into_the_lane_that_it_has_when_it_is_woken(turns: Turns) -> None:
    lanes = {"stuck": "a", "web": "a"}
    async with working(turns, slots=1, lane=lanes.__getitem__) as work:
        turns.gates["stuck"].clear()
        work.wake("stuck")
        work.wake("web")
        await idle()
        assert not turns.begun["web"]
        turns.gates["stuck"].set()
        await until(lambda: turns.begun["web"])
        turns.gates["stuck"].clear()
        work.wake("stuck")
        lanes["web"] = "b"
        work.wake("web")
        await until(lambda: turns.begun["web"] == 2)


async def test_turn_that_asks_for_it_is_looked_at_again_by_itself(turns: Turns) -> None:
    async def thrice(before: int) -> float | None:
        return 0.0 if before < 2 else None

    turns.outcomes["web"] = thrice
    async with working(turns) as work:
        work.wake("web")
        await until(lambda: turns.begun["web"] == 3)
        await idle()
        assert turns.begun["web"] == 3


async def test_wake_replaces_a_later_look(turns: Turns) -> None:
    async def in_an_hour(before: int) -> float | None:
        return 3600.0

    turns.outcomes["web"] = in_an_hour
    async with working(turns) as work:
        work.wake("web")
        await until(lambda: turns.begun["web"] == 1)
        await idle()
        work.wake("web")
        await until(lambda: turns.begun["web"] == 2)


@pytest.mark.parametrize(
    "failure", [unavailable("NO_NODE", "nobody is there."), Unavailable("no majority"), ZeroDivisionError()]
)
async def test_turns_that_fail_are_tried_again_later_each_time_until_one_succeeds(
    turns: Turns, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    delays: list[float] = []
    monkeypatch.setattr(queue, "FIRST_BACKOFF_S", 0.001)
    monkeypatch.setattr(queue, "MAX_BACKOFF_S", 0.004)
    later = WorkQueue._wake_later

    def noted(self: WorkQueue, key: str, delay_s: float) -> None:
        delays.append(delay_s)
        later(self, key, delay_s)

    monkeypatch.setattr(WorkQueue, "_wake_later", noted)

    async def five_times_in_vain(before: int) -> float | None:
        if before not in (5, 7):
            raise failure
        return None

    turns.outcomes["web"] = five_times_in_vain
    async with working(turns) as work:
        work.wake("web")
        await until(lambda: turns.begun["web"] == 6)
        await idle()
        assert delays == [0.001, 0.002, 0.004, 0.004, 0.004]
        work.wake("web")  # after a success a failure is a first one again
        await until(lambda: turns.begun["web"] == 8)
        assert delays[5:] == [0.001]


async def test_turn_that_acted_on_an_old_view_is_looked_at_again_at_once_and_is_no_failure(turns: Turns) -> None:
    async def conflict(before: int) -> float | None:
        if before < 20:
            raise Conflict(["guest/web"])
        return None

    turns.outcomes["web"] = conflict
    async with working(turns) as work:
        work.wake("web")
        await until(lambda: turns.begun["web"] == 21)  # with a failure's pauses it would take minutes
        assert not work._failures


async def test_failure_of_one_key_holds_up_no_other(turns: Turns) -> None:
    async def broken(before: int) -> float | None:
        raise ZeroDivisionError

    turns.outcomes["broken"] = broken
    async with working(turns, slots=1) as work:
        for key in ("broken", "web", "db"):
            work.wake(key)
        await until(lambda: turns.begun["web"] and turns.begun["db"])


async def test_queue_that_is_cancelled_ends_its_turns_and_begins_no_more(turns: Turns) -> None:
    async def soon(before: int) -> float | None:
        return 0.001

    turns.outcomes["again"] = soon
    async with working(turns, slots=1, lane=lambda key: key[0]) as work:
        turns.gates["web"].clear()
        for key in ("web", "waiting", "again"):
            work.wake(key)
        await until(lambda: turns.begun["web"] and turns.begun["again"])
    assert not +turns.under_way
    begun = turns.begun.copy()
    work.wake("late")
    await asyncio.sleep(0.02)
    assert turns.begun == begun
    assert not turns.begun["waiting"]


async def test_turn_that_ends_well_although_it_was_cancelled_begins_no_other(turns: Turns) -> None:
    async def stubborn(before: int) -> float | None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return 0.0
        return None

    turns.outcomes["stubborn"] = stubborn
    async with working(turns, slots=1) as work:
        work.wake("stubborn")
        work.wake("waiting")
        await until(lambda: turns.begun["stubborn"])
        await idle()
    await idle()
    assert turns.begun == {"stubborn": 1}


async def test_queue_that_runs_again_goes_on_with_what_waits(turns: Turns) -> None:
    turns.gates["web"].clear()
    work = WorkQueue("key", turns.turn, slots=1)
    first = asyncio.create_task(work.run())
    work.wake("web")
    work.wake("waiting")
    await until(lambda: turns.begun["web"])
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.create_task(work.run())
    await until(lambda: turns.begun["waiting"])
    second.cancel()
