"""Long work of an agent: what came of it, and waiting for its end."""

import asyncio

from gugus.agent.v1.migration_pb2 import MigrationReport
from gugus.agent.v1.task_pb2 import TASK_STATE_RUNNING, TASK_STATE_SUCCEEDED

from agent.tasks import Progress, Tasks

PATIENCE_S = 10.0


async def test_a_call_that_waits_is_answered_when_the_work_ends_with_what_came_of_it() -> None:
    tasks, gate = Tasks(), asyncio.Event()

    async def work(_: Progress) -> MigrationReport:
        await gate.wait()
        return MigrationReport(downtime_ms=7)

    tasks.begin("t1", "migrate-guest", "guest/web", work)
    asyncio.get_running_loop().call_soon(gate.set)
    async with asyncio.timeout(PATIENCE_S / 2):
        found = await tasks.get("t1", wait_s=PATIENCE_S)
    assert found.state == TASK_STATE_SUCCEEDED
    assert MigrationReport.FromString(found.result).downtime_ms == 7
    assert (await tasks.get("t1", wait_s=PATIENCE_S)).state == TASK_STATE_SUCCEEDED


async def test_a_call_is_answered_while_the_work_goes_on() -> None:
    tasks, gate = Tasks(), asyncio.Event()

    async def work(progress: Progress) -> None:
        progress(40, "copying")
        await gate.wait()

    tasks.begin("t1", "import-volume", "pool/local/volume/a", work)
    found = await tasks.get("t1", wait_s=0.05)
    assert (found.state, found.result) == (TASK_STATE_RUNNING, b"")
    assert (await tasks.get("t1")).state == TASK_STATE_RUNNING
    gate.set()
    assert (await tasks.get("t1", wait_s=PATIENCE_S)).state == TASK_STATE_SUCCEEDED
