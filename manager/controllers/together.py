"""Guests that a strict rule keeps together, when they leave a node that is emptied or come back to theirs: as a set.

They go one after another, for a migration is of one guest. So while the set is on its way, those that are still where it came from are
company to come, which must find room where the first one goes, and no reason to stay.
"""

from collections.abc import Sequence
from dataclasses import replace

from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.rule_pb2 import Rule

from manager.ha.drain import DRAIN, RESTORE
from manager.scheduler import GuestRequest
from manager.scheduler.load import LoadOf, no_load
from manager.scheduler.stored_rules import planned_rules
from manager.scheduler.views import guest_request
from manager.store import Store
from manager.tasks import active
from planner.rules import GuestAffinity, Mode


def leaving_with(store: Store, guest: Guest) -> list[Guest]:
    """Return the guests that leave a guest's node with it: nobody unless the node is being emptied, or the guest goes home."""
    node, home = guest.status.node, guest.status.home
    emptied = _under_way(store, DRAIN, node)
    if not emptied and not (home not in ("", node) and _under_way(store, RESTORE, home)):
        return []
    return [one for one in _bound_with(store, guest) if emptied or one.status.home == home]


def with_company(guest: Guest, company: Sequence[Guest], load_of: LoadOf = no_load) -> GuestRequest:
    """Return what a guest needs of a node that it goes to with others."""
    requests = [guest_request(one, load_of=load_of) for one in (guest, *company)]
    return replace(requests[0], company=tuple(requests[1:]))


def _under_way(store: Store, kind: str, node: str) -> bool:
    return bool(node) and any(task.kind == kind for task in active(store, f"node/{node}"))


def _bound_with(store: Store, guest: Guest) -> list[Guest]:
    """Return the guests on a guest's node that strict rules keep on one node with it, be it by way of others."""
    rules = [
        rule
        for rule in planned_rules(store.peek_all(Rule))
        if isinstance(rule, GuestAffinity) and rule.mode is Mode.TOGETHER and rule.strict and not rule.domain
    ]
    if not rules:
        return []
    here = {one.meta.name: one for one in store.peek_all(Guest) if one.status.node == guest.status.node}
    here.setdefault(guest.meta.name, guest)
    requests = {name: guest_request(one) for name, one in here.items()}
    found, looked_at = {guest.meta.name}, set[str]()
    while unseen := found - looked_at:
        name = min(unseen)
        looked_at.add(name)
        for rule in rules:
            if rule.guests.cover(requests[name]):
                found |= {other for other, request in requests.items() if rule.guests.cover(request)}
    return [here[name] for name in sorted(found - {guest.meta.name}) if not here[name].spec.template]
