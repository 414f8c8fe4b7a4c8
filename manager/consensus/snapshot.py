"""Snapshot files: the state machine at one index, in pieces, with a checksum over all (rule H12).

Invariant: nothing is built from a file before its checksum was verified, and nothing is unpacked to more than a piece's bound. Neither
writing nor reading holds more than one piece in memory.

The file is described at the message `Snapshot` of wire.proto.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import zstandard
from google.protobuf.message import DecodeError
from gugus.consensus.v1 import wire_pb2

from .command import decode_voters, encode_voters
from .disk import Disk, Reader
from .level import FIRST_LEVEL
from .types import MAX_PIECE_BYTES, CorruptState, Member

SNAPSHOT_FILE = "snapshot"

_HEADER = b"gugus raft snapshot 2\n"
_LENGTH_BYTES = 4
_DIGEST_BYTES = hashlib.sha256().digest_size
_LEVEL = 1  # of zstd: fast; states are protobuf and shrink well at any level
_MAX_FRAME_BYTES = MAX_PIECE_BYTES + 64 * 1024  # what does not shrink grows a little
_HASHED_AT_ONCE = 1 << 20
_REMEDY = "check the disk, then remove this voter from the cluster and add it again with an empty data folder"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a snapshot file says of itself: the state after applying entry `index` of `term`, and the voters then."""

    index: int
    term: int
    voters: tuple[Member, ...]
    made_at_s: float = 0.0
    level: int = FIRST_LEVEL


def write_snapshot(disk: Disk, name: str, snapshot: Snapshot, pieces: Iterable[bytes]) -> None:
    """Write a file and make it durable under its own name. Raises OSError."""
    message = wire_pb2.Snapshot(
        index=snapshot.index,
        term=snapshot.term,
        voters=encode_voters(snapshot.voters),
        made_at_s=snapshot.made_at_s,
        level=snapshot.level,
    )
    disk.remove(name)
    digest, offset = hashlib.sha256(), 0
    for part in _parts(message.SerializeToString(), pieces):
        digest.update(part)
        disk.write(name, offset, part)
        offset += len(part)
    disk.write(name, offset, digest.digest())
    disk.sync(name)


class SnapshotFile:
    """A file whose checksum was verified when this was made. Raises CorruptState, OSError."""

    def __init__(self, name: str, reader: Reader) -> None:
        self._name, self._reader = name, reader
        self._verify()
        head, self._start = self._frame(len(_HEADER))
        try:
            message = wire_pb2.Snapshot.FromString(head)
            voters = decode_voters(message.voters)
        except (DecodeError, ValueError) as error:
            raise CorruptState(f"{name}: {error}; {_REMEDY}") from error
        level = message.level or FIRST_LEVEL
        self.snapshot = Snapshot(message.index, message.term, voters, message.made_at_s, level)

    def pieces(self) -> Iterator[bytes]:
        """Yield the state machine's pieces. Raises CorruptState for one that unpacks to more than a piece may have."""
        unpack = zstandard.ZstdDecompressor()
        frame, position = self._frame(self._start)
        while frame:
            try:
                if zstandard.get_frame_parameters(frame).content_size > MAX_PIECE_BYTES:
                    raise CorruptState(f"{self._name}: a piece before byte {position} is too large; {_REMEDY}")
                yield unpack.decompress(frame)
            except zstandard.ZstdError as error:
                raise CorruptState(f"{self._name}: before byte {position}: {error}; {_REMEDY}") from error
            frame, position = self._frame(position)

    def _frame(self, position: int) -> tuple[bytes, int]:
        length = int.from_bytes(self._reader.read(position, _LENGTH_BYTES), "big")
        start = position + _LENGTH_BYTES
        if length > _MAX_FRAME_BYTES or start + length > self._reader.size - _DIGEST_BYTES:
            raise CorruptState(
                f"{self._name}: a frame at byte {position} is too long, or longer than the file; {_REMEDY}"
            )
        return self._reader.read(start, length), start + length

    def _verify(self) -> None:
        reader = self._reader
        if reader.read(0, len(_HEADER)) != _HEADER:
            raise CorruptState(f"{self._name}: not a snapshot of this version; {_REMEDY}")
        digest, end = hashlib.sha256(), max(0, reader.size - _DIGEST_BYTES)
        for position in range(0, end, _HASHED_AT_ONCE):
            digest.update(reader.read(position, min(_HASHED_AT_ONCE, end - position)))
        if reader.read(end, _DIGEST_BYTES) != digest.digest():
            raise CorruptState(f"{self._name}: wrong checksum; {_REMEDY}")


def _parts(head: bytes, pieces: Iterable[bytes]) -> Iterator[bytes]:
    pack = zstandard.ZstdCompressor(level=_LEVEL)
    yield _HEADER + _framed(head)
    for piece in pieces:
        if len(piece) > MAX_PIECE_BYTES:
            raise ValueError(f"a piece of {len(piece)} bytes; at most {MAX_PIECE_BYTES}")
        yield _framed(pack.compress(piece))
    yield _framed(b"")


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data
