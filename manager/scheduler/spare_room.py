"""Spare room (N+1, N+2, failure domains) of the cluster as it is stored: who would find no place after which loss.

What counts is what the planner counts (`planner.spare`): the room of all guests, and a place for those under HA. The answer is kept, and
only what changed since the last look is looked at again: the whole of a large cluster takes a good part of a second.

Invariant: pure but for what it remembers; looking twice at the same gives the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.rule_pb2 import Rule

from manager.scheduler.stored_rules import planned_rules
from manager.scheduler.views import guest_request, node_views
from planner import rules as planned
from planner.fleet import Fleet
from planner.place import NOWHERE, choose
from planner.plans import Shortfall
from planner.scores import weights_of
from planner.settings import Settings
from planner.spare import Watch
from planner.types import Decision, GuestRequest, NodeView

MOST_TOLD = 3
"""Losses, and guests of each, that a sentence names before it counts the rest."""

Basis = tuple[tuple[NodeView, ...], tuple[planned.Rule, ...], Settings]


MOST_TRIED = 16
"""Nodes that are tried for a guest, the best first, before one is taken on which it leaves too little room."""


class SpareRoom:
    """Remembers what it looked at last."""

    def __init__(self) -> None:
        self._revision = -1
        self._nodes: tuple[tuple[str, int], ...] = ()
        self._views: tuple[NodeView, ...] = ()
        self._requests: dict[str, tuple[int, GuestRequest]] = {}
        """Each guest's as they were at a revision of it."""
        self._basis: Basis | None = None
        self._fleet = Fleet(())
        self._watch = Watch(self._fleet, Settings().spare)

    def look(
        self, revision: int, nodes: Sequence[Node], guests: Sequence[Guest], rules: Iterable[Rule], settings: Settings
    ) -> "SpareRoom":
        """Take in the state as it is at a revision of the store, and return itself."""
        if revision == self._revision:
            return self
        requests = self._read(guests)
        basis = (self._seen(nodes), planned_rules(rules), settings)
        if basis != self._basis:
            self._fleet = Fleet(basis[0], requests.values(), basis[1], settings)
            self._watch = Watch(self._fleet, settings.spare)
        else:
            self._follow(requests)
        self._revision, self._basis = revision, basis
        return self

    def short(self) -> list[Shortfall]:
        """Return who would find no place after each loss that must be possible."""
        return self._watch.shortfalls()

    def short_with(self, guest: Guest, node: str, waiting: Iterable[Guest] = ()) -> list[Shortfall]:
        """Return what would not be safe any more if a guest, new or changed, were on a node.

        waiting: guests without a node, which count as if they were given theirs.
        """
        if node not in self._fleet.index:
            return []
        name = guest.meta.name
        others = [guest_request(one) for one in waiting if one.meta.name != name]
        known = {one: self._fleet.guests.get(one) for one in (name, *(other.name for other in others))}
        try:
            for other in others:
                self._give_place(other)
            before = {(one.lost, one.guest) for one in self.short()}
            self._swap(name, replace(guest_request(guest), node=node))
            return [one for one in self.short() if (one.lost, one.guest) not in before]
        finally:
            for one, request in known.items():
                self._swap(one, request)

    def _give_place(self, request: GuestRequest) -> None:
        node = choose(self._fleet, request, weights_of(self._fleet.settings))
        if node != NOWHERE:
            self._swap(request.name, replace(request, node=self._fleet.names[node]))

    def _read(self, guests: Sequence[Guest]) -> dict[str, GuestRequest]:
        """Return what guests need; of those that have not changed since the last look, what was read then."""
        known, read = self._requests, dict[str, tuple[int, GuestRequest]]()
        for guest in guests:
            name, revision = guest.meta.name, guest.meta.revision
            before = known.get(name)
            fresh = before is None or not revision or before[0] != revision  # what is not stored has none
            read[name] = (revision, guest_request(guest)) if fresh or before is None else before
        self._requests = read
        return {name: request for name, (_, request) in read.items()}

    def _seen(self, nodes: Sequence[Node]) -> tuple[NodeView, ...]:
        """Return the nodes' views, without what is promised on them, and without words that say why they are as they are."""
        revisions = tuple((node.meta.name, node.meta.revision) for node in nodes)
        if revisions != self._nodes or not all(revision for _, revision in revisions):
            views = node_views(nodes, ())
            self._nodes = revisions
            self._views = tuple(replace(view, offline_reason="", kind_reasons={}) for view in views)
        return self._views

    def _follow(self, requests: Mapping[str, GuestRequest]) -> None:
        known = self._fleet.guests
        for name in [name for name in known if name not in requests]:
            self._swap(name, None)
        for name, request in requests.items():
            before = known.get(name)
            if before is not request and before != request:  # comparing thousands of equals takes its time
                self._swap(name, request)

    def _swap(self, name: str, request: GuestRequest | None) -> None:
        """Replace what is known of a guest; None when there is none of that name."""
        fleet, touched = self._fleet, list[int]()
        if name in fleet.where:
            touched.append(fleet.take(fleet.guests[name]))
        fleet.rules.forget(name)
        fleet.guests.pop(name, None)
        if request is not None:
            fleet.guests[name] = request
            if request.node in fleet.index:
                fleet.put(request, fleet.index[request.node])
                touched.append(fleet.index[request.node])
        self._watch.changed(*touched)


def kept(room: SpareRoom, guest: Guest, decision: Decision) -> Decision:
    """Return a decision that prefers a node on which a guest leaves enough room to survive a loss, if one of the fit ones does."""
    fit = [verdict.node for verdict in decision.verdicts if verdict.fits][:MOST_TRIED]
    first = None
    for node in fit:
        short = room.short_with(guest, node)
        if not short:
            if first is None:
                return decision
            reason = f"{node} is taken although {decision.node} scores better: there, {first}."
            return replace(decision, node=node, reason=reason)
        first = first or in_words(short)
    return decision


def in_words(short: Sequence[Shortfall]) -> str:
    """Return who would find no place after which loss: "if n1 were lost, db and web would find no place"."""
    by_loss: dict[tuple[str, ...], list[str]] = {}
    for one in short:
        by_loss.setdefault(one.lost, []).append(one.guest)
    told = [
        f"if {_some(lost)} were lost, {_some(guests)} would find no place"
        for lost, guests in list(by_loss.items())[:MOST_TOLD]
    ]
    more = len(by_loss) - MOST_TOLD
    return "; ".join(told) + (f"; and some after {more} more losses" if more > 0 else "")


def asked_in_words(settings: Settings) -> str:
    """Return what must be possible to lose, in words."""
    spare = settings.spare
    nodes = {0: "", 1: "any node", 2: "any two nodes"}[spare.hosts]
    return " or ".join(part for part in (nodes, f"any {spare.domain}" if spare.domain else "") if part)


def _some(names: Sequence[str]) -> str:
    shown, more = list(names[:MOST_TOLD]), len(names) - MOST_TOLD
    if more > 0:
        shown.append(f"{more} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
