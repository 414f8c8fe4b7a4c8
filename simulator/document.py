"""A scenario in a file: what `gugus simulate` reads, checked whole, and its JSON schema (docs/simulation.md).

Invariant: FIELDS of each object drive reading and the schema, so that neither knows what the other does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER, GUEST_KIND_VIRTUAL_MACHINE
from gugus.cluster.v1.cluster_pb2 import (
    BALANCE_MODE_ADVISE,
    BALANCE_MODE_AUTOMATIC,
    BALANCE_MODE_OFF,
    PLACEMENT_POLICY_PACK,
    PLACEMENT_POLICY_SPREAD,
    PREEMPTION_POLICY_LOWER_PRIORITY,
    PREEMPTION_POLICY_NEVER,
    SHUTDOWN_POLICY_CONDITIONAL,
    SHUTDOWN_POLICY_FAIL_OVER,
    SHUTDOWN_POLICY_FREEZE,
    SHUTDOWN_POLICY_MIGRATE,
    SPARE_POLICY_REFUSE,
    SPARE_POLICY_WARN,
    ClusterSettings,
)
from gugus.cluster.v1.guest_pb2 import POWER_OFF, POWER_ON, QUORUM_LOSS_KEEP, QUORUM_LOSS_STOP, Guest
from gugus.cluster.v1.node_pb2 import FENCE_AFTER_OFF, FENCE_AFTER_REBOOT, NODE_STATE_FENCED, NODE_STATE_JOINING, Node
from gugus.cluster.v1.rule_pb2 import Rule

from common.errors import Violation
from common.leases import MAX_NODE_LEASE_MS, MIN_NODE_LEASE_MS
from manager.scheduler.balancing import DEFAULT_HOLD_MS, DEFAULT_MOVES_PER_HOUR, DEFAULT_SMOOTHING_MS
from manager.scheduler.settings import DEFAULT_GAIN_PERCENT
from planner import document as plan
from planner.fields import (
    FLAG,
    NAME,
    TEXT,
    Field,
    Form,
    Kind,
    Schema,
    choice,
    formed,
    known_only,
    listed,
    mapped,
    nullable,
    number,
    one_of,
    size,
    whole,
)
from planner.rules import GuestAffinity, Mode, NodeAffinity
from planner.scores import SCORES
from planner.settings import Policy, Preemption, SparePolicy
from simulator.clockwork import S
from simulator.storage import DEFAULT_LEASE_S, Locks, Pool

MOST_SECONDS = 30 * 86_400
"""A scenario lasts at most so long."""

DEFAULT_BOOT_S = 20.0
"""From power on until a host's agent beats."""

MOST_MANAGERS = 7

PRIORITY_MOST = 1_000
"""Of guests and of nodes in rules, as the cluster has them (cluster.v1.HaSpec, NodeAffinity)."""


class GuestKind(StrEnum):
    """What a guest is."""

    VIRTUAL_MACHINE = "virtual-machine"
    CONTAINER = "container"


class QuorumLoss(StrEnum):
    """What becomes of a guest while its node's lease is not renewed."""

    KEEP = "keep"
    STOP = "stop"


class Shutdown(StrEnum):
    """What becomes of the HA guests of a host that goes down in order."""

    CONDITIONAL = "conditional"
    FREEZE = "freeze"
    FAIL_OVER = "fail-over"
    MIGRATE = "migrate"


_SHUTDOWN = {
    Shutdown.CONDITIONAL: SHUTDOWN_POLICY_CONDITIONAL,
    Shutdown.FREEZE: SHUTDOWN_POLICY_FREEZE,
    Shutdown.FAIL_OVER: SHUTDOWN_POLICY_FAIL_OVER,
    Shutdown.MIGRATE: SHUTDOWN_POLICY_MIGRATE,
}


class After(StrEnum):
    """What a fence device leaves a host as."""

    REBOOT = "reboot"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class GuestWish:
    """A guest, and how many CPUs it keeps busy at the beginning."""

    guest: Guest
    load: float


@dataclass(frozen=True, slots=True)
class NodeWish:
    """A node, and how its host is at the beginning."""

    node: Node
    power: bool
    network: bool


