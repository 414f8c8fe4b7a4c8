"""`gugus guest push` and `pull`: files into guests and out of them."""

import asyncio
import os
import re
import stat
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Annotated

import typer
from gugus.agent.v1.access_pb2 import FileInfo

from client.access import PIECE_BYTES
from client.cli.guest_app import app
from client.cli.output import say
from client.cli.session import run
from client.local_files import require_folder
from client.sdk import Gugus
from common.errors import GugusError, invalid, several
from common.units import format_size

STREAM = "-"
"""Standard input or output instead of a file."""

Place = Annotated[str, typer.Argument(metavar="GUEST:PATH", help="An absolute path in a guest, like web:/etc/motd.")]


@app.command()
def push(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help='A file here; "-" is standard input.')],
    place: Place,
    mode: Annotated[str, typer.Option(metavar="OCTAL", help="Permission bits (the file's own).")] = "",
    owner: Annotated[
        str, typer.Option(metavar="UID[:GID]", help="Owner in the guest, by number (as before, or 0).")
    ] = "",
) -> None:
    """Put a file into a guest, whole or not at all. A path that ends in "/" takes the file's name.

    gugus guest push nginx.conf web:/etc/nginx/ --mode 0644
    """
    name, path = _place(place)
    if path.endswith("/"):
        if file == STREAM:
            raise invalid("GUEST:PATH", f"{path} names a folder; standard input has no name to go with it.")
        path += Path(file).name
    wanted, (uid, gid) = _rights(mode, owner)

    async def work(gugus: Gugus) -> FileInfo:
        with _source(file) as source:
            status = os.fstat(source.fileno())
            regular = stat.S_ISREG(status.st_mode)
            return await gugus.access.push(
                name, path, _pieces(source),
                mode=wanted or (stat.S_IMODE(status.st_mode) if regular and file != STREAM else 0),
                uid=uid, gid=gid, size_bytes=status.st_size if regular and file != STREAM else 0,
            )  # fmt: skip

    placed = run(ctx, work)
    say(f"{name}:{path}: {format_size(placed.size_bytes)}, mode {placed.mode:04o}, owner {placed.uid}:{placed.gid}.")


@app.command()
def pull(
    ctx: typer.Context,
    place: Place,
    file: Annotated[str, typer.Argument(metavar="FILE", help='A file or a folder here; "-" is standard output.')] = ".",
) -> None:
    """Take a file from a guest, whole or not at all.

    gugus guest pull web:/var/log/syslog
    """
    name, path = _place(place)
    if path.endswith("/"):
        raise invalid("GUEST:PATH", f"{path} names a folder; name a file in it.")
    if file == STREAM:
        run(ctx, lambda gugus: _pull_to_stdout(gugus, name, path))
        return
    target = Path(file) / PurePosixPath(path).name if Path(file).is_dir() else Path(file)
    require_folder("FILE", target)
    size = run(ctx, lambda gugus: _pull(gugus, name, path, target))
    say(f"{target}: {format_size(size)}.")


async def _pull(gugus: Gugus, name: str, path: str, target: Path) -> int:
    """Write a file beside its place and move it there when it is whole; return its size."""
    told: list[FileInfo] = []
    fd, work = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent or ".")
    try:
        with os.fdopen(fd, "wb") as out:
            async with aclosing(gugus.access.pull(name, path, told.append)) as pieces:
                async for piece in pieces:
                    out.write(piece)
            os.fchmod(out.fileno(), (told[0].mode & 0o777 if told else 0) or 0o644)
            size = out.tell()
        os.replace(work, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(work)
        raise
    return size


async def _pull_to_stdout(gugus: Gugus, name: str, path: str) -> None:
    async with aclosing(gugus.access.pull(name, path)) as pieces:
        async for piece in pieces:
            sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def _source(file: str) -> IO[bytes]:
    try:
        return os.fdopen(os.dup(0), "rb") if file == STREAM else open(file, "rb")
    except OSError as error:
        raise invalid("FILE", f"{file} cannot be read: {error.strerror}.") from None


async def _pieces(source: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(source.read, PIECE_BYTES):
        yield piece


def _place(text: str) -> tuple[str, str]:
    """Read GUEST:PATH. Raises GugusError."""
    name, colon, path = text.partition(":")
    if not colon or not name or not (path.startswith("/") or path[1:3] in (":\\", ":/")):
        raise invalid("GUEST:PATH", f'"{text}" is not a guest and an absolute path in it, like web:/etc/motd.')
    return name, path


def _rights(mode: str, owner: str) -> tuple[int, tuple[int | None, int | None]]:
    """Read --mode and --owner. Raises GugusError with the faults of both."""
    faults: list[GugusError] = []
    bits = int(mode, 8) if re.fullmatch("[0-7]{1,5}", mode) else 0 if not mode else -1
    if not 0 <= bits <= 0o7777:
        faults.append(invalid("--mode", f'"{mode}" is not octal, like 0644.'))
    if owner and not re.fullmatch("[0-9]+(:[0-9]+)?", owner):
        faults.append(invalid("--owner", f'"{owner}" is not UID or UID:GID, like 0:0 or 1000.'))
    if faults:
        raise several(faults)
    uid, _, gid = owner.partition(":")
    return bits, (int(uid) if uid else None, int(gid) if gid else None)
