"""Placement of one guest: choose its node, and say why for every node.

Invariant: the same request and nodes give the same decision in whatever order they come; ties go to the first name;
a decision never promises more memory or CPU than a node has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from planner.filters import FILTERS, fits
from planner.fleet import Fleet, load_of
from planner.rulebook import Mask
from planner.rules import Rule
from planner.scores import SCORES, total_of, weights_of
from planner.settings import Settings
from planner.types import Decision, GuestRequest, NodeView, Verdict

NOWHERE = -1


@dataclass(frozen=True, slots=True)
class Terms:
    """What counts beside a guest and the nodes: rules, settings, and where the other guests are that rules may cover.

    The promises of these others are in the nodes' views already.
    """

    rules: Sequence[Rule] = ()
    settings: Settings = field(default_factory=Settings)
    others: Sequence[GuestRequest] = ()

    def fleet(self, nodes: Sequence[NodeView], leaving_out: str = "") -> Fleet:
        """Return nodes as a fleet in which these others count for rules, one of them left out."""
        made = Fleet(nodes, (), self.rules, self.settings)
        for other in self.others:
            if other.name != leaving_out and other.node in made.index:
                made.where[other.name] = made.index[other.node]
                made.rules.count(other, made.index[other.node], 1)
        return made


def place(request: GuestRequest, nodes: Sequence[NodeView], terms: Terms | None = None) -> Decision:
    """Return the best node that fits, with every node's verdict."""
    terms = terms or Terms()
    return decide(terms.fleet(nodes, leaving_out=request.name), request, weights_of(terms.settings))


def batch(requests: Sequence[GuestRequest], nodes: Sequence[NodeView], terms: Terms | None = None) -> list[Decision]:
    """Place several guests in the order given; each sees what those before it were promised."""
    terms = terms or Terms()
    fleet, weights = terms.fleet(nodes), weights_of(terms.settings)
    decisions = []
    for request in requests:
        decision = decide(fleet, request, weights)
        if decision.node:
            fleet.put(request, fleet.index[decision.node])
        decisions.append(decision)
    return decisions


def choose(fleet: Fleet, guest: GuestRequest, weights: Mapping[str, float], within: Mask | None = None) -> int:
    """Return the best node that fits, or NOWHERE. within: the only nodes to choose from. The guest must not be placed."""
    good = fits(fleet, guest)
    if within is not None:
        good &= within
    if not good.any():
        return NOWHERE
    return int(np.argmax(np.where(good, total_of(fleet, guest, weights), -np.inf)))


def decide(fleet: Fleet, guest: GuestRequest, weights: Mapping[str, float]) -> Decision:
    """Return the best node that fits, with every node's verdict. The guest must not be placed."""
    verdicts = _verdicts(fleet, guest, weights)
    if not verdicts or not verdicts[0].fits:
        hopeless = bool(verdicts) and _hopeless(fleet, guest)
        return Decision("", tuple(verdicts), _refusal(guest, verdicts, hopeless), hopeless)
    return Decision(verdicts[0].node, tuple(verdicts), _choice(verdicts))


def refusals_of(fleet: Fleet, guest: GuestRequest) -> list[list[str]]:
    """Return for each node why it is refused, nothing where it is not."""
    told: list[list[str]] = [[] for _ in fleet.nodes]
    for one in FILTERS:
        mask = one.refused(fleet, guest)
        if mask is not None:
            for i in np.flatnonzero(mask).tolist():
                told[i].append(f"{one.name}: {one.why(fleet, guest, i)}")
    return told


def promise(node: NodeView, request: GuestRequest) -> NodeView:
    """Return the node with one more guest promised to it."""
    return replace(
        node,
        promised_cpus=node.promised_cpus + request.cpus,
        promised_memory_bytes=node.promised_memory_bytes + request.memory_bytes,
        promised_disk_bytes=node.promised_disk_bytes + request.disk_bytes,
        promised_huge_pages_2m_bytes=node.promised_huge_pages_2m_bytes + request.huge_pages_2m_bytes,
        promised_huge_pages_1g_bytes=node.promised_huge_pages_1g_bytes + request.huge_pages_1g_bytes,
        guests=node.guests + 1,
        busy_cpus=node.busy_cpus + request.cpu_load * request.cpus,
        used_memory_bytes=node.used_memory_bytes + load_of(request)[1],
    )


def withdraw(node: NodeView, request: GuestRequest) -> NodeView:
    """Return the node without a guest that was promised to it."""
    pages_2m = node.promised_huge_pages_2m_bytes - request.huge_pages_2m_bytes
    pages_1g = node.promised_huge_pages_1g_bytes - request.huge_pages_1g_bytes
    return replace(
        node,
        promised_cpus=max(0, node.promised_cpus - request.cpus),
        promised_memory_bytes=max(0, node.promised_memory_bytes - request.memory_bytes),
        promised_disk_bytes=max(0, node.promised_disk_bytes - request.disk_bytes),
        promised_huge_pages_2m_bytes=max(0, pages_2m),
        promised_huge_pages_1g_bytes=max(0, pages_1g),
        guests=max(0, node.guests - 1),
        busy_cpus=max(0.0, node.busy_cpus - request.cpu_load * request.cpus),
        used_memory_bytes=max(0, node.used_memory_bytes - load_of(request)[1]),
    )


def _verdicts(fleet: Fleet, guest: GuestRequest, weights: Mapping[str, float]) -> list[Verdict]:
    """Return every node's verdict, the best first."""
    refusals = refusals_of(fleet, guest)
    columns = [
        (name, None if (values := of(fleet, guest)) is None else weight * values)
        for name, of in SCORES
        if (weight := weights.get(name, 0.0))
    ]
    totals = total_of(fleet, guest, weights)
    verdicts = []
    for i, name in enumerate(fleet.names):
        if refusals[i]:
            verdicts.append(Verdict(name, False, tuple(refusals[i]), (), 0.0))
        else:
            scores = tuple((score, 0.0 if column is None else float(column[i])) for score, column in columns)
            verdicts.append(Verdict(name, True, (), scores, float(totals[i])))
    return sorted(verdicts, key=lambda v: (not v.fits, -v.score, v.node))


def _hopeless(fleet: Fleet, guest: GuestRequest) -> bool:
    """Whether each node is refused for good. One that has not told what it has yet is not."""
    masks = [mask for one in FILTERS if one.permanent and (mask := one.refused(fleet, guest)) is not None]
    return bool(masks) and bool((np.logical_or.reduce(masks) & (fleet.cpus > 0)).all())


def _choice(verdicts: Sequence[Verdict]) -> str:
    best, fit = verdicts[0], [v for v in verdicts if v.fits]
    scores = ", ".join(f"{name} {value:.2f}" for name, value in best.scores if value)
    if len(fit) == 1:
        return f"{best.node} is the only one of {len(verdicts)} nodes that fits ({scores})."
    return f"{best.node} scores best of {len(fit)} nodes that fit: {best.score:.2f} ({scores}); next {fit[1].node}."


def _refusal(request: GuestRequest, verdicts: Sequence[Verdict], hopeless: bool) -> str:
    if not verdicts:
        return f"No node for {request.name}: the cluster has none yet."
    reasons = "; ".join(f"{v.node}: {', '.join(v.refusals)}" for v in verdicts)
    beginning = f"{request.name} can never run here" if hopeless else f"No node fits {request.name} now"
    return f"{beginning} ({reasons})."