_KINDS = {GuestKind.VIRTUAL_MACHINE: GUEST_KIND_VIRTUAL_MACHINE, GuestKind.CONTAINER: GUEST_KIND_CONTAINER}


def _read_switch(value: Any, path: str, faults: list[Violation]) -> Any:
    """YAML reads the bare words on and off as true and false."""
    known = {"on": True, "off": False, True: True, False: False}
    if isinstance(value, str | bool) and value in known:
        return known[value]
    faults.append(Violation(path, f"{value} is neither on nor off."))
    return None


SWITCH = Kind({"enum": ["on", "off", True, False]}, _read_switch)


def _read_after(value: Any, path: str, faults: list[Violation]) -> Any:
    return choice(After).read("off" if value is False else value, path, faults)


AFTER = Kind({"enum": ["reboot", "off", False]}, _read_after)

_NAMES = listed(NAME)


def _fence(levels: Sequence[Sequence[str]], after: After) -> tuple[Sequence[Sequence[str]], After]:
    return levels, after


FENCE = Form(
    (
        Field(
            "levels",
            listed(listed(NAME)),
            "Names of devices: those of one level work together, the next level is tried when one fails.",
        ),
        Field("after", AFTER, "Whether the host gets its power back once it is fenced.", After.REBOOT),
    ),
    _fence,
)


def _node(
    name: str,
    cpus: int,
    memory_bytes: int,
    labels: Mapping[str, str],
    pools: Sequence[str],
    networks: Sequence[str],
    cordoned: bool,
    witness: bool,
    power: bool,
    network: bool,
    fence: Any,
) -> NodeWish:
    node = Node()
    node.meta.name = name
    node.meta.labels.update(labels)
    node.spec.cordoned, node.spec.witness = cordoned, witness
    node.status.state = NODE_STATE_JOINING if power and network else NODE_STATE_FENCED
    node.status.reason = "" if power and network else "it was off at the beginning"
    facts = node.status.facts
    facts.cpus, facts.memory_bytes, facts.memory_allocatable_bytes = cpus, memory_bytes, memory_bytes
    if not witness:
        facts.hypervisors.add(driver="simulated", ready=True, kinds=list(_KINDS.values()))
    facts.pools.extend(pools)
    facts.networks.extend(networks)
    for level, names in enumerate(fence[0] if fence else (), 1):
        for device in names:
            node.spec.fence.devices.add(name=device, level=level)
    if fence:
        node.spec.fence.after = FENCE_AFTER_OFF if fence[1] is After.OFF else FENCE_AFTER_REBOOT
    return NodeWish(node, power, network)


NODE = Form(
    (
        Field("name", NAME, "Its name."),
        Field("cpus", whole(1, 1_000_000), "CPUs of the host.", 16),
        Field("memory_bytes", size(1), "Memory of the host that guests may have.", 64 << 30),
        Field("labels", mapped(TEXT), "Labels, like rack or site.", {}),
        Field("pools", _NAMES, "Pools in reach.", ()),
        Field("networks", _NAMES, "Networks in reach.", ()),
        Field("cordoned", FLAG, "Whether it gets no more guests.", False),
        Field("witness", FLAG, "Whether it may have a manager and no guests.", False),
        Field("power", SWITCH, "Whether it is on at the beginning.", True),
        Field("network", SWITCH, "Whether it is reached at the beginning.", True),
        Field("fence", nullable(formed(FENCE)), "Its fence devices.", None),
    ),
    _node,
)


def _ha(**given: Any) -> Mapping[str, Any]:
    return given


HA = Form(
    (
        Field("enabled", FLAG, "Whether it is under HA.", True),
        Field("disabled", FLAG, "Whether it is out of use.", False),
        Field("max_restart", whole(0, 100), "Restarts on one node.", 3),
        Field("max_relocate", whole(0, 100), "Other nodes that it is then tried on.", 1),
        Field("priority", whole(0, PRIORITY_MOST), "Those with more are given a node first.", 0),
        Field(
            "on_quorum_loss",
            choice(QuorumLoss),
            "Whether it runs until its node's lease ends, or is asked to end before.",
            QuorumLoss.KEEP,
        ),
    ),
    _ha,
)


