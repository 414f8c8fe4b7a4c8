"""StoragePool: what a driver of storage has to offer to the agent.

A driver leaves nothing half-made behind: a volume is there as a whole, or not at all. Which guests use a volume is not
known here; the agent asks before it deletes.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
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


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeView:
    """What is read of a volume while it is held: fields of a volume and where its content is.

    snapshot: qcow2's own snapshot to read instead of the present content; empty means the present.
    companion: folder of its machine's files; it may not exist.
    """

    name: str
    path: Path
    format: volume_pb2.VolumeFormat.ValueType
    size_bytes: int
    used_bytes: int
    companion: Path
    snapshot: str = ""
    privileged: bool = False
    fixed: bool = False
    """Never written: it may be read without a copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyRequest:
    """A full copy: fields as in gugus.agent.v1.CopyVolumeRequest, the source's pool as itself."""

    name: str
    source: "StoragePool"
    source_volume: str
    source_snapshot: str = ""
    format: volume_pb2.VolumeFormat.ValueType = volume_pb2.VOLUME_FORMAT_UNSPECIFIED
    as_image: bool = False
    bytes_per_s: int = 0

    @property
    def origin(self) -> str:
        """What it is a copy of, in a word that is the same for a repetition."""
        snapshot = f"@{self.source_snapshot}" if self.source_snapshot else ""
        return f"{self.source.spec.name}/{self.source_volume}{snapshot}"


class VolumeTransfer(Protocol):
    """Content of volumes on its way out (exports) and in (uploads). Methods raise GugusError only."""

    async def begin_export(self, id_: str, name: str, wanted: str, snapshot: str, progress: Progress) -> int:
        """Prepare the content of a volume for reading; return its size in bytes. Can be cancelled.

        Errors: VOLUME_NOT_FOUND, SNAPSHOT_NOT_FOUND, VOLUME_BUSY, NO_SPACE, INVALID_ARGUMENT (format).
        """

    def has_export(self, id_: str) -> bool:
        """Whether there is such an export."""

    def read_export(self, id_: str, offset: int) -> AsyncGenerator[volume_pb2.ExportChunk, None]:
        """Yield the content from an offset to the end, and last its checksum. Errors: EXPORT_NOT_FOUND, INVALID_ARGUMENT."""

    async def end_export(self, id_: str) -> None:
        """Forget an export. Idempotent."""

    async def begin_upload(self, id_: str, total_bytes: int) -> volume_pb2.Upload:
        """Begin to receive a file, or go on. Errors: NO_SPACE, INVALID_ARGUMENT."""

    async def write_upload(self, id_: str, offset: int, data: bytes) -> volume_pb2.Upload:
        """Take a piece. Errors: UPLOAD_NOT_FOUND, INVALID_ARGUMENT, NO_SPACE."""

    async def get_upload(self, id_: str) -> volume_pb2.Upload:
        """Tell how far it is. Errors: UPLOAD_NOT_FOUND."""

    async def end_upload(self, id_: str) -> None:
        """Forget an upload and what was received. Idempotent."""


