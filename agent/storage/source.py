"""Sources of imports: files of this host and http(s) addresses, copied with their checksum.

The copy is synced before it counts; whatever goes wrong is said with the source's name.
"""

import asyncio
import hashlib
import http.client
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from common.errors import GugusError, invalid, precondition
from common.executors import BoundedPool

CHUNK_BYTES = 4 * 1024 * 1024
HTTP_TIMEOUT_S = 30.0
"""Longest silence of a web server."""

COPY_TIMEOUT_S = 24 * 3600.0
STOP_TIMEOUT_S = 2.0
"""How long a copy that was cancelled may take for the chunk under way: a file system that hangs never ends it."""


async def fetch(source: str, target: Path, progress: Callable[[int, int], None]) -> str:
    """Copy `source` to `target` and return its SHA-256 in hex.

    `progress` is called in the loop with the bytes done and in all (0: unknown).
    Runs in a thread of its own, for it may take an hour, or hang; cancelling the caller ends it at the next chunk.
    Raises SOURCE_UNREADABLE, INVALID_ARGUMENT, and OSError when `target` cannot be written.
    """
    _check(source)
    loop = asyncio.get_running_loop()
    stop = threading.Event()

    def tell(done: int, total: int) -> None:
        loop.call_soon_threadsafe(progress, done, total)

    thread = BoundedPool("import", 1, COPY_TIMEOUT_S)
    copying = asyncio.ensure_future(thread.run(_copy, source, target, tell, stop))
    try:
        return await asyncio.shield(copying)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([copying], timeout=STOP_TIMEOUT_S)
        raise
    finally:
        thread.close()


def _check(source: str) -> None:
    if urlsplit(source).scheme in ("http", "https"):
        return
    if not source.startswith("/"):
        raise invalid(
            "source",
            f'"{source}" is neither an absolute path nor an http(s) address.',
            remedy="Write /path or https://…",
        )


def _copy(source: str, target: Path, tell: Callable[[int, int], None], stop: threading.Event) -> str:
    digest = hashlib.sha256()
    done = 0
    reader, total = _open(source)
    with reader, target.open("wb") as writer:
        while not stop.is_set():
            chunk = _read(reader, source)
            if not chunk:
                break
            writer.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            tell(done, total)
        writer.flush()
        os.fsync(writer.fileno())
    if total and done < total and not stop.is_set():
        raise _unreadable(source, f"it ended after {done} of {total} bytes")
    return digest.hexdigest()


def _open(source: str) -> tuple[IO[bytes], int]:
    try:
        if source.startswith("/"):
            path = Path(source)
            if not path.is_file():  # a device or a pipe would never end
                raise _unreadable(source, "it does not exist on this node, or is no file")
            return path.open("rb"), path.stat().st_size
        response = urllib.request.urlopen(source, timeout=HTTP_TIMEOUT_S)  # noqa: S310  (scheme checked by _check)
        return response, int(response.headers.get("Content-Length") or 0)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _unreadable(source, str(error)) from error


def _read(reader: IO[bytes], source: str) -> bytes:
    try:
        return reader.read(CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _unreadable(source, str(error)) from error


def _unreadable(source: str, why: str) -> GugusError:
    return precondition(
        "SOURCE_UNREADABLE", f'"{source}" cannot be read: {why}.', remedy="Check the path or address.", subject=source
    )
