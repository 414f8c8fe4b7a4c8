"""Writing and reading the file of a backup, one message at a time.

Invariant: what `read` yields was sealed with this passphrase, in this order; and when it returns, nothing was missing.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError
from gugus.cluster.v1.backup_pb2 import BackupEnd, BackupHeader, BackupMessage, FileHeader

from client.backup.seal import Seal, SealBroken, key_of, new_scrypt
from common.errors import GugusError, invalid, not_found, precondition

FORM = b"gugus backup "
PREAMBLE = FORM + b"1\n"
LENGTH_BYTES = 4
DIGEST_BYTES = hashlib.sha256().digest_size
MAX_HEADER_BYTES = 64 * 1024
MAX_FRAME_BYTES = 20 * 1024 * 1024
"""More than any message that a manager sends; a length above it is damage, not a reason to take so much memory."""

READ_BYTES = 1024 * 1024


class Writer:
    """Writes one file from the beginning on; `add` the messages after the header, then `finish`."""

    def __init__(self, file: BinaryIO, header: BackupHeader, passphrase: str) -> None:
        self._file, self._digest, self._frames = file, hashlib.sha256(), 0
        head = FileHeader(backup=header, scrypt=new_scrypt())
        start = PREAMBLE + _framed(head.SerializeToString())
        self._seal = Seal(key_of(passphrase, head.scrypt), hashlib.sha256(start).digest())
        self._write(start)

    def add(self, message: BackupMessage) -> None:
        """Write a message; the end is sealed as the last one."""
        last = message.WhichOneof("content") == "end"
        self._write(_framed(self._seal.close(self._frames, message.SerializeToString(), last=last)))
        self._frames += 1

    def finish(self) -> None:
        """Write the checksum, and make all of it durable."""
        self._file.write(self._digest.digest())
        self._file.flush()
        os.fsync(self._file.fileno())

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a file tells without its passphrase. sha256: of the whole file, hexadecimal."""

    header: FileHeader
    size_bytes: int
    sha256: str


def inspect(path: Path) -> Inspection:
    """Read the head and verify the checksum: the file is whole. Who wrote it is not proven without the passphrase.

    Raises GugusError BACKUP_NOT_FOUND, NOT_A_BACKUP, BACKUP_FORM_UNKNOWN, BACKUP_DAMAGED.
    """
    with _open(path) as file:
        header, _ = _head(path, file)
        return Inspection(header, os.fstat(file.fileno()).st_size, _verify_checksum(path, file))


def read(path: Path, passphrase: str) -> Iterator[BackupMessage]:
    """Yield the messages after the header, the end included. Raises what `inspect` does, and WRONG_PASSPHRASE."""
    with _open(path) as file:
        header, bound_to = _head(path, file)
        start = file.tell()
        _verify_checksum(path, file)
        file.seek(start)
        try:
            seal = Seal(key_of(passphrase, header.scrypt), bound_to)
        except ValueError as error:
            raise _damaged(path, f"its header asks for {error}") from None
        yield from _checked(path, _messages(path, file, seal))


def _messages(path: Path, file: BinaryIO, seal: Seal) -> Iterator[BackupMessage]:
    end = os.fstat(file.fileno()).st_size - DIGEST_BYTES
    number = 0
    while file.tell() < end:
        data = _frame(path, file, MAX_FRAME_BYTES)
        try:
            yield BackupMessage.FromString(seal.open(number, data, last=file.tell() == end))
        except SealBroken:
            if number == 0:
                raise _wrong_passphrase(path) from None
            raise _damaged(path, "a part of it was left out, moved or changed") from None
        except DecodeError as error:
            raise _damaged(path, f"a part of it makes no sense: {error}") from None
        number += 1


def _checked(path: Path, messages: Iterator[BackupMessage]) -> Iterator[BackupMessage]:
    """Pass messages on; they must come in order, and be what the end says."""
    told, digest, order = BackupEnd(), hashlib.sha256(), ["identity"]
    for message in messages:
        kind = message.WhichOneof("content")
        if kind not in order:
            raise _damaged(path, f"it holds {kind or 'nothing'} where {' or '.join(order) or 'nothing'} should be")
        order = [] if kind == "end" else ["state", "end"]
        if kind == "state":
            digest.update(message.state)
            told.pieces, told.bytes = told.pieces + 1, told.bytes + len(message.state)
        if kind == "end":
            told.sha256 = digest.digest()
            if told != message.end or not told.pieces:
                raise _damaged(path, "it does not hold what its end says")
        yield message
    if order:
        raise _damaged(path, "its end is missing")


def _head(path: Path, file: BinaryIO) -> tuple[FileHeader, bytes]:
    """Return the header, and what the frames are bound to."""
    preamble = file.read(len(PREAMBLE))
    if not preamble.startswith(FORM):
        raise precondition("NOT_A_BACKUP", f"{path} is no backup of a Gugus cluster.", subject=str(path))
    if preamble != PREAMBLE:
        raise precondition(
            "BACKUP_FORM_UNKNOWN",
            f"{path} is a backup of a form that this version does not know.",
            remedy="Use the version of Gugus that wrote it, or a newer one.",
            subject=str(path),
        )
    data = _frame(path, file, MAX_HEADER_BYTES)
    try:
        header = FileHeader.FromString(data)
    except DecodeError as error:
        raise _damaged(path, f"its header makes no sense: {error}") from None
    return header, hashlib.sha256(PREAMBLE + _framed(data)).digest()


def _frame(path: Path, file: BinaryIO, most_bytes: int) -> bytes:
    length = int.from_bytes(file.read(LENGTH_BYTES), "big")
    if not 0 < length <= most_bytes:
        raise _damaged(path, f"a part of it claims to be {length} bytes long")
    data = file.read(length)
    if len(data) != length:
        raise _damaged(path, "it is cut off")
    return data


def _verify_checksum(path: Path, file: BinaryIO) -> str:
    """Return SHA-256 of the whole file. Raises BACKUP_DAMAGED when its last bytes are not the checksum of the rest."""
    digest, left = hashlib.sha256(), os.fstat(file.fileno()).st_size - DIGEST_BYTES
    file.seek(0)
    while left > 0 and (data := file.read(min(READ_BYTES, left))):
        digest.update(data)
        left -= len(data)
    told = file.read(DIGEST_BYTES)
    if told != digest.digest():
        raise _damaged(path, "it is cut off, or its checksum is wrong")
    digest.update(told)
    return digest.hexdigest()


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise not_found("backup", str(path)) from None
    except (IsADirectoryError, PermissionError) as error:
        raise invalid("FILE", f"{path} cannot be read: {error.strerror}.") from None


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


def _wrong_passphrase(path: Path) -> GugusError:
    return precondition(
        "WRONG_PASSPHRASE",
        f"{path} is whole, but not sealed with this passphrase.",
        remedy="Without the passphrase that it was made with nobody can read it. Mind a space or line too much.",
        subject=str(path),
    )


def _damaged(path: Path, how: str) -> GugusError:
    return precondition(
        "BACKUP_DAMAGED",
        f"{path} is damaged: {how}.",
        remedy="Use another copy of it, or another backup.",
        subject=str(path),
    )