class StoragePool(Protocol):
    """A pool of this host. Methods raise GugusError only."""

    transfer: VolumeTransfer
    """Exports and uploads."""

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

    async def delete_orphan(self, name: str, least_age_s: int) -> None:
        """Delete a volume that nobody is known to own. Idempotent.

        Errors: VOLUME_TOO_YOUNG (made less than `least_age_s` seconds ago), VOLUME_BUSY (open), VOLUME_IN_USE.
        """

    async def get_volume(self, name: str) -> volume_pb2.Volume:
        """Return a volume. Errors: VOLUME_NOT_FOUND."""

    async def list_volumes(self) -> list[volume_pb2.Volume]:
        """Return all volumes by name."""

    async def path_of(self, name: str) -> Path:
        """Return the file or folder of a volume, as a hypervisor is given it. Errors: VOLUME_NOT_FOUND."""

    async def lease_of(self, name: str) -> Path | None:
        """Return the file whose lock proves to other hosts that somebody writes to a volume (`agent.leases`).

        None where no other host reaches it, or the storage has a proof of its own.
        """

    async def ensure_volume(self, request: VolumeRequest) -> volume_pb2.Volume:
        """Make an empty volume (or a linked one of `request.source`) of exactly `request.size_bytes` for a migration to write into.

        Idempotent for what is alike. Errors: VOLUME_ALREADY_EXISTS, VOLUME_NOT_FOUND (source), NO_SPACE, INVALID_ARGUMENT.
        """

    async def companion(self, name: str) -> Path:
        """Return the folder for what belongs to the machine of a volume (UEFI variables, TPM). It may not exist: make it.

        It is deleted, copied, renamed, and kept in snapshots with the volume. Errors: VOLUME_NOT_FOUND.
        """

    async def resize_volume(self, name: str, size_bytes: int, *, done_by_guest: bool = False) -> volume_pb2.Volume:
        """Let a volume grow; `done_by_guest`: QEMU has done it, only write it down. Idempotent.

        Errors: VOLUME_NOT_FOUND, INVALID_ARGUMENT (shrinking), VOLUME_BUSY, VOLUME_IS_BASE, NO_SPACE.
        """

    def view(self, name: str, snapshot: str = "") -> AbstractAsyncContextManager[VolumeView]:
        """Hold a volume for reading: meanwhile it cannot be deleted. Errors: VOLUME_NOT_FOUND, SNAPSHOT_NOT_FOUND."""

    async def copy_volume(self, request: CopyRequest, progress: Progress) -> volume_pb2.Volume:
        """Make an independent copy in this pool. Idempotent for an equal request. Can be cancelled.

        Errors: VOLUME_NOT_FOUND, SNAPSHOT_NOT_FOUND, VOLUME_ALREADY_EXISTS, VOLUME_BUSY, NO_SPACE, INVALID_ARGUMENT (format).
        """

    async def flatten_volume(self, name: str, progress: Progress, *, done_by_guest: bool = False) -> volume_pb2.Volume:
        """Make a linked clone independent; `done_by_guest`: a block job has done it. Idempotent. Can be cancelled.

        Errors: VOLUME_NOT_FOUND, VOLUME_HAS_SNAPSHOTS, VOLUME_BUSY, VOLUME_IS_BASE, NO_SPACE, NOT_FLAT (done_by_guest).
        """

    async def freeze_volume(self, name: str) -> volume_pb2.Volume:
        """Make a volume a base, which is never written again. Idempotent. Errors: VOLUME_NOT_FOUND, VOLUME_BUSY."""

    async def rename_volume(self, name: str, new_name: str) -> volume_pb2.Volume:
        """Give a volume another name. Idempotent.

        Errors: VOLUME_NOT_FOUND, VOLUME_ALREADY_EXISTS, VOLUME_IN_USE (clones, readers), VOLUME_BUSY, VOLUME_HAS_SNAPSHOTS.
        """

    async def snapshot_volume(self, name: str, snapshot: str) -> volume_pb2.VolumeSnapshot:
        """Snapshot a volume and its companion. Idempotent.

        Errors: VOLUME_NOT_FOUND, SNAPSHOT_UNSUPPORTED, VOLUME_BUSY, VOLUME_IS_BASE, NO_SPACE.
        """

    async def revert_volume(self, name: str, snapshot: str) -> volume_pb2.Volume:
        """Make a volume and its companion what they were. Idempotent. Errors: SNAPSHOT_NOT_FOUND, VOLUME_BUSY, VOLUME_IS_BASE."""

    async def delete_snapshot(self, name: str, snapshot: str) -> None:
        """Delete a snapshot. Idempotent. Errors: VOLUME_NOT_FOUND, VOLUME_BUSY."""

    async def snapshots_of(self, name: str) -> list[volume_pb2.VolumeSnapshot]:
        """Return the snapshots of a volume, oldest first. Errors: VOLUME_NOT_FOUND."""

    async def snapshot_obstacle(self, name: str) -> str:
        """Tell why a volume can never be snapshotted here; "" when it can. Errors: VOLUME_NOT_FOUND."""

    async def snapshot_companion(self, name: str, snapshot: str) -> None:
        """Keep the companion as it is now, for a snapshot that QEMU makes itself. Idempotent."""

    async def revert_companion(self, name: str, snapshot: str) -> None:
        """Make the companion what such a snapshot kept; nothing kept, nothing done. Idempotent."""

    async def delete_companion_snapshot(self, name: str, snapshot: str) -> None:
        """Forget what such a snapshot kept. Idempotent."""
