"""Durable file writes: a power cut leaves the old content or the new, never a mixture; after the call, the new."""

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_atomic(path: str | Path, data: bytes, mode: int = 0o644) -> None:
    """Replace the content of `path` as a whole and make it durable before returning.

    The new content is written to a file beside it, synced, renamed over it, and the folder is synced, which is what
    POSIX needs for the name itself to survive a power cut (see fsync(2)). `mode` is set exactly, whatever the umask.
    Raises OSError; then the old content is untouched and no temporary file is left. The folder must exist.
    """
    path = Path(path)
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def remove_durably(path: str | Path) -> None:
    """Remove a file, if it is there, and make its absence durable. Raises OSError."""
    path = Path(path)
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: str | Path) -> None:
    """Make the names in a folder durable (created, renamed and removed entries). Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_json(path: str | Path) -> Any:
    """Read a JSON file. Raises OSError, or ValueError when the content is not JSON."""
    return json.loads(Path(path).read_bytes())


def write_json(path: str | Path, value: Any, mode: int = 0o644) -> None:
    """Write a value as JSON through `write_atomic`, keys sorted so that equal values are equal files."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True).encode() + b"\n", mode)
