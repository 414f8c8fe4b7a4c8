"""What callers of the AccessService may say: their first message, sizes, commands and paths, read and checked."""

import posixpath
import re
from collections.abc import AsyncIterator
from typing import Any

from gugus.agent.v1 import access_pb2

from agent.compute.access import KIND_WORDS, Command, FileWish, Size
from common.errors import invalid

MAX_SIZE = 1000
"""Most columns or rows of a terminal."""

MAX_ARGUMENT_BYTES = 128 * 1024
"""Longest argument or variable, MAX_ARG_STRLEN of Linux (execve(2))."""

MAX_COMMAND_BYTES = 1024 * 1024
"""Arguments and environment in all; Linux allows 2 MiB with its usual stack (execve(2))."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


async def first(requests: AsyncIterator[Any]) -> Any:
    """Return the first message of a stream. Raises INVALID_ARGUMENT unless it is a `start`."""
    async for message in requests:
        if message.HasField("start"):
            return message
        break
    raise invalid("start", "is missing; the first message of the stream must have it")


def kind_of(kind: access_pb2.ConsoleKind.ValueType) -> access_pb2.ConsoleKind.ValueType:
    """Return a console's kind. Raises INVALID_ARGUMENT for none."""
    if kind not in KIND_WORDS:
        raise invalid("start.kind", f"{kind} is no kind of console; it is VNC, SPICE, SERIAL or TERMINAL")
    return kind


def size_of(field: str, size: access_pb2.TerminalSize) -> Size:
    """Return a terminal's size, the usual one for none. Raises INVALID_ARGUMENT."""
    if not size.columns and not size.rows:
        return Size()
    if not (1 <= size.columns <= MAX_SIZE and 1 <= size.rows <= MAX_SIZE):
        raise invalid(field, f"{size.columns} x {size.rows} is no size of a terminal; each is from 1 to {MAX_SIZE}")
    return Size(size.columns, size.rows)


def command_of(execution: access_pb2.Execution) -> Command:
    """Return a program to run. Raises INVALID_ARGUMENT, which shows no argument: it may be a secret."""
    words = [*execution.command, *execution.environment, *execution.environment.values()]
    if not execution.command or not execution.command[0]:
        raise invalid("execution.command", "is empty; name a program")
    for word in (*words, execution.working_directory, execution.user):
        if "\0" in word or len(word.encode()) > MAX_ARGUMENT_BYTES:
            raise invalid("execution.command", "has a word with a zero byte in it, or of more than 128 KiB")
    if sum(len(word.encode()) for word in words) > MAX_COMMAND_BYTES:
        raise invalid("execution.command", "has more than 1 MiB of arguments and environment")
    for variable in execution.environment:
        if not _VARIABLE.fullmatch(variable):
            raise invalid("execution.environment", f'"{variable}" is not a name like LANG')
    if execution.working_directory:
        absolute("execution.working_directory", execution.working_directory)
    if execution.user.startswith("-"):
        raise invalid("execution.user", f'"{execution.user}" is not the name or number of a user')
    return Command(
        argv=tuple(execution.command),
        environment=dict(execution.environment),
        folder=execution.working_directory,
        user=execution.user,
        size=size_of("execution.size", execution.size) if execution.terminal else None,
    )


def absolute(field: str, path: str) -> str:
    """Return an absolute path to something that is not the root. Raises INVALID_ARGUMENT."""
    windows = re.match(r"[A-Za-z]:[\\/]", path)
    if "\0" in path or not (windows or posixpath.isabs(path)):
        raise invalid(field, f"{path!a} is not an absolute path, like /etc/hosts")
    return path


def wish_of(start: access_pb2.PushFileStart) -> FileWish:
    """Return how a file is to be. Raises INVALID_ARGUMENT."""
    if start.path.endswith("/"):
        raise invalid("start.path", f"{start.path!a} names a folder; name the file in it")
    if start.mode > 0o7777:
        raise invalid("start.mode", f"{start.mode:o} is not a mode; it is octal, from 1 to 7777")
    return FileWish(
        mode=start.mode or None,
        uid=start.uid if start.HasField("uid") else None,
        gid=start.gid if start.HasField("gid") else None,
    )
