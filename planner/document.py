"""A cluster in a file: what `gugus plan` reads, checked whole, and its JSON schema (docs/planning.md).

Invariant: FIELDS of each object drive reading and the schema, so that neither knows what the other does not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import Violation, invalid, several
from planner.conflicts import MISTAKES, conflicts
from planner.fields import (
    FLAG,
    NAME,
    TEXT,
    Field,
    Form,
    Schema,
    choice,
    formed,
    known_only,
    listed,
    mapped,
    nullable,
    one_of,
    size,
    whole,
)
from planner.fields import number as number_of
from planner.objective import METRICS
from planner.plans import Cluster
from planner.rules import GuestAffinity, Guests, Mode, NodeAffinity, Rule
from planner.scores import SCORES
from planner.settings import Balance, Policy, Preemption, Settings, Spare, SparePolicy
from planner.types import GuestRequest, NodeView

ANY_KIND = 0
"""A file does not tell virtual machines and containers apart: every host takes every guest."""

PRIORITY_MOST = 1_000_000

_REMEDY = "`gugus plan schema` prints what a file may hold."


def _node(**given: Any) -> NodeView:
    return NodeView(kinds=frozenset({ANY_KIND}), **given)


def _guest(node: str | None, **given: Any) -> GuestRequest:
    return GuestRequest(kind=ANY_KIND, node=node or "", **given)


_NAMES = listed(NAME, frozenset)

NODE = Form(
    (
        Field("name", NAME, "Its name."),
        Field("cpus", whole(0, 1_000_000), "CPUs of the host, without overcommitment."),
        Field("memory_bytes", size(), "Memory of the host."),
        Field(
            "disk_bytes", nullable(size()), "Room of its own disks for guests; not counted when it is left out.", None
        ),
        Field("labels", mapped(TEXT), "Labels, like rack or site.", {}),
        Field("online", FLAG, "Whether it is up. One that is not keeps its guests and gets none.", True),
        Field("cordoned", FLAG, "Whether it gets no more guests, though it keeps those it has.", False),
        Field(
            "reserved_memory_bytes",
            nullable(size()),
            "Memory that guests may not have; the settings' when it is left out.",
            None,
        ),
        Field("pools", _NAMES, "Pools in reach.", frozenset()),
        Field("networks", _NAMES, "Networks in reach.", frozenset()),
    ),
    _node,
)

GUEST = Form(
    (
        Field("name", NAME, "Its name."),
        Field("cpus", whole(0, 1_000_000), "CPUs that it has."),
        Field("memory_bytes", size(), "Memory that it has."),
        Field("disk_bytes", size(), "What it takes of its host's own disks, which a migration copies.", 0),
        Field("node", nullable(NAME), "Where it is; null when it has no place yet.", None),
        Field("priority", whole(-PRIORITY_MOST, PRIORITY_MOST), "Those with more are served first.", 0),
        Field("labels", mapped(TEXT), "Labels, by which rules can select it.", {}),
        Field("cpu_load", number_of(0, 1), "Smoothed part of its own CPUs that is busy.", 0.0),
        Field("memory_load", number_of(0, 1), "Smoothed part of its own memory that is in use.", 0.0),
        Field("after", listed(NAME), "Guests that start before it when hosts are lost.", ()),
        Field("pinned", TEXT, "The only node that it may run on; empty for any.", ""),
        Field("preferred", TEXT, "The node that it gets when it fits there; empty for none.", ""),
        Field("pools", _NAMES, "Pools that its host must reach.", frozenset()),
        Field("networks", _NAMES, "Networks that its host must reach.", frozenset()),
    ),
    _guest,
)


def _guests_of(guests: Sequence[str], guest_labels: Mapping[str, str]) -> Guests:
    return Guests(frozenset(guests), guest_labels)


def _node_affinity(name: str, guests: Any, guest_labels: Any, nodes: Any, strict: bool, failback: bool) -> NodeAffinity:
    return NodeAffinity(name, _guests_of(guests, guest_labels), nodes, strict, failback)


def _guest_affinity(name: str, guests: Any, guest_labels: Any, mode: Mode, strict: bool, domain: str) -> GuestAffinity:
    return GuestAffinity(name, _guests_of(guests, guest_labels), mode, strict, domain)


_WHOM = (
    Field("name", NAME, "Its name, which messages use."),
    Field("guests", listed(NAME), "Guests by name.", ()),
    Field("guest_labels", mapped(TEXT), "And all guests that have each of these labels.", {}),
)
_STRICT = Field("strict", FLAG, "Whether it is never broken; else it is a preference.", True)

RULES: Mapping[str, Form] = {
    "node-affinity": Form(
        (
            *_WHOM,
            Field(
                "nodes", mapped(whole(-PRIORITY_MOST, PRIORITY_MOST)), "Nodes with their priorities; more is better."
            ),
            _STRICT,
            Field("failback", FLAG, "Whether guests return to a better node once it has room.", True),
        ),
        _node_affinity,
        {"kind": "node-affinity"},
    ),
    "guest-affinity": Form(
        (
            *_WHOM,
            Field("mode", choice(Mode), "Whether the guests belong together or apart."),
            _STRICT,
            Field("domain", TEXT, "Label of nodes that counts, like rack; empty for the node itself.", ""),
        ),
        _guest_affinity,
        {"kind": "guest-affinity"},
    ),
}

SPARE = Form(
    (
        Field("hosts", whole(0, 8), "Any so many hosts may be lost at once.", 0),
        Field("domain", TEXT, "All hosts with one value of this label may be lost, like rack; empty for none.", ""),
        Field("policy", choice(SparePolicy), "Whether guests that would break that are refused.", SparePolicy.WARN),
    ),
    Spare,
)

BALANCE = Form(
    (
        Field("max_moves", whole(0, 100_000), "Most migrations of a plan.", 10),
        Field("min_gain", number_of(1e-9), "Least by which each migration lowers the score.", 1e-5),
        Field("gain_margin", number_of(0, 1), "Least part of the score that a whole plan wins.", 0.0),
        Field("move_cost", number_of(0), "Cost of moving all memory of all hosts; a migration costs its share.", 0.1),
        Field("moves_at_once_per_node", whole(1, 100), "Migrations that a node takes part in at the same time.", 1),
        Field("weights", known_only(number_of(0), [one.name for one in METRICS]), "Of parts of the score.", {}),
    ),
    Balance,
)

SETTINGS = Form(
    (
        Field("cpu_overcommit_percent", whole(1, 100_000), "CPUs of guests, in hundredths of the host's.", 400),
        Field("memory_overcommit_percent", whole(1, 1000), "Memory of guests, in hundredths of the host's.", 100),
        Field("reserved_memory_bytes", size(), "Of each host that does not say its own.", 0),
        Field("policy", choice(Policy), "Whether guests share all hosts, or as few as they can.", Policy.SPREAD),
        Field("weights", known_only(number_of(0), [name for name, _ in SCORES]), "Of scores of nodes.", {}),
        Field("spare", formed(SPARE), "What must be possible to lose with every guest finding a place.", Spare()),
        Field("preemption", choice(Preemption), "Whether guests may be stopped for others.", Preemption.NEVER),
        Field("balance", formed(BALANCE), "When moving a running guest is worth it.", Balance()),
    ),
    Settings,
)


def _cluster(nodes: Any, guests: Any, rules: Any, settings: Any) -> Cluster:
    return Cluster(nodes, guests, rules, settings)


DOCUMENT = Form(
    (
        Field("nodes", listed(formed(NODE)), "The hosts."),
        Field("guests", listed(formed(GUEST)), "The guests.", ()),
        Field("rules", listed(one_of("kind", RULES)), "What guests may have, and how they stand to one another.", ()),
        Field("settings", formed(SETTINGS), "Everything else that steers planning.", Settings()),
    ),
    _cluster,
)


def schema() -> Schema:
    """Return the JSON schema (draft 2020-12) of a document."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A cluster as `gugus plan` reads it",
        **DOCUMENT.schema(),
    }


