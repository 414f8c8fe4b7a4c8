"""The cluster's spare room as it is stored now, for whoever asks: admission, placement, and the cluster's status."""

from collections.abc import Sequence

from gugus.cluster.v1.cluster_pb2 import Cluster
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.rule_pb2 import Rule

from manager.scheduler import Decision
from manager.scheduler.settings import planner_settings
from manager.scheduler.spare_room import SpareRoom, in_words, kept
from manager.store import Store
from planner.settings import Settings


def settings_of(store: Store) -> Settings:
    """Return the settings of planning."""
    clusters = store.peek_all(Cluster)
    return planner_settings(clusters[0].settings) if clusters else Settings()


Read = tuple[int, Sequence[Node], Sequence[Guest], Sequence[Rule], Settings]
"""What `SpareRoom.look` takes."""


def read(store: Store) -> Read | None:
    """Return what spare room is judged by; None when the settings ask for none."""
    settings = settings_of(store)
    if not settings.spare.asked:
        return None
    return store.revision, store.peek_all(Node), store.peek_all(Guest), store.peek_all(Rule), settings


def look(store: Store, room: SpareRoom) -> SpareRoom | None:
    """Return the spare room as it is now; None when the settings ask for none."""
    found = read(store)
    return None if found is None else room.look(*found)


def leaves_short(store: Store, room: SpareRoom, guest: Guest, node: str, *, waiting: int = 0) -> str:
    """Return who would find no place after a loss if a guest, new or changed, were on a node; "" when nobody, or nothing is asked.

    waiting: so many guests that wait for their first node count as if they were placed.
    """
    looked = look(store, room) if node else None
    if looked is None:
        return ""
    others = [g for g in store.peek_all(Guest) if not g.status.node and not g.meta.deleting][:waiting]
    return in_words(looked.short_with(guest, node, others))


def keeping(store: Store, room: SpareRoom, guest: Guest, decision: Decision) -> Decision:
    """Return a decision that prefers a node on which a guest leaves enough room to survive a loss, if one of the fit ones does."""
    looked = look(store, room) if decision.node else None
    return decision if looked is None else kept(looked, guest, decision)
