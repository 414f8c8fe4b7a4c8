"""Content of volumes on its way in: uploads, kept in the pool until they are whole, resumed after any break; and the exports.

An upload outlives the agent's process. What it received is what its file holds; the checksum at its import finds a file that a
power cut left with a hole.
"""

import asyncio
import contextlib
import os
import re
import time
from collections import defaultdict
from pathlib import Path

from gugus.agent.v1 import volume_pb2

from agent.storage.exports import Exports, sha256_of
from agent.storage.layout import UPLOADS
from agent.storage.store import VolumeStore
from common.errors import invalid, not_found, precondition
from common.files import read_json, remove_durably, write_json

UPLOAD_SCHEME = "upload:"
"""What a source of an import begins with that was received."""

PIECE_BYTES = 8 * 1024 * 1024
"""Largest piece of an upload."""

IDLE_S = 24 * 3600.0
"""An upload that receives nothing for so long is removed."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")


class Transfer(Exports):
    """A pool's uploads and exports, as `agent.storage.pool.VolumeTransfer` describes them."""

    def __init__(self, store: VolumeStore) -> None:
        super().__init__(store)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._admission = asyncio.Lock()
        """Held while a new upload's room is looked for, until its note counts for the next one."""

    async def clean(self) -> None:
        """Remove uploads that were given up."""
        await self._store.files.work(self._clean)

    async def begin_upload(self, id_: str, total_bytes: int) -> volume_pb2.Upload:
        """Begin to receive a file, or go on."""
        data, note = self._files(id_)
        if total_bytes < 1:
            raise invalid("total_bytes", "is 0.", remedy="Give the size of the file.")
        async with self._locks[id_], self._admission, self._store.room(total_bytes):
            await self.clean()
            known = await self._store.files.look(_total, note)
            if known not in (None, total_bytes):
                raise invalid("total_bytes", f"is {total_bytes}, but this upload began with {known}.")
            if known is None:
                await self._store.require_room(total_bytes, await self._store.files.look(self._to_come))
                await self._store.files.work(data.touch)
                await self._store.files.work(write_json, note, {"total": total_bytes})
            return await self._upload(id_)

    async def write_upload(self, id_: str, offset: int, data: bytes) -> volume_pb2.Upload:
        """Take a piece; what of it was received before is passed over."""
        if len(data) > PIECE_BYTES:
            raise invalid("data", f"has {len(data)} bytes.", remedy=f"Send at most {PIECE_BYTES} at once.")
        async with self._locks[id_], self._store.room():
            upload = await self._upload(id_)
            if offset > upload.received_bytes or offset + len(data) > upload.total_bytes:
                wrong = f"{offset} does not go on at {upload.received_bytes} of {upload.total_bytes} bytes."
                raise invalid("offset", wrong, remedy="Ask GetUpload where to go on.")
            rest = data[upload.received_bytes - offset :]
            if rest:
                await self._store.files.work(_append, self._files(id_)[0], upload.received_bytes, rest)
                upload.received_bytes += len(rest)
            return upload

    async def get_upload(self, id_: str) -> volume_pb2.Upload:
        """Tell how far it is."""
        async with self._store.room():
            return await self._upload(id_)

    async def end_upload(self, id_: str) -> None:
        """Forget an upload and what was received."""
        data, note = self._files(id_)
        async with self._locks[id_], self._store.room():
            await self._store.files.work(data.unlink, True)
            await self._store.files.work(remove_durably, note)
        self._locks.pop(id_, None)

    async def take_upload(self, id_: str, work: Path) -> str:
        """Make `work` another name of what was received, and return its SHA-256. Raises UPLOAD_NOT_FOUND, UPLOAD_INCOMPLETE."""
        upload = await self._upload(id_)
        if upload.received_bytes != upload.total_bytes:
            raise precondition(
                "UPLOAD_INCOMPLETE",
                f"{upload.received_bytes} of {upload.total_bytes} bytes were received.",
                remedy="Send the rest.",
            )
        await self._store.files.work(os.link, self._files(id_)[0], work)
        return await self._store.files.work(sha256_of, work, timeout_s=IDLE_S)

    async def _upload(self, id_: str) -> volume_pb2.Upload:
        data, note = self._files(id_)
        total = await self._store.files.look(_total, note)
        if total is None:
            raise not_found("upload", id_, remedy="It was ended, or received nothing for a day. Begin another.")
        received = (await self._store.files.look(data.stat)).st_size
        return volume_pb2.Upload(id=id_, received_bytes=received, total_bytes=total)

    def _files(self, id_: str) -> tuple[Path, Path]:
        if not _ID.fullmatch(id_):
            raise invalid("id", f'"{id_}" is no id.', remedy="Use letters, digits and inner -, at most 64.")
        folder = self._store.layout.root / UPLOADS
        return folder / f"{id_}.part", folder / f"{id_}.json"

    def _to_come(self) -> int:
        """Return how many bytes the uploads under way have not received yet: their room is as good as taken."""
        left = 0
        for note in (self._store.layout.root / UPLOADS).glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):  # it ended just now
                left += max(0, int(read_json(note)["total"]) - note.with_suffix(".part").stat().st_size)
        return left

    def _clean(self) -> None:
        for data in (self._store.layout.root / UPLOADS).glob("*.part"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - data.stat().st_mtime > IDLE_S:
                    data.unlink()
                    remove_durably(data.with_suffix(".json"))


def _total(note: Path) -> int | None:
    try:
        return int(read_json(note)["total"])
    except FileNotFoundError:
        return None


def _append(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
