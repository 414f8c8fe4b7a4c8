"""Takes a backup: from a manager's stream into a sealed file that was read back before it gets its name.

Invariant: under the name there is a whole, verified backup or what was there before; nothing readable ever reaches the disk.
"""

import asyncio
import os
import tempfile
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gugus.cluster.v1.backup_pb2 import BackupEnd, BackupHeader

from client.backup.file import Writer, read
from client.sdk import Gugus
from common.errors import already_exists, invalid, unavailable
from common.files import sync_folder

TRIES = 3
"""Times that a broken stream is begun anew, at another manager perhaps."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A backup that was taken."""

    path: Path
    header: BackupHeader
    end: BackupEnd


async def take(gugus: Gugus, path: Path, passphrase: str, *, force: bool = False) -> Taken:
    """Write a backup of the cluster to a new file (mode 0600); `force` replaces one that is there.

    Raises GugusError BACKUP_ALREADY_EXISTS, INVALID_ARGUMENT, BACKUP_BROKEN_OFF, what the manager raises, and OSError.
    """
    _may_write(path, force)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(fd, "w+b") as file:
            taken = await _write(gugus, file, path, passphrase)
        await asyncio.to_thread(_read_back, Path(name), passphrase)
        _name(Path(name), path, force)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)
    return taken


def _may_write(path: Path, force: bool) -> None:
    if not path.parent.is_dir():
        raise invalid("FILE", f"the folder {path.parent} does not exist.")
    if path.exists() and not force:
        raise _taken(path)


async def _write(gugus: Gugus, file: BinaryIO, path: Path, passphrase: str) -> Taken:
    writer: Writer | None = None
    header, tries = BackupHeader(), 0
    async with aclosing(gugus.backups.stream()) as messages:
        async for message in messages:
            kind = message.WhichOneof("content")
            if kind == "header":
                header, tries = message.header, tries + 1
                if tries > TRIES:
                    break
                file.seek(0)
                file.truncate()
                writer = await asyncio.to_thread(Writer, file, header, passphrase)
            elif writer is not None:
                writer.add(message)
            if writer is not None and kind == "end":
                await asyncio.to_thread(writer.finish)
                return Taken(path, header, message.end)
    raise unavailable(
        "BACKUP_BROKEN_OFF", f"the backup broke off {TRIES} times.", remedy="`gugus cluster status`, then again."
    )


def _read_back(path: Path, passphrase: str) -> None:
    for _ in read(path, passphrase):
        pass


def _name(temporary: Path, path: Path, force: bool) -> None:
    """Give the file its name, durably; one that came to be there meanwhile is not replaced without `force`."""
    if force:
        os.replace(temporary, path)
    else:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise _taken(path) from None
    sync_folder(path.parent)


def _taken(path: Path) -> Exception:
    return already_exists("backup", str(path), remedy="Choose another name, or --force to replace it.")
