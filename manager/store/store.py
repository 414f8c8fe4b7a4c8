"""Typed access to the replicated state: read, transact, watch.

Invariant: what `get` and `list` return reflects every transaction that was acknowledged to anyone before the call
(a read barrier of consensus comes first); `peek`, `peek_all` and `watch` show the local replica, which may lag but
never goes back. A watcher sees each change exactly once and in order, or is told that it cannot.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from gugus.store.v1 import store_pb2

from common.errors import already_exists, invalid, not_found, resource_exhausted
from manager.consensus.types import MAX_PAYLOAD_BYTES
from manager.store import kinds
from manager.store.history import HistoryGone, RawChange
from manager.store.kinds import T
from manager.store.pieces import Entry
from manager.store.rules import malformed
from manager.store.state import StoreState
from manager.store.txn import Compacted, Conflict, Txn, TxnResult

_List: TypeAlias = list

UPDATE_RETRIES: Final = 8
"""Times that `update` reads again after another was faster. Writers of one object are few: controllers and one user."""


class Consensus(Protocol):
    """What the store needs of consensus."""

    async def propose(self, payload: bytes) -> bytes:
        """Commit and apply a payload; return the state machine's result once it is applied here."""
        ...

    async def read_barrier(self) -> None:
        """Return once everything acknowledged before the call is applied here."""
        ...


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one object, as a watcher sees it; `final` marks the last change of its revision."""

    revision: int
    key: str
    value: bytes
    deleted: bool
    final: bool

    @property
    def kind(self) -> str:
        """Kind of the object."""
        return self.key.partition("/")[0]

    @property
    def name(self) -> str:
        """Name of the object."""
        return self.key.partition("/")[2]

    @property
    def resume(self) -> int:
        """The `from_revision` that goes on after this change without a gap.

        Inside a revision of several changes it repeats those before: a transaction is one step.
        """
        return self.revision if self.final else self.revision - 1

    @property
    def obj(self) -> Any:
        """The object with its revision set, None when it was deleted."""
        return None if self.deleted else kinds.decode(kinds.class_of(self.kind), self.value, self.revision)


class Store:
    """The cluster's state as one manager sees it. Made and used in one asyncio loop."""

    def __init__(self, consensus: Consensus, state: StoreState) -> None:
        self._consensus = consensus
        self._state = state
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._waking = False
        state.set_listener(self._applied)

    @property
    def revision(self) -> int:
        """Revision of the local replica."""
        return self._state.revision

    # Reading.

    async def get(self, kind: type[T], name: str) -> T | None:
        """Return a copy of an object as of now, None when there is none."""
        await self._consensus.read_barrier()
        return self.peek(kind, name)

    async def require(self, kind: type[T], name: str) -> T:
        """Return a copy of an object as of now. Raises NOT_FOUND."""
        found = await self.get(kind, name)
        if found is None:
            raise not_found(kinds.kind_of(kind), name)
        return found

    async def list(self, kind: type[T], prefix: str = "") -> _List[T]:
        """Return copies of all objects of a kind whose names start so, by name, as of now."""
        await self._consensus.read_barrier()
        return self.peek_all(kind, prefix)

    def peek(self, kind: type[T], name: str) -> T | None:
        """Return a copy of an object as the local replica has it."""
        entry = self._state.get(kinds.key_for(kind, name))
        return None if entry is None else _decode(kind, entry)

    def peek_all(self, kind: type[T], prefix: str = "") -> _List[T]:
        """Return copies of all objects of a kind whose names start so, by name, as the local replica has them."""
        _, entries = self._state.list(kinds.key_for(kind, prefix))
        return [_decode(kind, entry) for entry in entries]

    async def outcome(self, request_id: str) -> bool | None:
        """Return whether the transaction with a request id succeeded; None when none was applied, or it is forgotten."""
        await self._consensus.read_barrier()
        return self._state.outcome(request_id)

    # Writing.

    async def txn(self, txn: Txn) -> TxnResult:
        """Commit a transaction. Raises Conflict, INVALID_ARGUMENT for sizes, STORE_FULL, and what consensus raises.

        After ProposalTimeout it may have been committed or not, or may be yet. Repeat it with its request id: whichever is
        applied first decides, and the answer to the repetition holds for both.
        """
        if error := malformed(txn.message):
            raise invalid("txn", f"{error}.", reason="TXN_INVALID")
        payload = txn.message.SerializeToString(deterministic=True)
        if len(payload) > MAX_PAYLOAD_BYTES:
            keys = ", ".join(sorted(put.key for put in txn.message.puts))
            text = f"{len(payload)} bytes ({keys}); a transaction has at most {MAX_PAYLOAD_BYTES}, split it."
            raise invalid("txn", text, reason="TXN_INVALID")
        result = store_pb2.TxnResult.FromString(await self._consensus.propose(payload))
        if result.error:
            raise invalid("txn", f"{result.error}.", reason="TXN_INVALID")
        if result.exhausted:
            raise resource_exhausted("STORE_FULL", f"{result.exhausted}.", remedy="Delete what is not needed any more.")
        if not result.succeeded:
            raise Conflict([failure.key for failure in result.failed])
        return TxnResult(result.revision, result.repeated)

    async def create(self, obj: T, *, request_id: str = "") -> T:
        """Write an object that is not there yet, and return it with its revision. Raises ALREADY_EXISTS."""
        try:
            result = await self.txn(Txn(request_id, spare_reserve=True).put(obj, expect_absent=True))
        except Conflict:
            raise already_exists(kinds.kind_of(obj), obj.meta.name, remedy="Choose another name.") from None
        return _at(obj, result.revision)

    async def update(
        self,
        kind: type[T],
        name: str,
        mutate: Callable[[T], T | None],
        *,
        retries: int = UPDATE_RETRIES,
        local: bool = False,
    ) -> T:
        """Change an object by `mutate`, read and tried again when another was faster; return what is stored then.

        `mutate` may change its argument and return it, or return None to leave the object as it is; it may be called
        several times. What it leaves equal is not written. `local` skips the barrier of the first read: right for
        controllers, which then learn of a stale view by one more round. Raises NOT_FOUND, and Conflict at last.
        """
        for attempt in range(retries + 1):
            before = self.peek(kind, name) if local and attempt == 0 else await self.get(kind, name)
            if before is None:
                if local and attempt == 0:
                    continue
                raise not_found(kinds.kind_of(kind), name)
            after = mutate(_at(before, before.meta.revision))
            if after is None or kinds.encode(after) == kinds.encode(before):
                return before
            try:
                result = await self.txn(Txn().put(after, expect_revision=before.meta.revision))
            except Conflict:
                continue
            return _at(after, result.revision)
        raise Conflict([kinds.key_for(kind, name)])

    async def delete(self, kind: type[T], name: str, *, expect_revision: int | None = None) -> bool:
        """Remove an object; return whether this call did. Raises Conflict when it is at another revision."""
        found = await self.get(kind, name)
        if found is None:
            return False
        revision = found.meta.revision if expect_revision is None else expect_revision
        try:
            await self.txn(Txn().delete(kind, name, expect_revision=revision))
        except Conflict:
            if expect_revision is not None:
                raise
            return await self.delete(kind, name)
        return True

    # Watching.

    def present(self, prefixes: Sequence[str] = ()) -> tuple[int, _List[Change]]:
        """Return the replica's revision and all its objects as changes: where a watcher from scratch begins."""
        revision, entries = self._state.list()
        wanted = [entry for entry in entries if _matches(entry.key, prefixes)]
        return revision, [Change(e.mod_revision, e.key, e.value, deleted=False, final=True) for e in wanted]

    async def watch(self, prefixes: Sequence[str] = (), from_revision: int | None = None) -> AsyncIterator[Change]:
        """Yield every change after a revision (None: from now on) of keys that start so. Raises Compacted.

        However slow the watcher is, it holds one batch of changes (`history.BATCH_BYTES`). Who is too slow for the kept
        history gets Compacted, as does everyone who is behind a snapshot that replaced the replica. After a revision of the
        future, known from a member further ahead, it waits.
        """
        seen = self._state.revision if from_revision is None else from_revision
        while True:
            changed = self._changed
            try:
                changes = self._state.changes_after(seen)
            except HistoryGone as error:
                raise Compacted(error.asked, error.oldest) from None
            for change in _marked([c for c in changes if _matches(c.key, prefixes)]):
                yield change
            if changes:
                seen = changes[-1].revision
            else:
                await changed.wait()

    def _applied(self) -> None:
        """Have the watchers woken, once for all that is applied until then; called in the consensus thread."""
        if self._waking:
            return
        self._waking = True
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:
            return  # the loop is closed: nobody watches any more

    def _wake(self) -> None:
        self._waking = False  # before anybody looks: what is applied from here on wakes again
        self._changed.set()
        self._changed = asyncio.Event()


def _decode(kind: type[T], entry: Entry) -> T:
    return kinds.decode(kind, entry.value, entry.mod_revision)


def _at(obj: T, revision: int) -> T:
    copy = type(obj)()
    copy.CopyFrom(obj)
    copy.meta.revision = revision
    return copy


def _matches(key: str, prefixes: Sequence[str]) -> bool:
    return not prefixes or key.startswith(tuple(prefixes))


def _marked(changes: Sequence[RawChange]) -> _List[Change]:
    """Return changes for a watcher; `final` is the last one of a revision among those that it sees."""
    following = [*(change.revision for change in changes[1:]), 0][: len(changes)]
    return [
        Change(c.revision, c.key, c.value or b"", deleted=c.value is None, final=c.revision != after)
        for c, after in zip(changes, following, strict=True)
    ]
