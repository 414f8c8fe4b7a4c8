"""What a node's agent is told about one guest: by the guest controller, and by operations that hold the guest's lock.

Each call is idempotent. `tell` brings it to the node, if the state still says what the call was decided from.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeVar

from gugus.agent.v1 import guest_pb2 as agent_pb2
from gugus.agent.v1 import volume_pb2
from gugus.agent.v1.guest_pb2 import STOP_OUTCOME_KILLED, STOP_OUTCOME_SHUT_DOWN, StopOutcome
from gugus.cluster.v1.guest_pb2 import DiskSpec, Guest
from gugus.cluster.v1.node_pb2 import Node

from common.errors import GugusError
from manager.agents import Agent
from manager.controllers.compile import agent_spec, volume_request

T = TypeVar("T")

START_TIMEOUT_S = 60.0
VOLUME_TIMEOUT_S = 300.0
"""Making a volume copies or unpacks an image; a task that takes longer has hung storage."""

STOP_MARGIN_S = 15.0
"""Added to a guest's own time to shut down before the call to the agent is given up."""

DEFAULT_STOP_TIMEOUT_MS = 60_000
"""Default of GuestSpec.shutdown_timeout_ms."""

KILLED, SHUT_DOWN = "killed", "it shut itself down"
"""How a guest's reason ends that tells how it was stopped."""


class Tell(Protocol):
    """Brings a call to the agent of the guest's node. Raises Conflict, and what `Context.tell` raises."""

    async def __call__(self, call: Callable[[Agent, int], Awaitable[T]]) -> T:
        """Await the call with the agent's stubs and the epoch that it is to name."""
        ...


async def make_volumes(tell: Tell, guest: Guest, disks: Iterable[DiskSpec]) -> None:
    """Make the volumes of some of a guest's disks; those that are there stay as they are."""
    for disk in disks:
        await tell(
            lambda agent, epoch, disk=disk: agent.volumes.CreateVolume(  # type: ignore[misc]
                volume_request(guest, disk, epoch), timeout=VOLUME_TIMEOUT_S
            )
        )


async def delete_volumes(tell: Tell, volumes: Iterable[tuple[str, str]]) -> None:
    """Delete volumes, each given by its pool and name."""
    for pool, name in volumes:
        await tell(
            lambda agent, epoch, pool=pool, name=name: agent.volumes.DeleteVolume(  # type: ignore[misc]
                volume_pb2.DeleteVolumeRequest(epoch=epoch, pool=pool, name=name), timeout=VOLUME_TIMEOUT_S
            )
        )


async def define(tell: Tell, guest: Guest, *, ha: bool) -> agent_pb2.Guest:
    """Bring the definition on the node up to date, and a running guest as far as that can be done. Returns what the agent says."""
    spec = agent_spec(guest, ha=ha)
    return await tell(
        lambda agent, epoch: agent.guests.CreateGuest(agent_pb2.CreateGuestRequest(epoch=epoch, spec=spec))
    )


async def start(tell: Tell, guest: Guest) -> agent_pb2.Guest:
    """Start a defined guest under its generation. Returns what the agent says."""
    name, grant = guest.meta.name, agent_pb2.Grant(generation=guest.meta.generation)
    return await tell(
        lambda agent, epoch: agent.guests.StartGuest(
            agent_pb2.StartGuestRequest(epoch=epoch, name=name, grant=grant), timeout=START_TIMEOUT_S
        )
    )


async def halt(tell: Tell, name: str, timeout_ms: int) -> StopOutcome.ValueType:
    """Shut a guest down, and kill it when the time is over; 0 kills at once. Returns how it ended; an older agent does not say."""
    answer = await tell(
        lambda agent, epoch: agent.guests.StopGuest(
            agent_pb2.StopGuestRequest(epoch=epoch, name=name, timeout_ms=timeout_ms),
            timeout=timeout_ms / 1000 + STOP_MARGIN_S,
        )
    )
    return answer.stopped


def how_stopped(outcome: StopOutcome.ValueType, timeout_ms: int) -> str:
    """Return the words for how a guest ended that had so long to shut down (0: none), "" when it is not known."""
    if outcome == STOP_OUTCOME_SHUT_DOWN:
        return SHUT_DOWN
    if outcome != STOP_OUTCOME_KILLED:
        return ""
    return f"did not shut down within {timeout_ms / 1000:g} s (shutdown_timeout); {KILLED}" if timeout_ms else KILLED


async def kill(tell: Tell, name: str) -> None:
    """Kill a guest at once."""
    await tell(lambda agent, epoch: agent.guests.KillGuest(agent_pb2.KillGuestRequest(epoch=epoch, name=name)))


async def suspend(tell: Tell, name: str) -> agent_pb2.Guest:
    """Hold a guest's CPUs."""
    return await tell(
        lambda agent, epoch: agent.guests.SuspendGuest(agent_pb2.SuspendGuestRequest(epoch=epoch, name=name))
    )


async def resume(tell: Tell, name: str) -> agent_pb2.Guest:
    """Let a held guest go on."""
    return await tell(
        lambda agent, epoch: agent.guests.ResumeGuest(agent_pb2.ResumeGuestRequest(epoch=epoch, name=name))
    )


async def undefine(tell: Tell, name: str) -> None:
    """Remove a stopped guest's definition. Fine when the node does not know it."""
    await tell(lambda agent, epoch: agent.guests.DeleteGuest(agent_pb2.DeleteGuestRequest(epoch=epoch, name=name)))


async def take_away(tell: Tell, name: str) -> None:
    """End a guest on its node and remove its definition there. Fine when the node does not know it."""
    try:
        await halt(tell, name, 0)
    except GugusError as error:
        if error.reason != "GUEST_NOT_FOUND":
            raise
    await undefine(tell, name)


def note_applied(guest: Guest, answer: agent_pb2.Guest) -> None:
    """Write down that the node has the guest's spec, and what of it waits for the next start."""
    guest.status.applied_spec_number = guest.spec_number
    del guest.status.pending[:]
    guest.status.pending.extend(answer.pending)


def note_started(guest: Guest, node: Node, answer: agent_pb2.Guest) -> None:
    """Write down that the guest runs, with the spec that it was defined with. Memory that it was woken with is of no use any more."""
    status = guest.status
    status.observed, status.mode = answer.state, answer.mode
    status.inherited = status.booting = False
    status.boot_id = node.status.boot_id
    status.started_at.GetCurrentTime()
    note_applied(guest, answer)
    drop_hibernation(guest)


def drop_hibernation(guest: Guest) -> None:
    """Have the volume with a hibernated guest's memory deleted."""
    status = guest.status
    if status.hibernation_volume:
        status.leaving_disks.append(
            DiskSpec(name="memory", pool=status.hibernation_pool, volume=status.hibernation_volume)
        )
        status.hibernation_volume = status.hibernation_pool = ""
