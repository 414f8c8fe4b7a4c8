import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator

import grpc
import pytest

from common.errors import GugusError
from common.executors import STUCK_FACTOR, BoundedPool


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Hanging calls of a test wait for this and end with it."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def pool() -> Iterator[BoundedPool]:
    made = BoundedPool("test", 2, stuck_after_s=0.1)
    yield made
    made.close()


def named_thread(a: int, *, b: int) -> tuple[str, int]:
    return threading.current_thread().name, a + b


async def test_call_runs_in_a_named_thread_and_returns(pool: BoundedPool) -> None:
    name, total = await pool.run(named_thread, 1, b=2)
    assert name.startswith("test-")
    assert total == 3


async def test_exception_of_a_call_reaches_the_caller(pool: BoundedPool) -> None:
    with pytest.raises(ZeroDivisionError):
        await pool.run(lambda: 1 // 0)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await pool.run(next, iter(()))


async def test_hanging_calls_never_starve_the_pool(pool: BoundedPool, release: threading.Event) -> None:
    hanging = [pool.run(release.wait) for _ in range(2)]
    for result in await asyncio.gather(*hanging, return_exceptions=True):
        assert isinstance(result, GugusError)
        assert (result.code, result.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "CALL_STUCK")
    assert pool.stuck == 2
    assert await pool.run(named_thread, 1, b=2)
    release.set()
    for _ in range(100):
        if pool.stuck == 0:
            break
        await asyncio.sleep(0.01)
    assert pool.stuck == 0
    alive = [t for t in threading.enumerate() if t.name.startswith("test-")]
    assert len(alive) == 2


async def test_call_that_found_no_thread_in_time_never_runs(pool: BoundedPool, release: threading.Event) -> None:
    ran = threading.Event()
    hanging = [asyncio.create_task(pool.run(release.wait, timeout_s=5)) for _ in range(2)]
    await asyncio.sleep(0.02)
    with pytest.raises(GugusError, match="all its 2 threads") as caught:
        await pool.run(ran.set)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    release.set()
    await asyncio.gather(*hanging)
    await pool.run(named_thread, 1, b=1)
    assert not ran.is_set()


async def test_thread_of_a_cancelled_caller_is_replaced_too(pool: BoundedPool, release: threading.Event) -> None:
    waiting = [asyncio.create_task(pool.run(release.wait)) for _ in range(2)]
    await asyncio.sleep(0.02)
    for task in waiting:
        task.cancel()
    await asyncio.sleep(0.15)
    assert pool.stuck == 2
    assert await pool.run(named_thread, 1, b=2)


async def test_pool_with_too_many_hanging_threads_refuses_at_once(pool: BoundedPool, release: threading.Event) -> None:
    hanging = [pool.run(release.wait, timeout_s=0.01) for _ in range(2)]
    for _ in range(STUCK_FACTOR):
        await asyncio.gather(*hanging, return_exceptions=True)
        hanging = [pool.run(release.wait, timeout_s=0.01) for _ in range(2)]
    started = time.monotonic()
    for result in await asyncio.gather(*hanging, return_exceptions=True):
        assert isinstance(result, GugusError)
        assert result.reason == "POOL_BUSY"
    assert time.monotonic() - started < 0.1


async def test_closed_pool_takes_no_call_and_its_threads_end() -> None:
    pool = BoundedPool("closing", 2, stuck_after_s=1)
    pool.close()
    with pytest.raises(GugusError, match="shutting down"):
        await pool.run(print)
    for _ in range(100):
        if not any(t.name.startswith("closing-") for t in threading.enumerate()):
            return
        await asyncio.sleep(0.01)
    pytest.fail("threads of a closed pool live on")


async def test_a_call_that_has_ended_keeps_nothing_alive() -> None:
    class Big:
        pass

    pool = BoundedPool("test", 1, stuck_after_s=600.0)
    big = Big()
    seen = weakref.ref(big)
    await pool.run(lambda thing: thing, big)
    del big
    async with asyncio.timeout(5):
        while seen():  # the thread lets go of it right after the answer
            await asyncio.sleep(0.01)
            gc.collect()
    pool.close()
