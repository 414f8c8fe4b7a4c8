"""GuestSnapshots: what a driver can offer for snapshots of guests that run. Of those that do not, pools take care.

A driver that has none says so by `snapshots = None`; its running guests have their snapshots from the pools alone, while
they stand still.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

SNAPSHOT_TIMEOUT_S = 60.0
"""For a snapshot of disks: it writes metadata only."""

MEMORY_TIMEOUT_S = 3600.0
"""For writing or reading a guest's memory; the guest stands still all the while."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What taking a snapshot came to: for how long the guest stood still, and the size of the memory in it."""

    paused_ms: int = 0
    memory_bytes: int = 0


class GuestSnapshots(Protocol):
    """Snapshots of running guests. `disks` are the disks' files, in the order of the snapshot. Methods raise GugusError only."""

    async def memory_obstacles(self, name: str) -> list[str]:
        """Return why the memory of a running guest cannot be in a snapshot, each in a sentence without a full stop."""

    async def machine(self, name: str) -> bytes:
        """Return the running machine, to be started again with its memory: opaque, at most some KiB. Errors: GUEST_NOT_RUNNING."""

    async def take(self, name: str, tag: str, disks: Sequence[Path], *, memory: bool) -> Taken:
        """Take a snapshot of all disks at one moment; the memory goes into the first of them. Idempotent.

        One that an earlier call left on some of the disks is removed first. Nothing is left of one that fails, as long as
        the guest runs. Errors: GUEST_NOT_RUNNING, NO_SPACE, SNAPSHOT_FAILED.
        """

    async def delete(self, name: str, tag: str, disks: Sequence[Path]) -> None:
        """Delete a snapshot from those disks that have it. Errors: GUEST_NOT_RUNNING, SNAPSHOT_FAILED."""

    async def start_from(
        self,
        name: str,
        generation: int,
        tag: str,
        disks: Sequence[Path],
        machine: bytes,
        revert: Callable[[], Awaitable[None]],
    ) -> None:
        """Start a machine with the memory of a snapshot; returns once it runs. Left alone when it does already.

        What an earlier call left half started is ended first. `revert` is called once nothing of it runs: the memory
        must never meet disks that were written since. After a failure it does not run. Errors: GUEST_START_FAILED,
        SNAPSHOT_FAILED, and what `revert` raises.
        """
