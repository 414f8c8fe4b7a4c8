"""Between stored objects and the scheduler's values.

Invariant: defaults of a guest's spec (1 CPU; 512 MiB for virtual machines, 256 MiB for containers) are applied here as
cluster.v1.GuestSpec documents them, so that every guest counts with what it will really get.
"""

from collections.abc import Iterable, Sequence

from gugus.agent.v1 import guest_pb2 as agent_guest_pb2
from gugus.agent.v1 import machine_pb2
from gugus.agent.v1 import node_pb2 as agent_node_pb2
from gugus.cluster.v1 import guest_pb2, node_pb2

from manager.ha.departure import leaving
from manager.scheduler.load import LoadOf, no_load
from planner.types import Decision, GuestRequest, NodeView

MIB = 1024 * 1024
DEFAULT_VM_MEMORY_BYTES = 512 * MIB
DEFAULT_CONTAINER_MEMORY_BYTES = 256 * MIB

_COMMON_MODELS = ("", "cluster", "host")
"""CPU models that every host has."""

_TO_RUN = frozenset({guest_pb2.POWER_ON, guest_pb2.POWER_PAUSED})

_DOWN = frozenset({guest_pb2.GUEST_PHASE_STOPPED, guest_pb2.GUEST_PHASE_HIBERNATED, guest_pb2.GUEST_PHASE_RECOVERING})
"""Phases of guests that surely take nothing of their hosts."""


def cpus_of(spec: guest_pb2.GuestSpec) -> int:
    """Return the CPUs that a guest counts with."""
    return spec.cpus or 1


def memory_of(spec: guest_pb2.GuestSpec) -> int:
    """Return the memory in bytes that a guest counts with."""
    container = spec.kind == agent_guest_pb2.GUEST_KIND_CONTAINER
    return spec.memory_bytes or (DEFAULT_CONTAINER_MEMORY_BYTES if container else DEFAULT_VM_MEMORY_BYTES)


def guest_request(guest: guest_pb2.Guest, excluded: Iterable[str] = (), *, load_of: LoadOf = no_load) -> GuestRequest:
    """Return what a stored guest needs of a node. load_of: what it uses really."""
    spec, load = guest.spec, load_of(guest)
    return GuestRequest(
        name=guest.meta.name,
        kind=spec.kind,
        cpus=cpus_of(spec),
        memory_bytes=memory_of(spec),
        pools=frozenset(_pools_of(spec)),
        networks=frozenset(nic.network for nic in spec.nics),
        pinned=spec.pinned_node,
        preferred=spec.preferred_node,
        excluded=frozenset(excluded),
        machine=spec.virtual_machine.machine,
        cpu_model="" if spec.virtual_machine.cpu.model in _COMMON_MODELS else spec.virtual_machine.cpu.model,
        abilities=frozenset(_abilities_of(spec)),
        huge_pages_2m_bytes=_huge_pages_of(spec, machine_pb2.HUGE_PAGES_2M),
        huge_pages_1g_bytes=_huge_pages_of(spec, machine_pb2.HUGE_PAGES_1G),
        node=guest.status.node if holds_room(guest) else "",
        priority=spec.ha.priority,
        labels=dict(guest.meta.labels),
        idle=spec.power not in _TO_RUN,
        restarted=spec.ha.enabled and not spec.ha.disabled and not spec.template,
        after=tuple(spec.boot.after),
        cpu_load=load.cpu,
        memory_load=load.memory,
    )


def holds_room(guest: guest_pb2.Guest) -> bool:
    """Return whether the room of a guest on its node is its own: one that gave way to another has none there once it is down."""
    return not guest.status.HasField("preempted") or guest.status.phase not in _DOWN


def _pools_of(spec: guest_pb2.GuestSpec) -> Iterable[str]:
    yield from (disk.pool for disk in spec.disks)
    yield from (cdrom.pool for cdrom in spec.virtual_machine.cdroms if cdrom.pool)


def _abilities_of(spec: guest_pb2.GuestSpec) -> Iterable[str]:
    """Yield what of HypervisorFacts.abilities a virtual machine needs."""
    machine = spec.virtual_machine
    if machine.firmware.kind == machine_pb2.FIRMWARE_KIND_UEFI:
        yield "uefi"
    if machine.firmware.secure_boot:
        yield "secure-boot"
    if machine.tpm:
        yield "tpm"
    if machine.display.spice:
        yield "spice"
    if machine.pci_devices:
        yield "iommu"


