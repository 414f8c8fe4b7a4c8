"""Images: brought in from where a node finds them or from here, made from guests' disks, and taken out again.

Uploads and downloads go in pieces. What breaks is taken up at the byte where it was: an upload also by a later call for the same file,
for it finds the task of the earlier one.
"""

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path

import grpc
from gugus.agent.v1 import volume_pb2
from gugus.agent.v1.task_pb2 import TASK_STATE_SUCCEEDED
from gugus.cluster.v1 import pool_pb2, pool_pb2_grpc, task_pb2

from client.caller import Caller, new_request_id
from client.tasks import ENDED
from common.errors import GugusError, invalid, precondition

PIECE_BYTES = 4 * 1024 * 1024
"""Of an upload; a manager passes each on to a node before it answers."""

PIECE_TIMEOUT_S = 120.0
"""For one piece over a slow line, changes of the acting manager included."""

AWAY_PAUSE_S = 1.0
"""Between questions to a node that is away."""

Progress = Callable[[int, int], None]
"""Called with the bytes done and in all."""

_NAMESPACE = uuid.UUID("7c5e8f0a-5a0e-4c0e-9a62-3f9c5e0d5f11")


class Images:
    """Images of the cluster. What returns a task goes on by itself: `tasks.wait(task)` waits for its end."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = pool_pb2_grpc.PoolServiceStub

    async def list(self, *, pool: str = "") -> Sequence[pool_pb2.Image]:
        """Return the images of a pool, or of all."""
        request = pool_pb2.ListImagesRequest(pool=pool)
        return (await self._caller.call(self._stub, "ListImages", request, pool_pb2.ListImagesResponse)).images

    async def import_(
        self, pool: str, image: str, source: str, *, sha256: str = "", node: str = "", request_id: str = ""
    ) -> task_pb2.Task:
        """Bring an image in from a path on `node` (empty: any), an http(s) address, or an OCI registry or folder."""
        request = pool_pb2.ImportImageRequest(
            pool=pool, image=image, source=source, sha256=sha256, node=node, request_id=request_id or new_request_id()
        )
        return await self._caller.call(self._stub, "ImportImage", request, task_pb2.Task)

    async def create(self, pool: str, image: str, guest: str, *, disk: str = "", request_id: str = "") -> task_pb2.Task:
        """Make an image from the disk (empty: the first) of a guest that does not run."""
        request = pool_pb2.CreateImageRequest(
            pool=pool, image=image, guest=guest, disk=disk, request_id=request_id or new_request_id()
        )
        return await self._caller.call(self._stub, "CreateImage", request, task_pb2.Task)

    async def delete(self, pool: str, image: str, *, request_id: str = "") -> task_pb2.Task:
        """Delete an image. Raises NOT_FOUND, FAILED_PRECONDITION (IMAGE_IN_USE)."""
        request = pool_pb2.DeleteImageRequest(pool=pool, image=image, request_id=request_id or new_request_id())
        return await self._caller.call(self._stub, "DeleteImage", request, task_pb2.Task)

    async def upload(
        self,
        pool: str,
        image: str,
        file: Path,
        *,
        sha256: str = "",
        node: str = "",
        progress: Progress = lambda done, total: None,
    ) -> task_pb2.Task:
        """Send a file of this machine; return the task that imports it once it is all there.

        An upload of the same file that was broken off goes on. Raises INVALID_ARGUMENT when the file is not what `sha256` says,
        OSError, and what the cluster answers.
        """
        size = (await asyncio.to_thread(file.stat)).st_size
        found = await asyncio.to_thread(_sha256_of, file)
        if sha256 and found != sha256:
            raise invalid("sha256", f"{file} has the SHA-256 {found}.", remedy="Check which is right.")
        task = await self._begin_upload(pool, image, size, found, node)
        if task.state in ENDED:
            return task
        done = (await self._write(task, 0, b"")).received_bytes
        while done < size:
            progress(done, size)
            piece = await asyncio.to_thread(_piece, file, done)
            if not piece:
                raise precondition("FILE_CHANGED", f"{file} became shorter while it was sent.")
            done = (await self._write(task, done, piece)).received_bytes
        progress(size, size)
        return task

    async def export(
        self, pool: str, volume: str, *, format_: str = "", node: str = "", request_id: str = ""
    ) -> task_pb2.Task:
        """Prepare the download of an image or any other volume. Wait for the task, then `download`."""
        request = pool_pb2.ExportVolumeRequest(
            pool=pool, volume=volume, format=format_, node=node, request_id=request_id or new_request_id()
        )
        return await self._caller.call(self._stub, "ExportVolume", request, task_pb2.Task)

    async def download(self, task: str, file: Path, *, progress: Progress = lambda done, total: None) -> str:
        """Write a prepared export into a file, end it on the node, and return its SHA-256, which was checked.

        What is received is beside the file, named `.part`, until it is whole, and is not left behind. Raises EXPORT_NOT_FOUND,
        CHECKSUM_MISMATCH, OSError.
        """
        part = file.with_name(f"{file.name}.part")
        try:
            sha256 = await self._receive(task, part, progress)
            await asyncio.to_thread(part.replace, file)
        finally:
            part.unlink(missing_ok=True)
        await self.end_export(task)
        return sha256

    async def _receive(self, task: str, part: Path, progress: Progress) -> str:
        """Write an export into a file; return its SHA-256, which was checked."""
        await asyncio.to_thread(part.write_bytes, b"")
        done, sha256 = 0, ""

        def request() -> pool_pb2.ReadExportRequest:
            return pool_pb2.ReadExportRequest(task=task, offset=done)

        stream = self._caller.stream(self._stub, "ReadExport", request, volume_pb2.ExportChunk)
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                if chunk.offset == done and chunk.data:
                    await asyncio.to_thread(_append, part, chunk.data)
                    done += len(chunk.data)
                    progress(done, chunk.total_bytes)
                if chunk.sha256:
                    sha256 = chunk.sha256
                    break
        if await asyncio.to_thread(_sha256_of, part) != sha256:
            raise precondition("CHECKSUM_MISMATCH", f"{part} is not what was sent.", remedy="Download it again.")
        return sha256

    async def end_export(self, task: str) -> None:
        """End an export. Idempotent."""
        request = pool_pb2.EndExportRequest(task=task)
        await self._caller.call(self._stub, "EndExport", request, pool_pb2.EndExportResponse)

    async def _begin_upload(self, pool: str, image: str, size: int, sha256: str, node: str) -> task_pb2.Task:
        """Return the open task of an earlier upload of the same file, or a new one."""
        same = str(uuid.uuid5(_NAMESPACE, f"{pool} {image} {size} {sha256} {node}"))
        for request_id in (same, new_request_id()):
            request = pool_pb2.UploadImageRequest(
                pool=pool, image=image, size_bytes=size, sha256=sha256, node=node, request_id=request_id
            )
            task = await self._caller.call(self._stub, "UploadImage", request, task_pb2.Task)
            if task.state not in ENDED or (task.state == TASK_STATE_SUCCEEDED and await self._has(pool, image, sha256)):
                return task
        return task

    async def _has(self, pool: str, image: str, sha256: str) -> bool:
        found = await self.list(pool=pool)
        return any((i.volume.name, i.volume.sha256) == (image, sha256) for i in found)

    async def _write(self, task: task_pb2.Task, offset: int, data: bytes) -> pool_pb2.WriteImageResponse:
        """Send a piece and return how far the upload is; a node that is away for a while is waited for, and asked where it is."""
        request = pool_pb2.WriteImageRequest(task=task.meta.name, offset=offset, data=data)
        deadline = time.monotonic() + PIECE_TIMEOUT_S
        while True:
            try:
                return await self._caller.call(
                    self._stub,
                    "WriteImage",
                    request,
                    pool_pb2.WriteImageResponse,
                    timeout_s=PIECE_TIMEOUT_S,
                    attempt_s=PIECE_TIMEOUT_S / 4,
                )
            except GugusError as error:
                away = error.code is grpc.StatusCode.UNAVAILABLE or error.reason == "NODE_NOT_ONLINE"
                if not (away or error.field == "offset") or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(AWAY_PAUSE_S)
            request = pool_pb2.WriteImageRequest(task=task.meta.name)


def _sha256_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _piece(file: Path, offset: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(offset)
        return opened.read(PIECE_BYTES)


def _append(file: Path, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(0, 2)  # not "append": a write that comes after an interruption must not make the file anew
        opened.write(data)
