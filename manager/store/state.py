"""The replicated state: revisioned objects under `kind/name`, changed by transactions that all members apply alike.

Invariant: the state after a sequence of payloads is a function of that sequence alone (no clock, no randomness, no
order of hashing), and `apply` never raises. Every transaction that changes something raises the revision by one.
`apply` and `restore` run in the consensus thread; readers of any thread see only whole transactions.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError
from gugus.store.v1 import store_pb2

MAX_VALUE_BYTES: Final = 40 * 1024
"""Largest object. A Raft entry stays below 48 KiB (manager.consensus); the rest is room for keys and compares."""

MAX_KEY_BYTES: Final = 200
"""Longest key: a kind, a slash and two names of 63 characters fit."""

REMEMBERED_REQUESTS: Final = 10_000
"""Idempotency keys kept: at 100 writes a second, those of the last 100 seconds. The same on all members, for ever."""

HISTORY_CHANGES: Final = 10_000
"""Changes kept for watchers."""

HISTORY_BYTES: Final = 64 * 1024 * 1024
"""Bytes of values kept for watchers, whichever bound is reached first."""

PIECE_BYTES: Final = 256 * 1024
"""About the size of a snapshot's piece; consensus takes up to 4 MiB."""

SNAPSHOT_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored object: its bytes and the revisions of its making and last change."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int


@dataclass(frozen=True, slots=True)
class RawChange:
    """One change of one key; `value` is None when it was deleted."""

    revision: int
    key: str
    value: bytes | None


class HistoryGone(Exception):
    """Changes right after a revision are not kept any more."""

    def __init__(self, asked: int, oldest: int) -> None:
        super().__init__(f"changes after revision {asked} are gone; kept are those after {oldest}")
        self.asked = asked
        self.oldest = oldest


