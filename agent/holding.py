"""Holding a guest still while its disks are taken, as well as it can be done, and letting it go whatever happens."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gugus.agent.v1.guest_pb2 import GUEST_STATE_PAUSED
from gugus.agent.v1.snapshot_pb2 import (
    SNAPSHOT_CONSISTENCY_CRASH,
    SNAPSHOT_CONSISTENCY_FROZEN,
    SNAPSHOT_CONSISTENCY_MEMORY,
    SNAPSHOT_CONSISTENCY_PAUSED,
    SNAPSHOT_CONSISTENCY_STOPPED,
    SnapshotConsistency,
    TakeSnapshotRequest,
)

from agent.compute.hypervisor import Hypervisor, Observation
from common.errors import GugusError

FREEZE_TIMEOUT_S = 10.0
"""How long a guest's file systems are held at most: Windows gives up a freeze after as long by itself (VSS)."""

MS_PER_S = 1000


@dataclass(slots=True)
class Hold:
    """How a guest is held, and what is to be said of that; final once the guest was let go."""

    consistency: SnapshotConsistency.ValueType
    note: str = ""


@asynccontextmanager
async def held(
    hypervisor: Hypervisor, running: Observation | None, *, live: bool, request: TakeSnapshotRequest
) -> AsyncIterator[Hold]:
    """Hold a guest. running: what is seen of one that runs; live: its hypervisor takes the snapshot, not its pools."""
    if running is None:
        yield Hold(SNAPSHOT_CONSISTENCY_STOPPED)
    elif request.memory:
        yield Hold(SNAPSHOT_CONSISTENCY_MEMORY)
    elif not live:
        async with _paused(hypervisor, request.name, running):
            yield Hold(SNAPSHOT_CONSISTENCY_PAUSED)
    else:
        async with _frozen(hypervisor, request) as hold:
            yield hold


@asynccontextmanager
async def _paused(hypervisor: Hypervisor, name: str, running: Observation) -> AsyncIterator[None]:
    if running.state == GUEST_STATE_PAUSED:  # by somebody else, whose wish it is
        yield
        return
    await hypervisor.suspend(name)
    try:
        yield
    finally:
        await asyncio.shield(hypervisor.resume(name))


@asynccontextmanager
async def _frozen(hypervisor: Hypervisor, request: TakeSnapshotRequest) -> AsyncIterator[Hold]:
    access = getattr(hypervisor, "access", None)
    if request.no_freeze or access is None:
        why = "it was not asked for" if request.no_freeze else "the hypervisor reaches no guest agent"
        yield Hold(SNAPSHOT_CONSISTENCY_CRASH, f"file systems were not frozen: {why}")
        return
    clock = asyncio.get_running_loop().time
    try:
        count = await access.freeze(request.name, FREEZE_TIMEOUT_S)
    except GugusError as error:
        hold, count = Hold(SNAPSHOT_CONSISTENCY_CRASH, f"file systems were not frozen: {error.message}"), 0
    else:
        hold = Hold(SNAPSHOT_CONSISTENCY_FROZEN)
    began_s = clock()
    try:
        yield hold
    finally:
        held_s = clock() - began_s
        if hold.consistency == SNAPSHOT_CONSISTENCY_FROZEN:
            await asyncio.shield(access.thaw(request.name))
    if hold.consistency == SNAPSHOT_CONSISTENCY_FROZEN:
        hold.note = f"{count} file systems were frozen for {held_s * MS_PER_S:.0f} ms"
        if held_s >= FREEZE_TIMEOUT_S:  # they were thawed before the snapshot was whole
            hold.consistency = SNAPSHOT_CONSISTENCY_CRASH
            hold.note = f"the snapshot took longer than the {FREEZE_TIMEOUT_S:g} s for which file systems are frozen"
