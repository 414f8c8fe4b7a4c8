"""Conflicts: rules that cannot hold, found and named before anything is planned or saved.

Each check is a small function in CHECKS that yields what it finds. A rule that is told here would never be met, or
means nothing; where nothing is told, strict rules can be met one by one, though there may still not be room for all.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from planner.rules import GuestAffinity, Mode, NodeAffinity, Rule
from planner.types import GuestRequest, NodeView

MOST_NAMED = 5
"""Guests or nodes that a message names."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """What is wrong with one rule or with several together: a stable reason, a sentence, and what to do."""

    rules: tuple[str, ...]
    reason: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class _Case:
    rules: Sequence[Rule]
    nodes: Mapping[str, NodeView]
    guests: Mapping[str, GuestRequest]
    members: Mapping[str, Mapping[str, None]]
    """Guests of each rule, in the order of their names."""

    @property
    def affinities(self) -> list[NodeAffinity]:
        return [rule for rule in self.rules if isinstance(rule, NodeAffinity)]

    def groupings(self, mode: Mode) -> list[GuestAffinity]:
        return [rule for rule in self.rules if isinstance(rule, GuestAffinity) and rule.mode is mode]

    def domain_of(self, rule: GuestAffinity, node: str) -> str | None:
        return self.nodes[node].labels.get(rule.domain) if rule.domain else node

    def allowed(self, guest: str) -> set[str]:
        """Return the nodes that strict rules about nodes, and its pin, leave to a guest."""
        left = set(self.nodes)
        for rule in self.affinities:
            if rule.strict and guest in self.members[rule.name]:
                left &= set(rule.nodes)
        pinned = self.guests[guest].pinned
        return left & {pinned} if pinned else left


def conflicts(rules: Sequence[Rule], nodes: Sequence[NodeView], guests: Sequence[GuestRequest]) -> list[Conflict]:
    """Return everything about rules that cannot hold, in a fixed order; nothing when they can."""
    ordered = sorted(rules, key=lambda rule: rule.name)
    by_name = {guest.name: guest for guest in sorted(guests, key=lambda guest: guest.name)}
    members = {rule.name: dict.fromkeys(g.name for g in by_name.values() if rule.guests.cover(g)) for rule in ordered}
    hosts = {node.name: node for node in sorted(nodes, key=lambda n: n.name) if not node.witness}
    case = _Case(ordered, hosts, by_name, members)
    return [found for check in CHECKS for found in check(case)]


def _same_name(case: _Case) -> Iterator[Conflict]:
    for name, count in sorted(Counter(rule.name for rule in case.rules).items()):
        if count > 1:
            yield Conflict((name,), "RULE_NAME_TAKEN", f"{count} rules are called {name}.", "Give each its own name.")


def _unknown(case: _Case) -> Iterator[Conflict]:
    for rule in case.rules:
        if strangers := sorted(rule.guests.names - set(case.guests)):
            text = f"rule {rule.name} names guests that are none: {_some(strangers)}."
            yield Conflict((rule.name,), "UNKNOWN_GUEST", text, "Correct the names, or select guests by labels.")
        if isinstance(rule, NodeAffinity) and (strangers := sorted(set(rule.nodes) - set(case.nodes))):
            text = f"rule {rule.name} names what is no node for guests: {_some(strangers)}."
            yield Conflict((rule.name,), "UNKNOWN_NODE", text, "Correct the names, or take them out.")


def _empty(case: _Case) -> Iterator[Conflict]:
    for rule in case.rules:
        if isinstance(rule, NodeAffinity) and not rule.nodes:
            yield Conflict(
                (rule.name,), "NO_NODES", f"rule {rule.name} names no nodes.", "Name one, or delete the rule."
            )
        named = bool(rule.guests.names or rule.guests.labels)
        if not named:
            text = f"rule {rule.name} is about no guests."
            yield Conflict((rule.name,), "NO_GUESTS", text, "Name guests, or labels that they have.")
        if isinstance(rule, GuestAffinity) and named and not rule.guests.labels and len(rule.guests.names) < 2:
            text = f"rule {rule.name} is about one guest, and nobody is together with or apart from itself."
            yield Conflict((rule.name,), "ONE_GUEST", text, "Name at least two guests, or labels.")


def _unlabelled(case: _Case) -> Iterator[Conflict]:
    for rule in (*case.groupings(Mode.TOGETHER), *case.groupings(Mode.APART)):
        if rule.domain and not any(rule.domain in node.labels for node in case.nodes.values()):
            text = f"rule {rule.name} goes by the label {rule.domain}, which no node has."
            yield Conflict((rule.name,), "UNKNOWN_DOMAIN", text, f"Give the nodes the label {rule.domain}.")


def _priorities(case: _Case) -> Iterator[Conflict]:
    for one, other in combinations(case.affinities, 2):
        shared = sorted(set(case.members[one.name]) & set(case.members[other.name]))
        differing = sorted(n for n in set(one.nodes) & set(other.nodes) if one.nodes[n] != other.nodes[n])
        if shared and differing:
            text = (
                f"rules {one.name} and {other.name} give node {_some(differing)} different priorities "
                f"for guest {_some(shared)}."
            )
            yield Conflict((one.name, other.name), "PRIORITIES_OVERLAP", text, "Put the guest into one of them.")


def _no_node(case: _Case) -> Iterator[Conflict]:
    for name in case.guests:
        strict = [rule.name for rule in case.affinities if rule.strict and name in case.members[rule.name]]
        if strict and not case.allowed(name):
            pinned = case.guests[name].pinned
            pin = f" and its pin to {pinned}" if pinned else ""
            text = f"strict rules {_some(strict)}{pin} leave guest {name} no node."
            yield Conflict(tuple(strict), "NO_NODE_LEFT", text, "Let them share a node, or make one preferring.")


def _together_and_apart(case: _Case) -> Iterator[Conflict]:
    for together in case.groupings(Mode.TOGETHER):
        for apart in case.groupings(Mode.APART):
            shared = sorted(set(case.members[together.name]) & set(case.members[apart.name]))
            if len(shared) >= 2 and _domains_within(case, together, apart) < len(shared):
                text = (
                    f"rule {together.name} keeps {_some(shared)} together{_in(together)}, and rule {apart.name} keeps "
                    f"them apart{_in(apart)}."
                )
                remedy = "Take the guests out of one of the two."
                yield Conflict((together.name, apart.name), "TOGETHER_AND_APART", text, remedy)


def _domains_within(case: _Case, together: GuestAffinity, apart: GuestAffinity) -> int:
    """Return the most domains of one rule that lie in a single domain of the other."""
    inside: dict[str, set[str]] = {}
    for node in case.nodes:
        outer, inner = case.domain_of(together, node), case.domain_of(apart, node)
        if outer is not None and inner is not None:
            inside.setdefault(outer, set()).add(inner)
    return max((len(found) for found in inside.values()), default=0)


def _chains(case: _Case) -> Iterator[Conflict]:
    """Guests that several rules together put on one node, two of which a strict rule keeps apart."""
    strict = [rule for rule in case.groupings(Mode.TOGETHER) if rule.strict and not rule.domain]
    for group, names in _joined(case, strict):
        if len(names) < 2:
            continue
        for apart in case.groupings(Mode.APART):
            shared = sorted(group & set(case.members[apart.name]))
            direct = any(len(set(case.members[n]) & set(shared)) >= 2 for n in names)
            if apart.strict and len(shared) >= 2 and not direct:
                text = (
                    f"rules {_some(names)} together put {_some(shared)} on one node, and rule {apart.name} keeps them "
                    f"apart{_in(apart)}."
                )
                remedy = "Take a guest out of one of the rules."
                yield Conflict((*names, apart.name), "TOGETHER_AND_APART", text, remedy)


def _joined(case: _Case, rules: Sequence[GuestAffinity]) -> list[tuple[set[str], tuple[str, ...]]]:
    """Return the guests that rules with guests in common put together, and these rules."""
    groups: list[tuple[set[str], tuple[str, ...]]] = []
    for rule in rules:
        members = set(case.members[rule.name])
        names: tuple[str, ...] = (rule.name,)
        apart = []
        for group, of in groups:
            if group & members:
                members, names = members | group, (*of, *names)
            else:
                apart.append((group, of))
        groups = [*apart, (members, names)]
    return groups


def _together_nowhere(case: _Case) -> Iterator[Conflict]:
    for rule in case.groupings(Mode.TOGETHER):
        if not rule.strict or len(case.members[rule.name]) < 2:
            continue
        common: set[str | None] | None = None
        for guest in case.members[rule.name]:
            mine = {case.domain_of(rule, node) for node in case.allowed(guest)} - {None}
            common = mine if common is None else common & mine
        if not common and all(case.allowed(guest) for guest in case.members[rule.name]):
            place = f"{rule.domain}" if rule.domain else "node"
            text = (
                f"rule {rule.name} keeps {_some(case.members[rule.name])} together, and their strict rules about nodes "
                f"have no {place} in common."
            )
            yield Conflict((rule.name,), "NO_COMMON_NODE", text, f"Allow them all one {place}, or make one preferring.")


def _too_big_together(case: _Case) -> Iterator[Conflict]:
    for rule in case.groupings(Mode.TOGETHER):
        guests = [case.guests[name] for name in case.members[rule.name]]
        memory = sum(guest.memory_bytes for guest in guests)
        largest = max((node.memory_bytes for node in case.nodes.values()), default=0)
        if rule.strict and not rule.domain and len(guests) > 1 and memory > largest:
            text = (
                f"rule {rule.name} keeps {len(guests)} guests together that ask for {memory} bytes of memory; the "
                f"largest node has {largest}."
            )
            yield Conflict((rule.name,), "TOO_BIG_TOGETHER", text, "Take guests out of it, or make it preferring.")


def _too_many_apart(case: _Case) -> Iterator[Conflict]:
    for rule in case.groupings(Mode.APART):
        members = case.members[rule.name]
        if not rule.strict or len(members) < 2:
            continue
        choices = {
            guest: sorted({d for node in case.allowed(guest) if (d := case.domain_of(rule, node)) is not None})
            for guest in members
        }
        placed = _most_apart(choices)
        if placed < len(members) and all(choices.values()):
            place = f"{rule.domain} values" if rule.domain else "nodes"
            have = len({domain for found in choices.values() for domain in found})
            text = (
                f"rule {rule.name} keeps {len(members)} guests apart, and only {placed} of them can be: they may have "
                f"{have} {place} between them."
            )
            yield Conflict((rule.name,), "TOO_MANY_APART", text, "Add nodes, take guests out, or make it preferring.")


def _most_apart(choices: Mapping[str, Collection[str]]) -> int:
    """Return how many guests can have a domain each: a largest matching, by augmenting paths (Kuhn 1955)."""
    holder: dict[str, str] = {}
    for guest in choices:
        came_from: dict[str, str] = {}
        waiting, free = [guest], None
        while waiting and free is None:
            asking = waiting.pop(0)
            for domain in choices[asking]:
                if domain not in came_from:
                    came_from[domain] = asking
                    if domain not in holder:
                        free = domain
                        break
                    waiting.append(holder[domain])
        while free is not None:
            asking = came_from[free]
            given_up = next((domain for domain, one in holder.items() if one == asking), None)
            holder[free] = asking
            if given_up is not None:
                del holder[given_up]
            free = given_up
    return len(holder)


def _in(rule: GuestAffinity) -> str:
    return f" by {rule.domain}" if rule.domain else ""


def _some(names: Collection[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - MOST_NAMED} more" if len(listed) > MOST_NAMED else ""
    return ", ".join(listed[:MOST_NAMED]) + more


CHECKS: tuple[Callable[[_Case], Iterator[Conflict]], ...] = (
    _same_name,
    _unknown,
    _empty,
    _unlabelled,
    _priorities,
    _no_node,
    _together_and_apart,
    _chains,
    _together_nowhere,
    _too_big_together,
    _too_many_apart,
)
"""Everything that is looked for, in the order in which it is told."""

MISTAKES = frozenset({"RULE_NAME_TAKEN", "UNKNOWN_GUEST", "UNKNOWN_NODE", "NO_NODES", "NO_GUESTS", "ONE_GUEST"})
"""Reasons that make a rule meaningless whatever the cluster is like."""
