"""Guests that a strict rule keeps together, when they leave a node that is emptied or come back to theirs: as a set.

They go one after another, for a migration is of one guest. So while the set is on its way, those that are still where it came from are
company to come, which must find room where the first one goes, and no reason to stay.
"""

from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.rule_pb2 import Rule

from manager.ha.drain import DRAIN, RESTORE
from manager.ha.together import bound_with, with_company
from manager.store import Store
from manager.tasks import active

__all__ = ["leaving_with", "with_company"]


def leaving_with(store: Store, guest: Guest) -> list[Guest]:
    """Return the guests that leave a guest's node with it: nobody unless the node is being emptied, or the guest goes home."""
    node, home = guest.status.node, guest.status.home
    emptied = _under_way(store, DRAIN, node)
    if not emptied and not (home not in ("", node) and _under_way(store, RESTORE, home)):
        return []
    bound = bound_with(store.peek_all(Rule), store.peek_all(Guest), guest)
    return [one for one in bound if emptied or one.status.home == home]


def _under_way(store: Store, kind: str, node: str) -> bool:
    return bool(node) and any(task.kind == kind for task in active(store, f"node/{node}"))
