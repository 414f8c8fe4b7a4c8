"""Building transactions of typed objects, and what comes of them.

Invariant: a transaction is a value: nothing happens before `Store.txn` proposes it, and it can be proposed again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import grpc
from gugus.store.v1 import store_pb2

from common.errors import GugusError
from manager.store.kinds import Stored, encode, key, key_for


@dataclass(frozen=True, slots=True)
class TxnResult:
    """Revision after a transaction; `repeated` when it had already been applied under its request id."""

    revision: int
    repeated: bool = False


class Conflict(GugusError):
    """A compare did not hold: `keys` were changed, made or removed by another. Nothing was written."""

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__(
            grpc.StatusCode.ABORTED,
            "CONFLICT",
            f"{', '.join(keys)}: changed by another in the meantime.",
            remedy="Read it again and repeat the change.",
            metadata={"keys": ",".join(keys)},
        )
        self.keys = tuple(keys)


class Compacted(GugusError):
    """The changes that a watcher asks for are not kept any more."""

    def __init__(self, asked: int, oldest: int) -> None:
        super().__init__(
            grpc.StatusCode.OUT_OF_RANGE,
            "COMPACTED",
            f"from_revision: the changes after revision {asked} are gone; kept are those after {oldest}.",
            field="from_revision",
            remedy="Start anew with 0.",
            metadata={"oldest": str(oldest)},
        )


class Txn:
    """Builds one transaction; every method returns the builder.

    `request_id` is its idempotency key, at most 256 characters. `spare_reserve` is for what users ask for: it is refused when the
    state has reached its quota, while the cluster's own work still finds room in the reserve.
    """

    def __init__(self, request_id: str = "", *, spare_reserve: bool = False) -> None:
        self._txn = store_pb2.Txn(request_id=request_id, spare_reserve=spare_reserve)

    def put(self, obj: Stored, *, expect_revision: int | None = None, expect_absent: bool = False) -> Self:
        """Write an object; only if it is at a revision (usually `obj.meta.revision`), or only if it is not there."""
        self._compare(key(obj), expect_revision, False if expect_absent else None)
        self._txn.puts.add(key=key(obj), value=encode(obj))
        return self

    def delete(self, kind: type[Stored], name: str, *, expect_revision: int | None = None) -> Self:
        """Remove an object, if given only at a revision; one that is not there is no error without it."""
        self._compare(key_for(kind, name), expect_revision, None)
        self._txn.deletes.append(key_for(kind, name))
        return self

    def expect(
        self,
        kind: type[Stored],
        name: str,
        *,
        revision: int | None = None,
        absent: bool = False,
        present: bool = False,
    ) -> Self:
        """Write nothing, but demand that an object is at a revision, absent, or present. Raises ValueError."""
        if revision is None and absent == present:
            raise ValueError("expect: exactly one of revision, absent, present")
        self._compare(key_for(kind, name), revision, present if absent or present else None)
        return self

    def _compare(self, of: str, revision: int | None, exists: bool | None) -> None:
        if revision is not None:
            self._txn.compares.add(key=of, mod_revision=revision)
        if exists is not None:
            self._txn.compares.add(key=of, exists=exists)

    @property
    def message(self) -> store_pb2.Txn:
        """The transaction as it is proposed."""
        return self._txn
