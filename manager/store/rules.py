"""What a transaction may be, and how large: the rules that all members share (docs/decisions/0007).

Invariant: a verdict depends on the transaction alone. Changing any of these numbers or rules changes what members apply,
so it takes a new level.
"""

from typing import Final

from google.protobuf.message import Message
from gugus.store.v1 import store_pb2

MAX_VALUE_BYTES: Final = 40 * 1024
"""Largest object. A Raft entry stays below 48 KiB (manager.consensus); the rest is room for keys and compares."""

MAX_KEY_BYTES: Final = 200
"""Longest key: a kind, a slash and two names of 63 characters fit."""

MAX_REQUEST_ID_CHARS: Final = 256
"""Longest idempotency key: an actor, an object's key and a client's own key of 100 characters fit."""

MAX_OPERATIONS: Final = 256
"""Most compares, puts and deletes of a transaction together: it is applied while nothing else is. The janitor deletes 100 at once."""

QUOTA_BYTES: Final = 512 * 1024 * 1024
"""Bytes of all objects beyond which what users ask for is refused: some 200,000 guests. Every manager holds it in memory."""

RESERVE_BYTES: Final = 64 * 1024 * 1024
"""Beyond the quota, for the cluster's own work: leases, recovery, events."""

OBJECT_BYTES: Final = 64
"""What an object counts beside its key and value."""


class FromNewerRelease(Exception):
    """A replicated message has fields that this release does not know: applying the rest of it would make this member's
    state another than the others'. The member must stop."""


def object_bytes(key: str, value: bytes) -> int:
    """Return what an object counts towards the quota."""
    return len(key) + len(value) + OBJECT_BYTES


def refuse_unknown_fields(message: Message) -> None:
    """Raise FromNewerRelease when a message, or one in it, has fields that this release does not know."""
    size = message.ByteSize()
    message.DiscardUnknownFields()
    if message.ByteSize() != size:
        raise FromNewerRelease(
            f"{type(message).__name__}: it has fields that this release does not know; install the release that the "
            "other managers run"
        )


def malformed(txn: store_pb2.Txn) -> str:
    """Return what is wrong with a transaction in itself, "" when nothing is."""
    written = list(txn.deletes)
    for put in txn.puts:
        written.append(put.key)
        if len(put.value) > MAX_VALUE_BYTES:
            return f"{put.key[:MAX_KEY_BYTES]}: {len(put.value)} bytes; an object has at most {MAX_VALUE_BYTES}"
    if len(set(written)) != len(written):
        return f"a key is written twice: {sorted(key for key in set(written) if written.count(key) > 1)[:3]}"
    for compare in txn.compares:
        written.append(compare.key)
        if compare.WhichOneof("target") is None:
            return f"{compare.key[:MAX_KEY_BYTES]}: a compare without a condition"
    if len(written) > MAX_OPERATIONS:
        return f"{len(written)} compares, puts and deletes; a transaction has at most {MAX_OPERATIONS}, split it"
    if len(txn.request_id) > MAX_REQUEST_ID_CHARS:
        size = len(txn.request_id)
        return f"request_id {txn.request_id[:40]}...: {size} characters; it has at most {MAX_REQUEST_ID_CHARS}"
    return next(filter(None, map(_bad_key, written)), "")


def over_quota(spare_reserve: bool, size: int, growth: int) -> str:
    """Return why a transaction that adds `growth` bytes to a state of `size` finds no room, "" when it does.

    What does not make the state larger is never refused.
    """
    limit = QUOTA_BYTES if spare_reserve else QUOTA_BYTES + RESERVE_BYTES
    if growth <= 0 or size + growth <= limit:
        return ""
    return f"the cluster's state has {size} bytes, {growth} more are asked for; {limit} is the most"


def _bad_key(key: str) -> str:
    if len(key.encode()) > MAX_KEY_BYTES:
        return f"key {key[:40]}...: {len(key.encode())} bytes; a key has at most {MAX_KEY_BYTES}"
    kind, slash, name = key.partition("/")
    return "" if kind and slash and name else f"key {key!r}: a key is kind/name"
