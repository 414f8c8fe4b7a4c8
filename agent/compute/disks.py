"""GuestDisks: what a driver can offer for disks of guests that run. Of those that do not, pools take care.

A driver that has none says so by `disks = None`; then such work waits until the guest is stopped.
"""

from pathlib import Path
from typing import Protocol

from agent.compute.hypervisor import AttachedDisk, Progress


class GuestDisks(Protocol):
    """Work on disks of running guests. Methods raise GugusError only, GUEST_NOT_RUNNING when the guest does not run."""

    async def mirror(
        self, name: str, disk: Path, copy: Path, copy_format: str, bytes_per_s: int, progress: Progress
    ) -> None:
        """Copy a disk into an empty volume of its size, and go on writing to both; returns when they are the same.

        A mirror into this volume that an earlier call left goes on; another one is ended. Can be cancelled (asyncio): then
        the mirror is ended. Errors: MIRROR_FAILED, NO_SPACE.
        """

    async def pivot(self, name: str, disk: Path, copy: AttachedDisk) -> None:
        """Have the guest use the copy alone. Nothing happens when it does. Errors: MIRROR_MISSING."""

    async def drop(self, name: str, disk: Path, copy: Path) -> None:
        """End a mirror; the guest goes on with its disk. Idempotent. Errors: VOLUME_IN_USE when it uses the copy already."""

    async def flatten(self, name: str, disk: Path, bytes_per_s: int, progress: Progress) -> None:
        """Copy what a disk reads from its base into itself. Can be cancelled, and repeated. Errors: FLATTEN_FAILED, NO_SPACE."""
