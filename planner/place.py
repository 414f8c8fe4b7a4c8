"""Placement of one guest: choose its node, and say why for every node.

Invariant: the same request and nodes give the same decision in whatever order they come; ties go to the first name;
a decision never promises more memory or CPU than a node has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from planner.filters import Filter, fits, refused_by_each
from planner.fleet import Fleet, load_of
from planner.rulebook import Mask
from planner.rules import Rule
from planner.scores import SCORES, total_of, weights_of
from planner.settings import Settings
from planner.types import Decision, GuestRequest, NodeView, Verdict

NOWHERE = -1

MOST_NAMED = 16
"""Nodes that one sentence names with their reasons; of more, it counts the reasons."""

MOST_TOLD = 3
"""Filters that such a sentence names."""

_Refused = list[tuple[Filter, Mask]]


@dataclass(frozen=True, slots=True)
class Terms:
    """What counts beside a guest and the nodes: rules, settings, and where the other guests are that rules may cover.

    The promises of these others are in the nodes' views already.
    """

    rules: Sequence[Rule] = ()
    settings: Settings = field(default_factory=Settings)
    others: Sequence[GuestRequest] = ()

    def fleet(self, nodes: Sequence[NodeView], leaving_out: str = "", placing: Sequence[GuestRequest] = ()) -> Fleet:
        """Return nodes as a fleet in which these others count for rules, one of them left out. placing: who is to be placed there."""
        made = Fleet(nodes, [replace(guest, node="") for guest in placing], self.rules, self.settings)
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


def decide(fleet: Fleet, guest: GuestRequest, weights: Mapping[str, float], most: int = 0) -> Decision:
    """Return the best node that fits, with every node's verdict; of the best `most` only unless that is 0.

    The guest must not be placed.
    """
    refused = refused_by_each(fleet, guest)
    unfit = _any(fleet, refused)
    order = _ranked(fleet, guest, weights, unfit)
    shown = order[:most] if most else order
    verdicts = _verdicts(fleet, guest, weights, refused, shown)
    left_out = len(order) - len(shown)
    if not order or unfit[order[0]]:
        hopeless = bool(order) and _hopeless(fleet, refused)
        return Decision("", verdicts, _refusal(fleet, guest, refused, verdicts, hopeless), hopeless, left_out)
    return Decision(fleet.names[order[0]], verdicts, _choice(fleet, verdicts, int((~unfit).sum())), left_out=left_out)


def refusals_of(fleet: Fleet, guest: GuestRequest) -> list[list[str]]:
    """Return for each node why it is refused, nothing where it is not."""
    refused = refused_by_each(fleet, guest)
    return [_reasons(fleet, guest, refused, i) for i in range(len(fleet.nodes))]


def most_refuse(counts: Mapping[str, int]) -> str:
    """Return the filters that refuse the most nodes, in words."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_TOLD]
    return ", ".join(f"{name} on {count}" for name, count in ranked)


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


def _any(fleet: Fleet, refused: _Refused) -> Mask:
    masks = [mask for _, mask in refused]
    return np.asarray(np.logical_or.reduce(masks)) if masks else np.zeros(len(fleet.nodes), dtype=bool)


def _reasons(fleet: Fleet, guest: GuestRequest, refused: _Refused, i: int) -> list[str]:
    return [f"{one.name}: {one.why(fleet, guest, i)}" for one, mask in refused if mask[i]]


def _ranked(fleet: Fleet, guest: GuestRequest, weights: Mapping[str, float], unfit: Mask) -> list[int]:
    """Return all nodes, the best first, those that do not fit last."""
    totals = total_of(fleet, guest, weights)
    fit = np.flatnonzero(~unfit)
    best = fit[np.argsort(-totals[fit], kind="stable")]
    return [*best.tolist(), *np.flatnonzero(unfit).tolist()]


def _verdicts(
    fleet: Fleet, guest: GuestRequest, weights: Mapping[str, float], refused: _Refused, nodes: Sequence[int]
) -> tuple[Verdict, ...]:
    """Return the verdicts of nodes in their order."""
    columns = [
        (name, None if (values := of(fleet, guest)) is None else weight * values)
        for name, of in SCORES
        if (weight := weights.get(name, 0.0))
    ]
    totals = total_of(fleet, guest, weights)
    verdicts = []
    for i in nodes:
        if reasons := _reasons(fleet, guest, refused, i):
            verdicts.append(Verdict(fleet.names[i], False, tuple(reasons), (), 0.0))
        else:
            scores = tuple((score, 0.0 if column is None else float(column[i])) for score, column in columns)
            verdicts.append(Verdict(fleet.names[i], True, (), scores, float(totals[i])))
    return tuple(verdicts)


def _hopeless(fleet: Fleet, refused: _Refused) -> bool:
    """Whether each node is refused for good. One that has not told what it has yet is not."""
    masks = [mask for one, mask in refused if one.permanent]
    return bool(masks) and bool((np.logical_or.reduce(masks) & (fleet.cpus > 0)).all())


def _choice(fleet: Fleet, verdicts: Sequence[Verdict], fit: int) -> str:
    best = verdicts[0]
    scores = ", ".join(f"{name} {value:.2f}" for name, value in best.scores if value)
    if fit == 1:
        return f"{best.node} is the only one of {len(fleet.nodes)} nodes that fits ({scores})."
    next_best = f"; next {verdicts[1].node}" if len(verdicts) > 1 else ""
    return f"{best.node} scores best of {fit} nodes that fit: {best.score:.2f} ({scores}){next_best}."


def _refusal(fleet: Fleet, guest: GuestRequest, refused: _Refused, verdicts: Sequence[Verdict], hopeless: bool) -> str:
    if not verdicts:
        return f"No node for {guest.name}: the cluster has none yet."
    if len(fleet.nodes) > MOST_NAMED:
        counts = most_refuse({one.name: int(mask.sum()) for one, mask in refused if mask.any()})
        reasons = f"all {len(fleet.nodes)} nodes refuse it: {counts}"
    else:
        reasons = "; ".join(f"{v.node}: {', '.join(v.refusals)}" for v in verdicts)
    beginning = f"{guest.name} can never run here" if hopeless else f"No node fits {guest.name} now"
    return f"{beginning} ({reasons})."
