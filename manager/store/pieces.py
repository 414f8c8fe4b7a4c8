"""The state as a snapshot in pieces, and back (proto/gugus/store/v1/store.proto, `Snapshot`).

Invariant: the pieces of equal states are equal, and none is much larger than `PIECE_BYTES`. Reading never builds more than
a state may have, whatever it is given, and refuses what it does not know as a whole.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

from google.protobuf.message import DecodeError
from gugus.store.v1 import store_pb2

from manager.store.repeats import Repeats
from manager.store.rules import (
    QUOTA_BYTES,
    RESERVE_BYTES,
    FromNewerRelease,
    object_bytes,
    refuse_unknown_fields,
)

SNAPSHOT_VERSION: Final = 1
"""Newest version of a snapshot that this release reads; see `Snapshot.version`."""

PIECE_BYTES: Final = 256 * 1024
"""About the size of a snapshot's piece; consensus takes up to 4 MiB."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored object: its bytes and the revisions of its making and last change."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int


@dataclass(slots=True)
class Whole:
    """A state that was read."""

    revision: int = 0
    size: int = 0
    """Bytes that its objects count towards the quota."""
    objects: dict[str, Entry] = field(default_factory=dict)
    repeats: Repeats = field(default_factory=Repeats)


def write_pieces(revision: int, objects: Sequence[Entry], requests: Sequence[tuple[str, bytes]]) -> Iterator[bytes]:
    """Yield messages that are one `Snapshot` when they are merged; the first one comes even when there is nothing to tell."""
    piece, size = _empty(revision), 0
    for request_id, result in requests:
        piece.applied.add(request_id=request_id, result=store_pb2.TxnResult.FromString(result))
        size += len(request_id) + len(result)
        if size > PIECE_BYTES:
            yield piece.SerializeToString(deterministic=True)
            piece, size = _empty(revision), 0
    for entry in sorted(objects, key=attrgetter("key")):
        piece.objects.add(
            key=entry.key,
            value=entry.value,
            create_revision=entry.create_revision,
            mod_revision=entry.mod_revision,
            version=entry.version,
        )
        size += len(entry.key) + len(entry.value)
        if size > PIECE_BYTES:
            yield piece.SerializeToString(deterministic=True)
            piece, size = _empty(revision), 0
    yield piece.SerializeToString(deterministic=True)


def read_pieces(pieces: Iterable[bytes]) -> Whole:
    """Return the state that pieces hold. Raises ValueError when they are none, or one that this release cannot read."""
    whole = Whole()
    for data in pieces:
        piece = _piece(data)
        whole.revision = piece.revision
        for one in piece.applied:
            whole.repeats.remember(one.request_id, one.result)
        for o in piece.objects:
            whole.objects[o.key] = Entry(o.key, o.value, o.create_revision, o.mod_revision, o.version)
            whole.size += object_bytes(o.key, o.value)
        if whole.size > QUOTA_BYTES + RESERVE_BYTES:
            raise ValueError(
                f"snapshot of the store: more than {QUOTA_BYTES + RESERVE_BYTES} bytes, which no state has"
            )
    return whole


def _empty(revision: int) -> store_pb2.Snapshot:
    return store_pb2.Snapshot(version=SNAPSHOT_VERSION, revision=revision)


def _piece(data: bytes) -> store_pb2.Snapshot:
    try:
        piece = store_pb2.Snapshot.FromString(data)
        if piece.version <= SNAPSHOT_VERSION:
            refuse_unknown_fields(piece)
    except (DecodeError, FromNewerRelease) as error:
        raise ValueError(f"snapshot of the store: {error}") from error
    if not 0 < piece.version <= SNAPSHOT_VERSION:
        raise ValueError(
            f"snapshot of the store: version {piece.version}; this release reads up to {SNAPSHOT_VERSION}, "
            "install the release that wrote it"
        )
    return piece
