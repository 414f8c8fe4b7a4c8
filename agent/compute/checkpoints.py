"""Checkpoints: what a driver of containers can offer, as `checkpoints`, so that a guest moves while it runs.

Not `agent.compute.migration`: nothing of a container runs on while it is sent. Its processes are written into files and end;
the files go with the last copy of its disks, and its processes are made again from them.
"""

from pathlib import Path
from typing import Protocol

from gugus.agent.v1 import guest_pb2, migration_pb2


class Checkpoints(Protocol):
    """Methods raise GugusError only."""

    async def survey(self, name: str) -> migration_pb2.ContainerSurvey:
        """Tell of a running guest what a target must know, and what keeps it here. Errors: GUEST_NOT_RUNNING."""

    async def check(
        self, spec: guest_pb2.GuestSpec, survey: migration_pb2.ContainerSurvey
    ) -> list[migration_pb2.MigrationObstacle]:
        """Return why a guest that runs elsewhere cannot go on here."""

    async def dump(self, name: str, images: Path) -> None:
        """Write a running guest's processes into a folder of their own and end them. Never ends in the middle.

        Errors: GUEST_NOT_RUNNING, CHECKPOINT_FAILED; then the guest runs on.
        """

    async def restore(self, name: str, generation: int, images: Path) -> None:
        """Have a guest that does not run go on from a folder. Errors: RESTORE_FAILED; then nothing of it runs."""