BOOT = Form(
    (
        Field("order", whole(0, 1_000_000), "Place in the order of starting with its host; 0 for after all others.", 0),
        Field("delay_s", whole(0, 3_600), "Seconds that it is to have run before the next ones start.", 0),
        Field("after", _NAMES, "Guests that start before it, wherever they are.", ()),
    ),
    _ha,
)


POOL = Form(
    (
        Field("name", NAME, "Its name, as nodes and guests have it in their pools."),
        Field(
            "locks",
            choice(Locks),
            "When the locks of a host that is gone end: with its power, some time after its server last heard it; or there are none.",
            Locks.LEASE,
        ),
        Field("lease_s", number(0, 86_400), "After so many seconds its server gives the locks back.", DEFAULT_LEASE_S),
    ),
    lambda name, locks, lease_s: Pool(name, locks, round(lease_s * S)),
)


def _guest(
    name: str,
    kind: GuestKind,
    cpus: int,
    memory_bytes: int,
    load: float,
    node: str | None,
    power: bool,
    labels: Mapping[str, str],
    pinned: str,
    preferred: str,
    pools: Sequence[str],
    networks: Sequence[str],
    ha: Mapping[str, Any],
    boot: Mapping[str, Any],
) -> GuestWish:
    guest = Guest()
    guest.meta.name = guest.meta.uid = name
    guest.meta.labels.update(labels)
    spec = guest.spec
    spec.kind, spec.cpus, spec.memory_bytes = _KINDS[kind], cpus, memory_bytes
    spec.power = POWER_ON if power else POWER_OFF
    spec.pinned_node, spec.preferred_node = pinned, preferred
    for pool in pools:
        spec.disks.add(name=pool, pool=pool)
    for network in networks:
        spec.nics.add(name=network, network=network)
    spec.ha.enabled, spec.ha.disabled, spec.ha.priority = ha["enabled"], ha["disabled"], ha["priority"]
    spec.ha.max_restart, spec.ha.max_relocate = ha["max_restart"], ha["max_relocate"]
    spec.ha.quorum_loss = QUORUM_LOSS_STOP if ha["on_quorum_loss"] is QuorumLoss.STOP else QUORUM_LOSS_KEEP
    spec.boot.order, spec.boot.delay_s = boot["order"], boot["delay_s"]
    spec.boot.after.extend(boot["after"])
    guest.status.volumes_ready = True
    guest.status.node = node or ""
    return GuestWish(guest, load)


GUEST = Form(
    (
        Field("name", NAME, "Its name."),
        Field(
            "kind",
            choice(GuestKind),
            "Virtual machines move while they run, containers by a stop and a start.",
            GuestKind.VIRTUAL_MACHINE,
        ),
        Field("cpus", whole(1, 1_000_000), "CPUs that it has.", 1),
        Field("memory_bytes", size(1), "Memory that it has.", 1 << 30),
        Field("load", number(0, 1_000_000), "CPUs that it keeps busy.", 0.0),
        Field("node", nullable(NAME), "Where it is; null when it is to be given a place.", None),
        Field("power", SWITCH, "Whether it is to run.", True),
        Field("labels", mapped(TEXT), "Labels, by which rules can select it.", {}),
        Field("pinned", TEXT, "The only node that it may run on; empty for any.", ""),
        Field("preferred", TEXT, "The node that it gets when it fits there; empty for none.", ""),
        Field("pools", _NAMES, "Pools that its host must reach; they are shared.", ()),
        Field("networks", _NAMES, "Networks that its host must reach.", ()),
        Field("ha", formed(HA), "What HA does with it.", HA.read({}, "", [])),
        Field("boot", formed(BOOT), "When it starts.", BOOT.read({}, "", [])),
    ),
    _guest,
)


