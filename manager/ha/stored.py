"""Stored guests and nodes as the decisions of HA see them, and what is written down when a guest is given to a node. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from gugus.cluster.v1.cluster_pb2 import ClusterSettings
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_CREATING,
    GUEST_PHASE_PAUSED,
    GUEST_PHASE_RECOVERING,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STARTING,
    GUEST_PHASE_STOPPED,
    HA_STATE_FREEZE,
    HA_STATE_RECOVERY,
    POWER_ON,
    POWER_PAUSED,
    Guest,
)
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node
from gugus.cluster.v1.rule_pb2 import Rule

from manager.ha import account, departure
from manager.ha.guest_machine import Event
from manager.ha.preemption import Preemption
from manager.ha.recovery import GuestView, Lost, Move, Wait
from manager.scheduler import Settings, Terms
from manager.scheduler.load import LoadOf, no_load
from manager.scheduler.stored_rules import planned_rules
from manager.scheduler.views import ends_of, guest_request, holds_room


def terms(
    nodes: Iterable[Node],
    guests: Iterable[Guest],
    rules: Iterable[Rule],
    settings: Settings,
    company: Sequence[Guest] = (),
    *,
    load_of: LoadOf = no_load,
) -> Terms:
    """Return what counts beside the guest that is placed: rules, settings, and where the others are that a rule may cover.

    Who is lost is nowhere: neither near the others nor in their way. Who is on the way to another node is on both. company: who leaves
    with it; they are where they are on their way to, or nowhere yet.
    """
    planned = planned_rules(rules)
    if not planned:
        return Terms(settings=settings)
    lost = {node.meta.name for node in nodes if node.status.state in Lost}
    leaving = {guest.meta.name for guest in company}
    placed = [guest for guest in guests if guest.status.node and guest.meta.name not in leaving]
    others = [(guest, end) for guest in placed for end in _ends(guest) if end not in lost]
    under_way = [(g, g.status.migration.target) for g in company if g.status.migration.target]
    return Terms(
        planned,
        settings,
        tuple(replace(guest_request(g, load_of=load_of), node=end) for g, end in (*others, *under_way)),
    )


def _ends(guest: Guest) -> tuple[str, ...]:
    """Return where a guest may be: one that is recovered is on its node no more, but may have arrived where it was on its way to."""
    recovering = guest.status.phase == GUEST_PHASE_RECOVERING
    return tuple(end for end in ends_of(guest) if not (recovering and end == guest.status.node))


def give(guest: Guest, node: str, *, disarmed: bool) -> None:
    """Give a guest to a node: the new generation is its right to run there. disarmed: HA is switched off for the whole cluster."""
    guest.status.node = node
    guest.status.phase = GUEST_PHASE_CREATING
    guest.status.ha_disarmed = disarmed
    guest.status.ha_armed = account.held(guest)
    guest.status.inherited = False
    guest.status.failures = 0
    guest.status.applied_spec_number = 0
    guest.status.booting = False
    account.follow(guest)
    for name in ("observed", "boot_id", "pending", "preempted"):
        guest.status.ClearField(name)
    guest.meta.generation += 1


def recovered(guest: Guest, move: Move | Preemption, *, disarmed: bool) -> None:
    """Give a guest of a lost node to another one, as recovery decided."""
    guest.status.reason = move.reason
    thawed = isinstance(move, Move) and move.thaw
    if thawed:
        account.happen(guest, Event.THAW, move.reason)
    else:
        guest.status.previous_node = move.from_node
        guest.status.recoveries += 1
        account.happen(guest, Event.PROVE, move.reason)
        account.happen(guest, Event.PLACE, move.reason)
    give(guest, move.to_node, disarmed=disarmed)
    guest.status.booting = thawed and guest.spec.power in account.WANTED  # with its host, in the order of its boot
    guest.meta.generation = move.generation


def waits(guest: Guest, outcome: Wait, node: Node | None) -> None:
    """Write into HA's account that a guest of a lost node waits. node: its node."""
    if outcome.event is not None:
        account.happen(guest, outcome.event, outcome.reason)
    if outcome.event is Event.FREEZE and node is not None and not guest.status.ha.HasField("frozen_at"):
        guest.status.ha.frozen_at.CopyFrom(node.status.departure.at)


def awaits_node(guest: Guest, node: Node, now_s: float, settings: ClusterSettings) -> bool:
    """Return whether a guest is to wait for its node, which went down in order or is back from that. now_s: the wall clock."""
    if node.status.state == NODE_STATE_ONLINE and guest.status.ha.state == HA_STATE_FREEZE:
        return departure.lasts(guest.status.ha.frozen_at.ToNanoseconds() / departure.NS_PER_S, now_s, settings)
    return guest.status.ha.state != HA_STATE_RECOVERY and departure.freezes(node, now_s, settings)


def assign(guest: Guest, node: str, generation: int) -> None:
    """Give a guest to a node where it is already."""
    status = guest.status
    guest.meta.generation = generation
    status.node = node
    status.ha_armed = account.held(guest)
    status.failures = 0
    status.applied_spec_number = 0  # the node was told the spec, and is told again, which changes nothing
    status.booting = status.inherited = False
    for name in ("boot_id", "observed", "addresses", "preempted"):
        status.ClearField(name)
    if status.phase in (GUEST_PHASE_RECOVERING, GUEST_PHASE_STARTING):
        held = guest.spec.power == POWER_PAUSED
        status.phase = GUEST_PHASE_PAUSED if held else GUEST_PHASE_RUNNING
    words = {GUEST_PHASE_STOPPED: "stopped", GUEST_PHASE_PAUSED: "held"}
    status.reason = f"{words.get(status.phase, 'runs')} on {node}"


def is_lost(guest: Guest, nodes: Mapping[str, Node]) -> bool:
    """Return whether recovery is to look at a guest."""
    node = nodes.get(guest.status.node)
    if node is None and guest.status.inherited and not guest.spec.ha.enabled:
        return False  # a person said that its host is off for good: the guest controller places it anew where its disks are
    return bool(guest.status.node) and (
        guest.status.phase == GUEST_PHASE_RECOVERING or node is None or node.status.state in Lost
    )


def view_of(guest: Guest, *, removed: bool = False, load_of: LoadOf = no_load) -> GuestView:
    """Return what recovery needs to know of a guest. removed: its node is none any more.

    What an inherited guest's node holds under HA is not known until it was started there: the state may be older.
    """
    armed = guest.status.ha_armed and (removed or not guest.status.inherited)
    return GuestView(
        name=guest.meta.name,
        node=guest.status.node,
        generation=guest.meta.generation,
        phase=guest.status.phase,
        ha=guest.spec.ha.enabled and armed,
        power_on=guest.spec.power == POWER_ON,
        request=guest_request(guest, load_of=load_of),
        deleting=guest.meta.deleting,
        uid=guest.meta.uid,
        inherited=guest.status.inherited,
        disabled=guest.spec.ha.disabled,
        priority=guest.spec.ha.priority,
        migration_target=guest.status.migration.target,
        counted=holds_room(guest),
    )
