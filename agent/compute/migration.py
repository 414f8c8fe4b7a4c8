"""Migration: what a driver can offer so that a guest goes over to another host while it runs.

A driver that has none says so by `migration = None`; its guests are stopped, copied and started.

Two hosts never run a guest at once: the copy that arrives stands still until `resume`, which the agent calls only when
the source's process is known to execute nothing any more (`halt`). The hypervisors' own hand-over is not enough for that:
when the last answer of the target is lost, libvirt lets the source go on, although the target may run (libvirt-domain.c,
virDomainMigrateVersion3Full: "There is a small chance that ... ddomain could in fact be running on the dest").
"""

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from gugus.agent.v1 import guest_pb2, migration_pb2

from agent.compute.hypervisor import Progress

Connect = Callable[[], socket.socket]
"""Connects to something of this host: called in the thread of the stream that it is for. Raises OSError."""

OpenDoor = Callable[[Path, str, tuple[int, int]], None]
"""Opens a door (a UNIX socket at the path) whose connections become a stream of the name; user and group may use it."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A guest that is sent. `places` and `bridges`: see PrepareMigrationResponse."""

    name: str
    target_generation: int
    places: Mapping[str, str]
    bridges: Mapping[str, str]
    policy: migration_pb2.MigrationPolicy
    copied_disks: Sequence[str] = field(default_factory=tuple)
    spec: guest_pb2.GuestSpec | None = None
    """The guest as it will be at a target in another cluster, where pools, volumes and networks have other names."""


class Migration(Protocol):
    """Methods raise GugusError only."""

    async def survey(self, name: str) -> migration_pb2.GuestSurvey:
        """Tell of a running guest what a target must know, and what keeps it here. Errors: GUEST_NOT_RUNNING."""

    async def check(
        self, spec: guest_pb2.GuestSpec, survey: migration_pb2.GuestSurvey, policy: migration_pb2.MigrationPolicy
    ) -> list[migration_pb2.MigrationObstacle]:
        """Return why a guest that runs elsewhere cannot run on here."""

    async def places(self, name: str) -> dict[str, str]:
        """Return where this host has a defined guest's files, by keys that are the same on every host."""

    async def receive(self, name: str) -> Mapping[str, Connect]:
        """Make ready for a defined guest; return what each stream is joined with. Idempotent."""

    async def presence(self, name: str) -> migration_pb2.MigrationPresence.ValueType:
        """Tell what there is of a guest: ABSENT, COMING, WAITING, RUNNING; UNSPECIFIED: it runs, and fetches memory (post-copy)."""

    async def lives(self, name: str) -> bool:
        """Tell whether a guest that was to leave can go on here: not one that was halted or killed, even if the hypervisor has not
        noticed that, nor one that was switched to post-copy.
        """

    def wait_complete(self, name: str, timeout_s: float) -> bool:
        """Wait until a guest that comes in is complete, and may end at its source; False when that is not so in that time, or cannot be
        told like this. Blocks; in the thread of the conversation with the source.
        """

    async def is_complete(self, name: str) -> bool:
        """Ask the hypervisor whether a guest that comes in is complete, and may end at its source."""

    async def standstill(self, name: str) -> None:
        """Wait until a guest that is sent stands still for the last of it, or is no more. Of one that was held before, it is never told."""

    async def resume(self, name: str) -> float:
        """Let a guest that has arrived go on; return since when it does (time.monotonic). Idempotent. Errors: GUEST_NOT_RUNNING."""

    async def hold(self, name: str) -> None:
        """Take in a guest that has arrived and is to stay held. Idempotent."""

    async def bury(self, name: str) -> bool:
        """End a guest of which this host has a part of the memory alone, now that the other host's part cannot be had.

        To be called when the connection with the other end is over. Returns whether there was one. Errors: GUEST_NOT_KILLED.
        """

    async def drop(self, name: str) -> None:
        """End what came in of a guest, and close what `receive` opened. Idempotent."""

    async def send(self, parcel: Parcel, open_door: OpenDoor, progress: Progress) -> None:
        """Send a guest; returns when it is over, which `end` may bring about. Can be cancelled (asyncio).

        After a failure the guest runs on here. Errors: GUEST_NOT_RUNNING, MIGRATION_FAILED, MIGRATION_TIMED_OUT.
        """

    def stopped_s(self, name: str) -> float:
        """Return when a guest that has gone over stood still here (time.monotonic)."""

    async def halt(self, name: str) -> None:
        """Stop a guest that has gone over for good; returns as soon as no instruction of it can be executed any more. Its end can wait
        until it runs at the target. Errors: GUEST_NOT_KILLED.
        """

    async def end(self, name: str) -> None:
        """Kill a guest that has gone over. Idempotent. Errors: GUEST_NOT_KILLED."""
