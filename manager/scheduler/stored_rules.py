"""From stored rules to those of the planner, and to what is wrong with them."""

from collections.abc import Iterable, Sequence

from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.rule_pb2 import Rule

from manager.scheduler.views import guest_request, node_views
from planner import rules as planned
from planner.conflicts import Conflict, conflicts


def planned_rule(rule: Rule) -> planned.Rule:
    """Return a stored rule as the planner knows it."""
    spec = rule.spec
    guests = planned.Guests(frozenset(spec.guests), dict(spec.guest_labels))
    strict = not spec.preferring
    if spec.WhichOneof("kind") == "nodes":
        failback = not spec.nodes.no_failback
        return planned.NodeAffinity(rule.meta.name, guests, dict(spec.nodes.priorities), strict, failback)
    together = spec.WhichOneof("kind") == "together"
    mode, domain = (
        (planned.Mode.TOGETHER, spec.together.domain) if together else (planned.Mode.APART, spec.apart.domain)
    )
    return planned.GuestAffinity(rule.meta.name, guests, mode, strict, domain)


def planned_rules(rules: Iterable[Rule]) -> tuple[planned.Rule, ...]:
    """Return the rules that count."""
    return tuple(planned_rule(rule) for rule in rules if not rule.spec.disabled)


def found_wrong(rules: Sequence[Rule], nodes: Sequence[Node], guests: Sequence[Guest]) -> list[Conflict]:
    """Return what cannot hold of rules, all together."""
    if not rules:
        return []
    views = node_views(nodes, guests)
    return conflicts(planned_rules(rules), views, [guest_request(g) for g in guests if not g.meta.deleting])