def _huge_pages_of(spec: guest_pb2.GuestSpec, pages: machine_pb2.HugePages.ValueType) -> int:
    """Return the bytes that a guest takes of the host's huge pages of one size."""
    return memory_of(spec) if spec.virtual_machine.memory.huge_pages == pages else 0


def ends_of(guest: guest_pb2.Guest) -> tuple[str, ...]:
    """Return the nodes that a guest is given to, or on its way to: until that is over it may be on either, and has room on both."""
    return tuple(dict.fromkeys(name for name in (guest.status.node, guest.status.migration.target) if name))


def node_views(
    nodes: Iterable[node_pb2.Node],
    guests: Iterable[guest_pb2.Guest],
    *,
    ignoring: str = "",
    load_of: LoadOf = no_load,
) -> tuple[NodeView, ...]:
    """Return all nodes with what is promised and used on them, leaving out the guest that is being placed. One that moves counts twice."""
    placed: dict[str, list[guest_pb2.Guest]] = {}
    for guest in guests:
        counts = guest.meta.name != ignoring and holds_room(guest)
        for node in ends_of(guest) if counts else ():
            placed.setdefault(node, []).append(guest)
    return tuple(_node_view(node, placed.get(node.meta.name, []), load_of) for node in nodes)


def to_proto(decision: Decision, most: int | None = None) -> guest_pb2.Placement:
    """Return a decision in the API's words, of the best nodes only if `most` says so many.

    With one that is kept it must: the verdicts of a thousand nodes take more room than an object may have.
    """
    placement = guest_pb2.Placement(node=decision.node, reason=decision.reason)
    verdicts = decision.verdicts[:most]
    placement.left_out = decision.left_out + len(decision.verdicts) - len(verdicts)
    for v in verdicts:
        placement.verdicts.add(node=v.node, fits=v.fits, refusals=v.refusals, score=v.score, scores=dict(v.scores))
    return placement


def _node_view(node: node_pb2.Node, guests: Sequence[guest_pb2.Guest], load_of: LoadOf) -> NodeView:
    facts = node.status.facts
    loads = [(guest.spec, load_of(guest)) for guest in guests]
    online = node.status.state == node_pb2.NODE_STATE_ONLINE and not node.meta.deleting and facts.cpus > 0
    state = node_pb2.NodeState.Name(node.status.state).removeprefix("NODE_STATE_").lower()
    if state == "online" and not facts.cpus:
        state = "online, but has not told yet what it has"
    return NodeView(
        name=node.meta.name,
        online=online,
        cordoned=node.spec.cordoned or node.spec.maintenance or leaving(node),
        cpus=facts.cpus,
        memory_bytes=facts.memory_allocatable_bytes,
        kinds=frozenset(kind for h in facts.hypervisors if h.ready for kind in h.kinds),
        pools=frozenset(facts.pools),
        networks=frozenset(facts.networks),
        promised_cpus=sum(cpus_of(g.spec) for g in guests),
        promised_memory_bytes=sum(memory_of(g.spec) for g in guests),
        guests=len(guests),
        busy_cpus=sum(load.cpu * cpus_of(spec) for spec, load in loads),
        used_memory_bytes=sum(round(load.memory * memory_of(spec)) for spec, load in loads),
        offline_reason="" if online else f"the node is {state}" + (f" ({r})" if (r := node.status.reason) else ""),
        kind_reasons=_kind_reasons(facts.hypervisors),
        machines=frozenset(name for h in facts.hypervisors for name in h.machine_types),
        cpu_models=frozenset(model for h in facts.hypervisors for model in h.cpu_models),
        abilities=frozenset(word for h in facts.hypervisors for word in h.abilities),
        huge_pages_2m_bytes=facts.huge_pages_2m_bytes,
        huge_pages_1g_bytes=facts.huge_pages_1g_bytes,
        promised_huge_pages_2m_bytes=sum(_huge_pages_of(g.spec, machine_pb2.HUGE_PAGES_2M) for g in guests),
        promised_huge_pages_1g_bytes=sum(_huge_pages_of(g.spec, machine_pb2.HUGE_PAGES_1G) for g in guests),
        labels=dict(node.meta.labels),
        witness=node.spec.witness,
    )


def _kind_reasons(hypervisors: Iterable[agent_node_pb2.HypervisorFacts]) -> dict[int, str]:
    return {kind: f"{h.driver} is not ready: {h.reason}" for h in hypervisors if not h.ready for kind in h.kinds}