class StoreState:
    """The state machine of consensus, and the local replica that readers see."""

    def __init__(self, *, history_changes: int = HISTORY_CHANGES, history_bytes: int = HISTORY_BYTES) -> None:
        self._lock = threading.Lock()
        self._kinds: dict[str, dict[str, Entry]] = {}
        self._applied: dict[str, int] = {}
        self._revision = 0
        self._history: deque[RawChange] = deque()
        self._history_size = 0
        self._history_start = 0
        self._history_changes = history_changes
        self._history_bytes = history_bytes
        self._listener: Callable[[], None] | None = None

    # The face for consensus.

    def apply(self, index: int, payload: bytes) -> bytes:
        """Apply a serialized `Txn` and return a serialized `TxnResult`, also for a malformed one."""
        del index  # the revision counts changes, not entries of the log
        try:
            txn = store_pb2.Txn.FromString(payload)
        except DecodeError as error:
            return _rejected(self.revision, f"no transaction: {error}")
        with self._lock:
            result = self._apply(txn)
        if result.succeeded and not result.repeated:
            self._notify()
        return result.SerializeToString(deterministic=True)

    def snapshot(self) -> Iterator[bytes]:
        """Return the whole state as of now in pieces; the same ones on every member at the same index of the log.

        Only references are copied here: objects never change, they are replaced. The pieces are made when they are drawn.
        """
        with self._lock:
            objects = [entry for names in self._kinds.values() for entry in names.values()]
            applied, revision = list(self._applied.items()), self._revision
        return _pieces(objects, applied, revision)

    def restore(self, pieces: Iterable[bytes]) -> None:
        """Replace the whole state. Raises ValueError for what is no snapshot that this version can read.

        Watchers that are behind the snapshot cannot know what happened in between: they get HistoryGone.
        """
        kinds: dict[str, dict[str, Entry]] = {}
        applied: dict[str, int] = {}
        revision = 0
        for piece in pieces:
            message = _piece(piece)
            revision = message.revision
            for o in message.objects:
                entry = Entry(o.key, o.value, o.create_revision, o.mod_revision, o.version)
                kinds.setdefault(_kind(o.key), {})[o.key] = entry
            applied.update((a.request_id, a.revision) for a in message.applied)
        with self._lock:
            self._kinds = kinds
            self._applied = applied
            self._revision = self._history_start = revision
            self._history.clear()
            self._history_size = 0
        self._notify()

    # The face for readers, of any thread.

    @property
    def revision(self) -> int:
        """Revision of the last change applied here."""
        with self._lock:
            return self._revision

    def get(self, key: str) -> Entry | None:
        """Return one object."""
        with self._lock:
            return self._kinds.get(_kind(key), {}).get(key)

    def list(self, prefix: str = "") -> tuple[int, list[Entry]]:
        """Return the revision and all objects whose key starts so, by key: one consistent view."""
        kind, slash, _ = prefix.partition("/")
        with self._lock:
            groups = [self._kinds.get(kind, {})] if slash else list(self._kinds.values())
            found = [entry for names in groups for entry in names.values()]
            revision = self._revision
        return revision, sorted((e for e in found if e.key.startswith(prefix)), key=lambda e: e.key)

    def changes_after(self, revision: int) -> Sequence[RawChange]:
        """Return every change after a revision, oldest first. Raises HistoryGone.

        A revision of the future, as a client of a member further ahead may know it, has no changes yet.
        """
        with self._lock:
            if revision < self._history_start:
                raise HistoryGone(revision, self._history_start)
            newest_first = list(_newer(reversed(self._history), revision))
        return newest_first[::-1]

    def set_listener(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change, in the consensus thread. It must be quick and not raise."""
        self._listener = listener

    # Applying; the lock is held.

    def _apply(self, txn: store_pb2.Txn) -> store_pb2.TxnResult:
        if error := malformed(txn):
            return store_pb2.TxnResult(revision=self._revision, error=error)
        if txn.request_id and (earlier := self._applied.get(txn.request_id)) is not None:
            return store_pb2.TxnResult(succeeded=True, revision=earlier, repeated=True)
        failed = [c for c in txn.compares if not _holds(c, self._entry(c.key))]
        if failed:
            return store_pb2.TxnResult(revision=self._revision, failed=[self._failure(c.key) for c in failed])
        deletes = [key for key in txn.deletes if self._entry(key) is not None]
        changed = [put.key for put in txn.puts] + deletes
        if changed:
            self._revision += 1
        for put in txn.puts:
            self._put(put.key, put.value)
        for key in deletes:
            del self._kinds[_kind(key)][key]
        self._record(changed)
        if txn.request_id:
            self._remember(txn.request_id)
        return store_pb2.TxnResult(succeeded=True, revision=self._revision)

    def _entry(self, key: str) -> Entry | None:
        return self._kinds.get(_kind(key), {}).get(key)

    def _failure(self, key: str) -> store_pb2.FailedCompare:
        entry = self._entry(key)
        return store_pb2.FailedCompare(key=key, mod_revision=entry.mod_revision if entry else 0)

    def _put(self, key: str, value: bytes) -> None:
        old = self._entry(key)
        self._kinds.setdefault(_kind(key), {})[key] = Entry(
            key,
            value,
            old.create_revision if old else self._revision,
            self._revision,
            old.version + 1 if old else 1,
        )

    def _record(self, changed: Sequence[str]) -> None:
        for key in changed:
            entry = self._entry(key)
            value = entry.value if entry else None
            self._history.append(RawChange(self._revision, key, value))
            self._history_size += len(value or b"")
        while len(self._history) > self._history_changes or self._history_size > self._history_bytes:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        oldest = self._history[0].revision
        while self._history and self._history[0].revision == oldest:
            self._history_size -= len(self._history.popleft().value or b"")
        self._history_start = oldest

    def _remember(self, request_id: str) -> None:
        self._applied[request_id] = self._revision
        if len(self._applied) > REMEMBERED_REQUESTS:
            del self._applied[next(iter(self._applied))]

    def _notify(self) -> None:
        if self._listener is not None:
            self._listener()


def _pieces(objects: Sequence[Entry], applied: Sequence[tuple[str, int]], revision: int) -> Iterator[bytes]:
    """Yield messages that are one `Snapshot` when they are merged; the first one comes even when there is nothing to tell."""
    message, size = store_pb2.Snapshot(version=SNAPSHOT_VERSION, revision=revision), 0
    for request_id, at in applied:
        message.applied.add(request_id=request_id, revision=at)
    for entry in sorted(objects, key=lambda e: e.key):
        if size > PIECE_BYTES:
            yield message.SerializeToString(deterministic=True)
            message, size = store_pb2.Snapshot(version=SNAPSHOT_VERSION, revision=revision), 0
        message.objects.add(
            key=entry.key,
            value=entry.value,
            create_revision=entry.create_revision,
            mod_revision=entry.mod_revision,
            version=entry.version,
        )
        size += len(entry.value) + len(entry.key)
    yield message.SerializeToString(deterministic=True)


def _piece(data: bytes) -> store_pb2.Snapshot:
    try:
        message = store_pb2.Snapshot.FromString(data)
    except DecodeError as error:
        raise ValueError(f"snapshot of the store: {error}") from error
    if message.version != SNAPSHOT_VERSION:
        raise ValueError(f"snapshot of the store: version {message.version}; this manager reads {SNAPSHOT_VERSION}")
    return message


def malformed(txn: store_pb2.Txn) -> str:
    """Return what is wrong with a transaction in itself, "" when nothing is. Part of the replicated rules."""
    written = [put.key for put in txn.puts] + list(txn.deletes)
    for key in [*written, *(c.key for c in txn.compares)]:
        if error := _bad_key(key):
            return error
    if len(set(written)) != len(written):
        return f"a key is written twice: {sorted(key for key in set(written) if written.count(key) > 1)}"
    for put in txn.puts:
        if len(put.value) > MAX_VALUE_BYTES:
            return f"{put.key}: {len(put.value)} bytes; an object has at most {MAX_VALUE_BYTES}"
    unset = [c.key for c in txn.compares if c.WhichOneof("target") is None]
    return f"{unset[0]}: a compare without a condition" if unset else ""


def _bad_key(key: str) -> str:
    if len(key.encode()) > MAX_KEY_BYTES:
        return f"key {key[:40]}...: {len(key.encode())} bytes; a key has at most {MAX_KEY_BYTES}"
    kind, slash, name = key.partition("/")
    return "" if kind and slash and name else f"key {key!r}: a key is kind/name"


def _holds(compare: store_pb2.Compare, entry: Entry | None) -> bool:
    if compare.WhichOneof("target") == "exists":
        return (entry is not None) == compare.exists
    return entry is not None and entry.mod_revision == compare.mod_revision


def _newer(newest_first: Iterator[RawChange], revision: int) -> Iterator[RawChange]:
    for change in newest_first:
        if change.revision <= revision:
            return
        yield change


def _kind(key: str) -> str:
    return key.partition("/")[0]


def _rejected(revision: int, error: str) -> bytes:
    return store_pb2.TxnResult(revision=revision, error=error).SerializeToString(deterministic=True)
