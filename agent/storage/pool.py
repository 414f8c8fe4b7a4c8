"""StoragePool: what a driver of storage has to offer to the agent.

A driver leaves nothing half-made behind: a volume is there as a whole, or not at all. Which guests use a volume is not
known here; the agent asks before it deletes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gugus.agent.v1 import volume_pb2

Progress = Callable[[int, str], None]
"""Called in the loop with the part done (0 to 100) and what is being done, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRequest:
    """What a volume is to be: fields as in gugus.agent.v1.CreateVolumeRequest."""

    name: str
    format: volume_pb2.VolumeFormat.ValueType
    size_bytes: int = 0
    source: str = ""
    privileged: bool = False


class StoragePool(Protocol):
    """A pool of this host. Methods raise GugusError only."""

    @property
    def spec(self) -> volume_pb2.PoolSpec:
        """The spec it was made from."""

    @property
    def abilities(self) -> frozenset[volume_pb2.PoolAbility.ValueType]:
        """What it can do."""

    async def activate(self) -> None:
        """Make it usable and remove what an interrupted operation of this host left. Idempotent.

        Errors: FAILED_PRECONDITION PATH_MISSING (a shared path that is not there), INVALID_ARGUMENT.
        """

    async def status(self) -> volume_pb2.Pool:
        """Tell its room and whether it is ready, and why not. Never raises for a pool that is not."""

    async def create_volume(self, request: VolumeRequest) -> volume_pb2.Volume:
        """Make a volume, empty or from another one. Idempotent for an equal request.

        Errors: VOLUME_NOT_FOUND (source), VOLUME_ALREADY_EXISTS (made by another request), NO_SPACE, INVALID_ARGUMENT.
        """

    async def import_volume(self, name: str, source: str, sha256: str, progress: Progress) -> volume_pb2.Volume:
        """Bring an image in from an absolute path or an http(s) address. Can be cancelled (asyncio).

        Idempotent: an existing volume imported from the same source with the same checksum is answered as it is.
        Errors: VOLUME_ALREADY_EXISTS, NOT_AN_IMAGE, CHECKSUM_MISMATCH, NO_SPACE, SOURCE_UNREADABLE, INVALID_ARGUMENT.
        """

    async def delete_volume(self, name: str) -> None:
        """Delete a volume. Idempotent. Errors: VOLUME_IN_USE when others are cloned from it (the error names them)."""

    async def get_volume(self, name: str) -> volume_pb2.Volume:
        """Return a volume. Errors: VOLUME_NOT_FOUND."""

    async def list_volumes(self) -> list[volume_pb2.Volume]:
        """Return all volumes by name."""

    async def path_of(self, name: str) -> Path:
        """Return the file or folder of a volume, as a hypervisor is given it. Errors: VOLUME_NOT_FOUND."""