def read(document: Any) -> Cluster:
    """Return what a document says. Raises GugusError BAD_CLUSTER with every fault: its field, value and what is right."""
    faults: list[Violation] = []
    cluster = DOCUMENT.read(document, "", faults)
    if not faults:
        faults = [*_names_twice(cluster), *_strangers(cluster)]
    if not faults:
        faults = _mistakes(cluster)
    if faults:
        raise several(
            [invalid(one.field or "document", one.message, remedy=_REMEDY, reason="BAD_CLUSTER") for one in faults]
        )
    made: Cluster = cluster
    return made


def _names_twice(cluster: Cluster) -> list[Violation]:
    faults = []
    lists: tuple[tuple[str, Sequence[NodeView | GuestRequest | Rule]], ...] = (
        ("nodes", cluster.nodes),
        ("guests", cluster.guests),
        ("rules", cluster.rules),
    )
    for where, items in lists:
        first: dict[str, int] = {}
        for i, item in enumerate(items):
            if item.name in first:
                what = f'"{item.name}" is the name of {where}[{first[item.name]}] already; give each its own.'
                faults.append(Violation(f"{where}[{i}].name", what))
            first.setdefault(item.name, i)
    return faults


def _strangers(cluster: Cluster) -> list[Violation]:
    nodes, guests = {node.name for node in cluster.nodes}, {guest.name for guest in cluster.guests}
    faults = []
    for i, guest in enumerate(cluster.guests):
        for name in ("node", "pinned", "preferred"):
            value = getattr(guest, name)
            if value and value not in nodes:
                what = f'there is no node "{value}"; name one of nodes, or null.'
                faults.append(Violation(f"guests[{i}].{name}", what))
        for j, other in enumerate(guest.after):
            if other not in guests or other == guest.name:
                what = f'"{other}" is no other guest; name one of guests.'
                faults.append(Violation(f"guests[{i}].after[{j}]", what))
    return faults


def _mistakes(cluster: Cluster) -> list[Violation]:
    """Return what is wrong with single rules. Rules that cannot hold can be planned with, and are told with the plan."""
    index = {rule.name: i for i, rule in enumerate(cluster.rules)}
    return [
        Violation(f"rules[{index[found.rules[0]]}]", f"{found.message} {found.remedy}")
        for found in conflicts(cluster.rules, cluster.nodes, cluster.guests)
        if found.reason in MISTAKES
    ]