def _rule(made: Any) -> Rule:
    """Return a rule of the planner as the cluster stores it."""
    rule = Rule()
    rule.meta.name = made.name
    spec = rule.spec
    spec.guests.extend(sorted(made.guests.names))
    spec.guest_labels.update(made.guests.labels)
    spec.preferring = not made.strict
    if isinstance(made, NodeAffinity):
        spec.nodes.priorities.update(made.nodes)
        spec.nodes.no_failback = not made.failback
    elif isinstance(made, GuestAffinity) and made.mode is Mode.TOGETHER:
        spec.together.domain = made.domain
    else:
        spec.apart.domain = made.domain
    return rule


def _stored(form: Form) -> Form:
    """Return a rule's form that makes what the cluster stores. Priorities of nodes are the cluster's."""
    fields = tuple(
        replace(one, kind=mapped(whole(0, PRIORITY_MOST))) if one.name == "nodes" else one for one in form.fields
    )
    return Form(fields, lambda **given: _rule(form.make(**given)), form.constants)


RULES: Mapping[str, Form] = {kind: _stored(form) for kind, form in plan.RULES.items()}
RULE = one_of("kind", RULES)


def _spare(nodes: int, domain: str, policy: SparePolicy) -> Mapping[str, Any]:
    stored = SPARE_POLICY_REFUSE if policy is SparePolicy.REFUSE else SPARE_POLICY_WARN
    return {"nodes": nodes, "domain": domain, "policy": stored}


SPARE = Form(
    (
        Field("nodes", whole(0, 2), "Any so many nodes may be lost at once.", 0),
        Field("domain", TEXT, "All nodes with one value of this label may be lost; empty for none.", ""),
        Field("policy", choice(SparePolicy), "Whether guests that would break that are refused.", SparePolicy.WARN),
    ),
    _spare,
)

FENCING = Form(
    (
        Field("cap_percent", whole(1, 100), "Most nodes that may be fenced by device at once, in hundredths.", 25),
        Field("max_cuts", whole(1, 100), "Most cuts of one node's power within ten minutes.", 5),
    ),
    lambda **given: given,
)


class Balancing(StrEnum):
    """Who decides to even the cluster out."""

    OFF = "off"
    ADVISE = "advise"
    AUTOMATIC = "automatic"


_BALANCING = {
    Balancing.OFF: BALANCE_MODE_OFF,
    Balancing.ADVISE: BALANCE_MODE_ADVISE,
    Balancing.AUTOMATIC: BALANCE_MODE_AUTOMATIC,
}


def _read_balancing(value: Any, path: str, faults: list[Violation]) -> Any:
    return choice(Balancing).read("off" if value is False else value, path, faults)


def _balance(mode: Balancing, **limits: int) -> Mapping[str, Any]:
    return {"mode": _BALANCING[mode], **limits}


BALANCE = Form(
    (
        Field(
            "mode",
            Kind({"enum": ["off", "advise", "automatic", False]}, _read_balancing),
            "Whether nothing is looked at, a plan is told, or it is carried out.",
            Balancing.OFF,
        ),
        Field("hold_ms", whole(10_000, 86_400_000), "For so long a plan is to have been worth it.", DEFAULT_HOLD_MS),
        Field("gain_percent", whole(1, 90), "Least part of the score that a plan is to win.", DEFAULT_GAIN_PERCENT),
        Field("max_moves", whole(1, 100), "Most migrations of a plan.", 10),
        Field("max_moves_per_hour", whole(1, 1_000), "Most of those within an hour.", DEFAULT_MOVES_PER_HOUR),
        Field(
            "smoothing_ms",
            whole(10_000, 86_400_000),
            "Time constant with which the load of guests is smoothed.",
            DEFAULT_SMOOTHING_MS,
        ),
    ),
    _balance,
)


