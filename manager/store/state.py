"""The replicated state: revisioned objects under `kind/name`, changed by transactions that all members apply alike.

Invariant: the state after a sequence of payloads is a function of that sequence alone (no clock, no randomness, no
order of hashing). `apply` raises for nothing but a transaction of a newer release, which must stop this member. Every
transaction that changes something raises the revision by one. `apply` and `restore` run in the consensus thread; readers
of any thread see only whole transactions.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from google.protobuf.message import DecodeError
from gugus.store.v1 import store_pb2

from manager.store.history import HISTORY_BYTES, HISTORY_CHANGES, History, RawChange
from manager.store.pieces import Entry, read_pieces, write_pieces
from manager.store.repeats import Repeats
from manager.store.rules import malformed, object_bytes, over_quota, refuse_unknown_fields


class StoreState:
    """The state machine of consensus, and the local replica that readers see."""

    def __init__(self, *, history_changes: int = HISTORY_CHANGES, history_bytes: int = HISTORY_BYTES) -> None:
        self._lock = threading.Lock()
        self._kinds: dict[str, dict[str, Entry]] = {}
        self._size = 0
        self._repeats = Repeats()
        self._revision = 0
        self._history = History(history_changes, history_bytes)
        self._listener: Callable[[], None] | None = None

    # The face for consensus.

    def apply(self, index: int, payload: bytes) -> bytes:
        """Apply a serialized `Txn` and return a serialized `TxnResult`, also for a malformed one.

        Raises FromNewerRelease, for which the member must stop.
        """
        del index  # the revision counts changes, not entries of the log
        try:
            txn = store_pb2.Txn.FromString(payload)
        except DecodeError as error:
            return _bytes(store_pb2.TxnResult(revision=self.revision, error=f"no transaction: {error}"))
        refuse_unknown_fields(txn)
        with self._lock:
            before = self._revision
            result = self._apply(txn)
            changed = self._revision != before
        if changed:
            self._notify()
        return _bytes(result)

    def snapshot(self) -> Iterator[bytes]:
        """Return the whole state as of now in pieces; the same ones on every member at the same index of the log.

        Only references are copied here: objects never change, they are replaced. The pieces are made when they are drawn.
        """
        with self._lock:
            objects = [entry for names in self._kinds.values() for entry in names.values()]
            return write_pieces(self._revision, objects, self._repeats.items())

    def restore(self, pieces: Iterable[bytes]) -> None:
        """Replace the whole state. Raises ValueError for what is no snapshot that this release can read.

        Watchers that are behind the snapshot cannot know what happened in between: they get HistoryGone.
        """
        whole = read_pieces(pieces)
        kinds: dict[str, dict[str, Entry]] = {}
        for entry in whole.objects.values():
            kinds.setdefault(_kind(entry.key), {})[entry.key] = entry
        with self._lock:
            self._kinds, self._size = kinds, whole.size
            self._repeats = whole.repeats
            self._revision = whole.revision
            self._history.restart(whole.revision)
        self._notify()

    # The face for readers, of any thread.

    @property
    def revision(self) -> int:
        """Revision of the last change applied here."""
        with self._lock:
            return self._revision

    @property
    def size_bytes(self) -> int:
        """What all objects count towards the quota."""
        with self._lock:
            return self._size

    def outcome(self, request_id: str) -> bool | None:
        """Return whether the transaction with a request id succeeded; None when it is not known."""
        with self._lock:
            result = self._repeats.result(request_id)
        return None if result is None else result.succeeded

    def get(self, key: str) -> Entry | None:
        """Return one object."""
        with self._lock:
            return self._entry(key)

    def list(self, prefix: str = "") -> tuple[int, list[Entry]]:
        """Return the revision and all objects whose key starts so, by key: one consistent view."""
        kind, slash, _ = prefix.partition("/")
        with self._lock:
            groups = [self._kinds.get(kind, {})] if slash else list(self._kinds.values())
            found = [entry for names in groups for entry in names.values()]
            revision = self._revision
        return revision, sorted((e for e in found if e.key.startswith(prefix)), key=lambda e: e.key)

    def changes_after(self, revision: int) -> Sequence[RawChange]:
        """Return the changes right after a revision, oldest first: a batch; none when there are none yet. Raises HistoryGone."""
        with self._lock:
            return self._history.after(revision)

    def set_listener(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change, in the consensus thread. It must be quick and not raise."""
        self._listener = listener

    # Applying; the lock is held.

    def _apply(self, txn: store_pb2.Txn) -> store_pb2.TxnResult:
        if error := malformed(txn):
            return store_pb2.TxnResult(revision=self._revision, error=error)
        if (earlier := self._repeats.result(txn.request_id)) is not None:
            return earlier
        puts, deletes = [(put.key, put.value) for put in txn.puts], list(txn.deletes)
        growth = sum(object_bytes(key, value) - self._bytes_of(key) for key, value in puts)
        growth -= sum(map(self._bytes_of, deletes))
        if failed := [c.key for c in txn.compares if not _holds(c, self._entry(c.key))]:
            result = store_pb2.TxnResult(revision=self._revision, failed=map(self._failure, failed))
        elif full := over_quota(txn.spare_reserve, self._size, growth):
            result = store_pb2.TxnResult(revision=self._revision, exhausted=full)
        else:
            self._change(puts, [key for key in deletes if self._entry(key) is not None])
            self._size += growth
            result = store_pb2.TxnResult(succeeded=True, revision=self._revision)
        self._repeats.remember(txn.request_id, result)
        return result

    def _change(self, puts: Sequence[tuple[str, bytes]], deletes: Sequence[str]) -> None:
        if puts or deletes:
            self._revision += 1
            changes = [self._put(key, value) for key, value in puts] + [self._delete(key) for key in deletes]
            self._history.record(changes)

    def _bytes_of(self, key: str) -> int:
        entry = self._entry(key)
        return object_bytes(key, entry.value) if entry else 0

    def _entry(self, key: str) -> Entry | None:
        return self._kinds.get(_kind(key), {}).get(key)

    def _failure(self, key: str) -> store_pb2.FailedCompare:
        entry = self._entry(key)
        return store_pb2.FailedCompare(key=key, mod_revision=entry.mod_revision if entry else 0)

    def _put(self, key: str, value: bytes) -> RawChange:
        old, revision = self._entry(key), self._revision
        made, version = (old.create_revision, old.version + 1) if old else (revision, 1)
        self._kinds.setdefault(_kind(key), {})[key] = Entry(key, value, made, revision, version)
        return RawChange(revision, key, value)

    def _delete(self, key: str) -> RawChange:
        del self._kinds[_kind(key)][key]
        return RawChange(self._revision, key, None)

    def _notify(self) -> None:
        if self._listener is not None:
            self._listener()


def _holds(compare: store_pb2.Compare, entry: Entry | None) -> bool:
    if compare.WhichOneof("target") == "exists":
        return (entry is not None) == compare.exists
    return entry is not None and entry.mod_revision == compare.mod_revision


def _kind(key: str) -> str:
    return key.partition("/")[0]


def _bytes(result: store_pb2.TxnResult) -> bytes:
    return result.SerializeToString(deterministic=True)
