"""Placement: choose the node for a guest, and say why for every node.

Invariant: the same request and nodes give the same decision in whatever order they come; ties go to the first name;
a decision never promises more memory or CPU than a node has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from manager.scheduler.filters import FILTERS, Filter
from manager.scheduler.scores import SCORES, WEIGHTS
from manager.scheduler.types import CPU_OVERCOMMIT_PERCENT, Decision, GuestRequest, NodeView, Verdict


def place(
    request: GuestRequest,
    nodes: Sequence[NodeView],
    weights: Mapping[str, float] = WEIGHTS,
    *,
    cpu_overcommit_percent: int = CPU_OVERCOMMIT_PERCENT,
) -> Decision:
    """Return the best node that fits, with every node's verdict. Weights that are missing are the default ones."""
    verdicts = sorted(
        (_verdict(request, node, weights, cpu_overcommit_percent) for node in nodes),
        key=lambda v: (not v.fits, -v.score, v.node),
    )
    if not verdicts or not verdicts[0].fits:
        hopeless = bool(nodes) and all(_permanent(request, node, cpu_overcommit_percent) for node in nodes)
        return Decision("", tuple(verdicts), _refusal(request, verdicts, hopeless), hopeless)
    return Decision(verdicts[0].node, tuple(verdicts), _choice(verdicts))


def batch(
    requests: Sequence[GuestRequest],
    nodes: Sequence[NodeView],
    weights: Mapping[str, float] = WEIGHTS,
    *,
    cpu_overcommit_percent: int = CPU_OVERCOMMIT_PERCENT,
) -> list[Decision]:
    """Place several guests in the order given; each sees what those before it were promised."""
    present = {node.name: node for node in nodes}
    decisions = []
    for request in requests:
        decision = place(request, list(present.values()), weights, cpu_overcommit_percent=cpu_overcommit_percent)
        if decision.node:
            present[decision.node] = promise(present[decision.node], request)
        decisions.append(decision)
    return decisions


def promise(node: NodeView, request: GuestRequest) -> NodeView:
    """Return the node with one more guest promised to it."""
    return replace(
        node,
        promised_cpus=node.promised_cpus + request.cpus,
        promised_memory_bytes=node.promised_memory_bytes + request.memory_bytes,
        promised_huge_pages_2m_bytes=node.promised_huge_pages_2m_bytes + request.huge_pages_2m_bytes,
        promised_huge_pages_1g_bytes=node.promised_huge_pages_1g_bytes + request.huge_pages_1g_bytes,
        guests=node.guests + 1,
    )


def withdraw(node: NodeView, request: GuestRequest) -> NodeView:
    """Return the node without a guest that was promised to it."""
    pages_2m = node.promised_huge_pages_2m_bytes - request.huge_pages_2m_bytes
    pages_1g = node.promised_huge_pages_1g_bytes - request.huge_pages_1g_bytes
    return replace(
        node,
        promised_cpus=max(0, node.promised_cpus - request.cpus),
        promised_memory_bytes=max(0, node.promised_memory_bytes - request.memory_bytes),
        promised_huge_pages_2m_bytes=max(0, pages_2m),
        promised_huge_pages_1g_bytes=max(0, pages_1g),
        guests=max(0, node.guests - 1),
    )


def _verdict(request: GuestRequest, node: NodeView, weights: Mapping[str, float], overcommit: int) -> Verdict:
    refusals = tuple(f"{f.name}: {why}" for f in FILTERS if (why := f.check(request, node, overcommit)))
    if refusals:
        return Verdict(node.name, False, refusals, (), 0.0)
    scores = tuple((name, weights.get(name, weight) * of(request, node, overcommit)) for name, weight, of in SCORES)
    return Verdict(node.name, True, (), scores, sum(value for _, value in scores))


def _permanent(request: GuestRequest, node: NodeView, overcommit: int) -> list[Filter]:
    return [f for f in FILTERS if f.permanent and f.check(request, node, overcommit)]


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