def _settings(
    node_lease_ms: int,
    cpu_overcommit_percent: int,
    memory_overcommit_percent: int,
    placement: Policy,
    placement_weights: Mapping[str, float],
    spare: Mapping[str, Any] | None,
    preemption: Preemption,
    fencing: Mapping[str, Any] | None,
    shutdown: Shutdown,
    freeze_ms: int,
    balance: Mapping[str, Any] | None,
) -> ClusterSettings:
    settings = ClusterSettings(
        node_lease_ms=node_lease_ms,
        cpu_overcommit_percent=cpu_overcommit_percent,
        memory_overcommit_percent=memory_overcommit_percent,
        placement=PLACEMENT_POLICY_PACK if placement is Policy.PACK else PLACEMENT_POLICY_SPREAD,
        placement_weights=placement_weights,
        shutdown=_SHUTDOWN[shutdown],
        freeze_ms=freeze_ms,
        preemption=PREEMPTION_POLICY_NEVER if preemption is Preemption.NEVER else PREEMPTION_POLICY_LOWER_PRIORITY,
    )
    for name, value in (spare or {}).items():
        setattr(settings.spare, name, value)
    for name, value in (balance or {}).items():
        setattr(settings.balance, name, value)
    for name, value in (fencing or {}).items():
        setattr(settings.fencing, name, value)
    return settings


SETTINGS = Form(
    (
        Field(
            "node_lease_ms",
            whole(MIN_NODE_LEASE_MS, MAX_NODE_LEASE_MS),
            "Length of a node lease, in milliseconds.",
            10_000,
        ),
        Field("cpu_overcommit_percent", whole(100, 10_000), "CPUs of guests, in hundredths of the host's.", 400),
        Field("memory_overcommit_percent", whole(100, 400), "Memory of guests, in hundredths of the host's.", 100),
        Field("placement", choice(Policy), "Whether guests share all hosts, or as few as they can.", Policy.SPREAD),
        Field("placement_weights", known_only(number(0, 100), [name for name, _ in SCORES]), "Of scores of nodes.", {}),
        Field("spare", nullable(formed(SPARE)), "What must be possible to lose.", None),
        Field("preemption", choice(Preemption), "Whether a guest may take the room of others.", Preemption.NEVER),
        Field("fencing", nullable(formed(FENCING)), "How freely fence devices are used.", None),
        Field(
            "shutdown",
            choice(Shutdown),
            "What becomes of a host's HA guests when it goes down in order.",
            Shutdown.CONDITIONAL,
        ),
        Field(
            "freeze_ms",
            whole(1_000, 86_400_000),
            "Longest wait of frozen guests for their node, in milliseconds.",
            600_000,
        ),
        Field("balance", nullable(formed(BALANCE)), "Whether the cluster evens itself out.", None),
    ),
    _settings,
)


@dataclass(frozen=True, slots=True)
class Raw:
    """A scenario whose commands are not understood yet."""

    nodes: Sequence[NodeWish]
    guests: Sequence[GuestWish]
    rules: Sequence[Rule]
    pools: Sequence[Pool]
    settings: ClusterSettings
    managers: Sequence[str]
    boot_s: float
    seconds: float | None
    seed: int
    commands: Sequence[Any]


def _raw(**given: Any) -> Raw:
    return Raw(**given)


def document(command: Kind) -> Form:
    """Return the form of a whole scenario. command: what one of its commands may be."""
    return Form(
        (
            Field("nodes", listed(formed(NODE)), "The hosts."),
            Field("guests", listed(formed(GUEST)), "The guests at the beginning.", ()),
            Field("rules", listed(RULE), "Rules about where guests run.", ()),
            Field("pools", listed(formed(POOL)), "Shared pools that are not as a folder on NFS is.", ()),
            Field("settings", formed(SETTINGS), "The cluster's settings.", SETTINGS.read({}, "", [])),
            Field("managers", _NAMES, "Nodes with a manager; the first one, three or five when it is left out.", ()),
            Field("boot_s", number(1, 3600), "Seconds from power on until a host's agent is there.", DEFAULT_BOOT_S),
            Field(
                "seconds",
                nullable(number(0, MOST_SECONDS)),
                "How long it lasts; two minutes after the last command.",
                None,
            ),
            Field("seed", whole(), "Of the delays of messages and of what is left to chance.", 0),
            Field("commands", listed(command), "What happens, in that order.", ()),
        ),
        _raw,
    )


def titled(form: Form) -> Schema:
    """Return the JSON schema (draft 2020-12) of a scenario."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A scenario as `gugus simulate` reads it",
        **form.schema(),
    }
