"""Idempotency: what became of the newest transactions that carried a request id, so that a retry learns of it.

Invariant: the first application of a request id decides, whether it succeeded or not; every later one changes nothing and
gets its result, as long as the id is remembered. A function of the log, the same on all members, and bounded.

A failure is remembered like a success (Ongaro's thesis, section 6.3): else a first attempt that was under way all the
while could still succeed after a retry was told that it failed. An id is forgotten when `MAX_REQUESTS` newer ones, or
newer results of `MAX_BYTES`, have come. A retry after that is a new transaction, which its compares must guard: so what
must not be done twice also says what it expects (that the object is absent, or at a revision).
"""

from typing import Final

from gugus.store.v1 import store_pb2

MAX_REQUESTS: Final = 10_000
"""Request ids remembered: at 100 writes a second that carry one, those of the last 100 seconds."""

MAX_BYTES: Final = 8 * 1024 * 1024
"""Bytes of the ids and results remembered, whichever bound is reached first. One result may name many keys."""


class Repeats:
    """Results by request id, oldest first."""

    def __init__(self) -> None:
        self._results: dict[str, bytes] = {}
        self._size = 0

    def result(self, request_id: str) -> store_pb2.TxnResult | None:
        """Return what became of a request, marked as repeated; None when that is not known."""
        found = self._results.get(request_id) if request_id else None
        if found is None:
            return None
        result = store_pb2.TxnResult.FromString(found)
        result.repeated = True
        return result

    def remember(self, request_id: str, result: store_pb2.TxnResult) -> None:
        """Note the result of a request that was not known, and forget the oldest beyond the bounds."""
        if not request_id:
            return
        data = result.SerializeToString(deterministic=True)
        self._results[request_id] = data
        self._size += _size(request_id, data)
        while len(self._results) > MAX_REQUESTS or self._size > MAX_BYTES:
            oldest = next(iter(self._results))
            self._size -= _size(oldest, self._results.pop(oldest))

    def items(self) -> list[tuple[str, bytes]]:
        """Return all that is remembered, oldest first: a copy."""
        return list(self._results.items())


def _size(request_id: str, result: bytes) -> int:
    return len(request_id.encode()) + len(result)
