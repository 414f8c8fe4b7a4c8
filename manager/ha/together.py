"""Who goes with a guest: those that strict rules keep on one node with it. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.rule_pb2 import Rule

from manager.scheduler import GuestRequest
from manager.scheduler.load import LoadOf, no_load
from manager.scheduler.stored_rules import planned_rules
from manager.scheduler.views import guest_request
from planner.rules import GuestAffinity, Mode


def with_company(guest: Guest, company: Sequence[Guest], load_of: LoadOf = no_load) -> GuestRequest:
    """Return what a guest needs of a node that it goes to with others."""
    requests = [guest_request(one, load_of=load_of) for one in (guest, *company)]
    return replace(requests[0], company=tuple(requests[1:]))


def bound_with(stored: Iterable[Rule], guests: Iterable[Guest], guest: Guest) -> list[Guest]:
    """Return the guests on a guest's node that strict rules keep on one node with it, be it by way of others."""
    rules = [
        rule
        for rule in planned_rules(stored)
        if isinstance(rule, GuestAffinity) and rule.mode is Mode.TOGETHER and rule.strict and not rule.domain
    ]
    if not rules:
        return []
    here = {one.meta.name: one for one in guests if one.status.node == guest.status.node}
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
