"""The cluster's state: a revisioned object store like etcd's, replicated by consensus."""

from manager.store import kinds
from manager.store.rules import MAX_KEY_BYTES, MAX_VALUE_BYTES
from manager.store.state import StoreState
from manager.store.store import Change, Consensus, Store
from manager.store.txn import Compacted, Conflict, Txn, TxnResult

__all__ = [
    "MAX_KEY_BYTES",
    "MAX_VALUE_BYTES",
    "Change",
    "Compacted",
    "Conflict",
    "Consensus",
    "Store",
    "StoreState",
    "Txn",
    "TxnResult",
    "kinds",
]
