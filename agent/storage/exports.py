"""Content of volumes on its way out: prepared once, so that a reader who was cut off goes on at the byte where it was.

What can never change (an image) is read where it is; of all else a copy is made that needs no other file. Exports end with the
agent's process, and when nobody reads them for an hour.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from gugus.agent.v1 import volume_pb2

from agent.storage import archive, qemu_img
from agent.storage.copying import view
from agent.storage.pool import Progress, VolumeView
from agent.storage.store import QEMU_FORMATS, VolumeStore
from common.errors import invalid, not_found

CHUNK_BYTES = 1024 * 1024
IDLE_S = 3600.0
LOOK_S = 60.0
HASH_TIMEOUT_S = 24 * 3600.0

DISK_FORMATS = frozenset({"qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc"})
"""What a disk can be exported as, in QEMU's words."""

FILESYSTEM = volume_pb2.VOLUME_FORMAT_FILESYSTEM
_COPIED_PERCENT = 80


@dataclass(slots=True)
class _Export:
    """Prepared content. held: what ends with the export."""

    path: Path
    total_bytes: int
    sha256: str
    held: contextlib.AsyncExitStack
    used_s: float = field(default_factory=time.monotonic)
    readers: int = 0


class Exports:
    """The exports of a pool."""

    def __init__(self, store: VolumeStore) -> None:
        self._store = store
        self._exports: dict[str, _Export] = {}
        self._watch: asyncio.Task[None] | None = None

    async def begin_export(self, id_: str, name: str, wanted: str, snapshot: str, progress: Progress) -> int:
        """Prepare the content of a volume for reading; return its size in bytes."""
        if id_ in self._exports:
            return self._exports[id_].total_bytes
        async with contextlib.AsyncExitStack() as held, self._store.room(0, name):
            source = await held.enter_async_context(view(self._store, name, snapshot))
            path = await self._prepare(held, source, wanted, progress)
            total = (await self._store.files.look(path.stat)).st_size
            progress(_COPIED_PERCENT, "computing the checksum")
            sha256 = await self._store.files.work(sha256_of, path, timeout_s=HASH_TIMEOUT_S)
            self._exports[id_] = _Export(path, total, sha256, held.pop_all())
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._end_idle())
        return total

    def has_export(self, id_: str) -> bool:
        """Whether there is such an export."""
        return id_ in self._exports

    async def read_export(self, id_: str, offset: int) -> AsyncGenerator[volume_pb2.ExportChunk, None]:
        """Yield the content from an offset to the end, and last its checksum."""
        export = self._exports.get(id_)
        if export is None:
            raise not_found("export", id_, remedy="It was ended, or the agent was restarted. Export it again.")
        total = export.total_bytes
        if offset > total:
            raise invalid("offset", f"{offset} is beyond the {total} bytes of the export.")
        export.readers += 1
        try:
            while offset < total:
                data = await self._store.files.look(_piece, export.path, offset)
                if not data:
                    raise not_found("export", id_, remedy="Its file was cut short. Export it again.")
                yield volume_pb2.ExportChunk(offset=offset, data=data, total_bytes=total)
                offset += len(data)
                export.used_s = time.monotonic()
            yield volume_pb2.ExportChunk(offset=offset, total_bytes=total, sha256=export.sha256)
        finally:
            export.readers -= 1
            export.used_s = time.monotonic()

    async def end_export(self, id_: str) -> None:
        """Forget an export."""
        export = self._exports.pop(id_, None)
        if export is not None:
            await export.held.aclose()

    async def _prepare(
        self, held: contextlib.AsyncExitStack, source: VolumeView, wanted: str, progress: Progress
    ) -> Path:
        """Return a file with the content, which is there as long as `held` is."""
        if source.format in QEMU_FORMATS:
            stored = QEMU_FORMATS[source.format]
            if wanted and wanted not in DISK_FORMATS:
                raise invalid(
                    "format", f'a disk cannot be "{wanted}".', remedy=f"One of {', '.join(sorted(DISK_FORMATS))}."
                )
            if source.fixed and wanted in ("", stored):
                return source.path
            work = await held.enter_async_context(self._store.work())
            told = _part(progress)
            await qemu_img.convert(source.path, stored, work, wanted or stored, told, snapshot=source.snapshot)
            return work
        if source.format == FILESYSTEM:
            if wanted not in ("", "tar"):
                raise invalid("format", f'a root file system cannot be "{wanted}".', remedy="Only tar.")
            work = await held.enter_async_context(self._store.work())
            progress(0, "packing its files")
            with await self._store.files.look(lambda: work.open("wb")) as file:
                await archive.pack(source.path, file, privileged=source.privileged)
            return work
        if wanted:
            raise invalid("format", "this volume is exported as it is stored.", remedy="Leave the format empty.")
        return source.path

    async def _end_idle(self) -> None:
        while self._exports:
            await asyncio.sleep(LOOK_S)
            for id_, export in list(self._exports.items()):
                if not export.readers and time.monotonic() - export.used_s > IDLE_S:
                    await self.end_export(id_)


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hex. Blocks. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _piece(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(CHUNK_BYTES)


def _part(progress: Progress) -> Callable[[int], None]:
    return lambda percent: progress(percent * _COPIED_PERCENT // 100, "making an independent copy")
