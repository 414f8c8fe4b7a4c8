"""Snapshots: the state machine at one index in one checked file (rule H12).

Invariant: a member always has a snapshot on disk, from its first start on; its checksum is verified before anything is
built from it. No fork: the state machine serializes itself in the consensus thread.
"""

import hashlib
import zlib
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from gugus.consensus.v1 import wire_pb2

from .command import decode_voters, encode_voters
from .disk import Disk
from .types import CorruptState, Member

SNAPSHOT_FILE = "snapshot"

_HEADER = b"gugus raft snapshot 1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size
_COMPRESSION = 1  # fast; states are protobuf and shrink well at any level


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state after applying entry `index` of `term`, and the voters then."""

    index: int
    term: int
    voters: tuple[Member, ...]
    joining: bool
    state: bytes

    def encode(self) -> bytes:
        """Return the file: header, SHA-256 of the rest, protobuf."""
        message = wire_pb2.Snapshot(
            index=self.index,
            term=self.term,
            voters=encode_voters(self.voters),
            joining=self.joining,
            state=zlib.compress(self.state, _COMPRESSION),
        )
        body = message.SerializeToString()
        return _HEADER + hashlib.sha256(body).digest() + body

    @classmethod
    def decode(cls, data: bytes) -> "Snapshot":
        """Verify and read a file. Raises CorruptState."""
        digest, body = data[len(_HEADER) : len(_HEADER) + _DIGEST_BYTES], data[len(_HEADER) + _DIGEST_BYTES :]
        if not data.startswith(_HEADER) or hashlib.sha256(body).digest() != digest:
            raise CorruptState(
                f"{SNAPSHOT_FILE}: wrong checksum or format; check the disk, then remove this voter from the cluster "
                "and add it again with an empty data folder"
            )
        try:
            message = wire_pb2.Snapshot.FromString(body)
            voters = decode_voters(message.voters)
            state = zlib.decompress(message.state)
        except (DecodeError, ValueError, zlib.error) as error:
            raise CorruptState(f"{SNAPSHOT_FILE}: {error}") from error
        return cls(message.index, message.term, voters, message.joining, state)


def load_snapshot(disk: Disk) -> tuple[Snapshot, bytes] | None:
    """Return the snapshot on disk with its bytes, None before the first start. Raises CorruptState, OSError."""
    data = disk.read(SNAPSHOT_FILE)
    return None if data is None else (Snapshot.decode(data), data)
