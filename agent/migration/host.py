"""What both ends of a migration need of the host that they are on."""

import asyncio
from collections.abc import Awaitable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from gugus.agent.v1 import guest_pb2, volume_pb2

from agent.compute.hypervisor import Hypervisor
from agent.compute.migration import Migration
from agent.guests import Guests
from agent.networks import Networks
from agent.observer import Observer
from agent.pools import Pools
from agent.state import AgentState
from agent.turns import Turns
from common.errors import invalid, precondition
from common.identity.credentials import Credentials
from common.validate import name as name_fault

T = TypeVar("T")

FORMATS = {volume_pb2.VOLUME_FORMAT_QCOW2: "qcow2", volume_pb2.VOLUME_FORMAT_RAW: "raw"}
"""QEMU's names of the formats of disks."""

ANSWER_TIMEOUT_S = 60.0
"""How long one end may take over a step that the other waits for: a container's start, or the writing back of a disk."""


@dataclass(frozen=True)
class Here:
    """This host's parts."""

    credentials: Credentials
    state: AgentState
    observer: Observer
    pools: Pools
    networks: Networks
    guests: Guests
    turns: Turns

    def hypervisor(self, spec: guest_pb2.GuestSpec) -> Hypervisor:
        """Return the hypervisor of a guest. Raises HYPERVISOR_MISSING."""
        return self.observer.hypervisor_for(spec.kind)

    def migration(self, spec: guest_pb2.GuestSpec) -> Migration:
        """Return what can move a guest while it runs. Raises NOT_LIVE."""
        found: Migration | None = getattr(self.hypervisor(spec), "migration", None)
        if found is None:
            raise precondition(
                "NOT_LIVE",
                f'guest "{spec.name}" cannot go over while it runs.',
                remedy="It is stopped, copied and started.",
                subject=f"guest/{spec.name}",
            )
        return found

    async def runs(self, spec: guest_pb2.GuestSpec) -> bool:
        """Look whether anything of a guest runs here. Raises HYPERVISOR_DOWN."""
        observation = await self.observer.look(spec.name, self.hypervisor(spec))
        return observation is not None and observation.running


class Bridge:
    """Lets the thread of a connection run what belongs to the agent's loop, and wait for it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def call(self, work: Coroutine[Any, Any, T], timeout_s: float = ANSWER_TIMEOUT_S) -> T:
        """Run work in the loop and return what it returns. Raises what it raises, and TimeoutError."""
        try:
            future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # the loop has ended
            work.close()
            raise
        return future.result(timeout_s)


def checked_id(migration: str) -> str:
    """Return a migration's id, which becomes a file's name. Raises INVALID_ARGUMENT."""
    if why := name_fault(migration):
        raise invalid("migration", f'"{migration[:80]}" is no id: {why}')
    return migration


async def quietly(work: Awaitable[object]) -> None:
    """Await work whose outcome does not matter any more."""
    await asyncio.gather(work, return_exceptions=True)
