"""What to do next for one guest that is not being recovered: a pure function from what is asked for and what is seen to one step.

Each step is idempotent, and after it the function is asked anew; so a controller that dies between any two steps loses nothing.
"""

from dataclasses import dataclass
from enum import Enum, auto

from gugus.agent.v1.guest_pb2 import (
    GUEST_END_UNSPECIFIED,
    GUEST_STATE_PAUSED,
    GUEST_STATE_RUNNING,
    GUEST_STATE_STOPPING,
    GuestEnd,
    GuestState,
)
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_HIBERNATED,
    GUEST_PHASE_PAUSED,
    GUEST_PHASE_RECOVERING,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STOPPED,
    POWER_HIBERNATED,
    POWER_OFF,
    POWER_ON,
    POWER_PAUSED,
    Guest,
    GuestPhase,
)
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED, NODE_STATE_ONLINE, Node

from manager.guests.boot_order import booted
from manager.guests.endings import stays_down
from manager.ha import account, preemption
from manager.ha.departure import shutting_down

ALIVE_STATES = frozenset({GUEST_STATE_RUNNING, GUEST_STATE_PAUSED, GUEST_STATE_STOPPING})
"""What an agent says of a guest that has processes."""

ALIVE_PHASES = frozenset({GUEST_PHASE_RUNNING, GUEST_PHASE_PAUSED})
"""Phases of guests that are known to have processes."""

WANTED = frozenset({POWER_ON, POWER_PAUSED})
"""Powers of guests that are to have processes."""


class Action(Enum):
    """A step that the guest controller can take."""

    REMOVE = auto()
    """Being deleted: end it on its node, delete its volumes, forget it."""
    PLACE = auto()
    """Choose a node and give it the guest."""
    BOOTED = auto()
    """Its host booted: do what its boot policy says."""
    PROVISION = auto()
    """Make its volumes on its node."""
    START = auto()
    """Define it on its node and start it."""
    STOP = auto()
    """Stop it on its node."""
    END = auto()
    """It ended by itself and is to stay down by its policies: write down that it is off."""
    SUSPEND = auto()
    """Hold its CPUs."""
    RESUME = auto()
    """Let it go on."""
    APPLY = auto()
    """Its spec changed: make new volumes, bring its definition and what runs up to date."""
    RECLAIM = auto()
    """Delete volumes that left it."""
    DEFINE = auto()
    """Have its node hold it under HA, or not any more."""
    SETTLE = auto()
    """It is as asked: write down that it runs or is stopped."""
    WAIT = auto()
    """Nothing can be done now; the reason says for what it waits."""


@dataclass(frozen=True, slots=True)
class Step:
    """The next step and why."""

    action: Action
    reason: str = ""


def next_step(
    guest: Guest,
    node: Node | None,
    observed: GuestState.ValueType,
    held: bool | None = None,
    ended: GuestEnd.ValueType = GUEST_END_UNSPECIFIED,
) -> Step:
    """Return the next step for a guest.

    `node` is the one that the guest is given to, None when there is none; `observed` is what that node's agent says of the guest now;
    `held` whether it says that it holds the guest under HA, None when it does not say; `ended` how it says that its last run ended.
    """
    status = guest.status
    if status.HasField("lock"):
        return Step(Action.WAIT, f"an operation works on it: {status.lock.reason}")
    if status.HasField("migration"):
        return Step(Action.WAIT, "a migration of it is not settled")
    if node is None and guest.meta.deleting:
        return Step(Action.REMOVE, "being deleted")
    if node is None:
        return Step(Action.PLACE, "no node was chosen yet")
    if guest.meta.deleting and node.status.state in (NODE_STATE_FENCED, NODE_STATE_ONLINE):
        return Step(Action.REMOVE, "being deleted")
    if node.status.state != NODE_STATE_ONLINE:
        return Step(Action.WAIT, f"its node {node.meta.name} is not online: {node.status.reason}")
    if status.phase == GUEST_PHASE_RECOVERING:
        return Step(Action.WAIT, "being recovered from a lost node")
    if shutting_down(node):
        return Step(Action.WAIT, f"its node {node.meta.name} is being shut down")
    if booted(guest, node.status.boot_id):
        return Step(Action.BOOTED, f"{node.meta.name} booted")
    if not status.volumes_ready:
        return Step(Action.PROVISION, "its volumes are to be made")
    return _power_step(guest, observed, ended) or _upkeep(guest, observed, held)


def settled_phase(guest: Guest, observed: GuestState.ValueType) -> GuestPhase.ValueType:
    """Return the phase of a guest for which nothing is to be done any more."""
    alive = observed in ALIVE_STATES
    if alive and guest.spec.power == POWER_PAUSED and observed == GUEST_STATE_PAUSED:
        return GUEST_PHASE_PAUSED
    if alive:
        return GUEST_PHASE_RUNNING
    hibernated = guest.spec.power == POWER_HIBERNATED and guest.status.hibernation_volume
    return GUEST_PHASE_HIBERNATED if hibernated else GUEST_PHASE_STOPPED


def _power_step(guest: Guest, observed: GuestState.ValueType, ended: GuestEnd.ValueType) -> Step | None:
    """Return the step towards the power that is asked for; None when there is none to take."""
    alive, power, phase = observed in ALIVE_STATES, guest.spec.power, guest.status.phase
    wanted = power in WANTED and not guest.spec.template and not guest.status.HasField("preempted")
    if wanted and not alive:
        if phase in ALIVE_PHASES and stays_down(guest.spec, ended):
            return Step(Action.END, "it ended by itself and is to stay down")
        if guest.status.ha_frozen:
            return Step(Action.SETTLE if phase in ALIVE_PHASES else Action.WAIT, account.FROZEN)
        if guest.status.ha.state in account.HELD:
            return Step(Action.WAIT, guest.status.ha.reason)
        return Step(Action.START, "it is to run")
    if not wanted and alive and power != POWER_HIBERNATED:
        return Step(Action.STOP, preemption.in_words(guest) or "it is not to run")
    if power == POWER_PAUSED and observed == GUEST_STATE_RUNNING:
        return Step(Action.SUSPEND, "it is to be held")
    if power == POWER_ON and observed == GUEST_STATE_PAUSED and phase == GUEST_PHASE_PAUSED:
        return Step(Action.RESUME, "it is to go on")
    return None


def _upkeep(guest: Guest, observed: GuestState.ValueType, held: bool | None) -> Step:
    """Return the step that is due while the guest's power is as it was asked for."""
    status = guest.status
    if (
        status.phase != settled_phase(guest, observed)
        or status.observed != observed
        or _sleeps_no_more(guest, observed)
    ):
        return Step(Action.SETTLE)  # first: what comes below may fail, and does not change that it is so
    if status.applied_spec_number < guest.spec_number:
        return Step(Action.APPLY, "its spec changed")
    if status.ha_armed != account.held(guest):
        return Step(Action.DEFINE, "its HA setting changed")
    if held is not None and held != account.held(guest):
        return Step(Action.DEFINE, "its node holds it otherwise than its HA setting says")
    if reclaimable(guest, observed):
        return Step(Action.RECLAIM, "volumes left it")
    return Step(Action.WAIT)


def reclaimable(guest: Guest, observed: GuestState.ValueType) -> list[tuple[str, str]]:
    """Return pool and name of the volumes that left a guest and that its hypervisor has let go of."""
    waiting = [change.field for change in guest.status.pending] if observed in ALIVE_STATES else []
    return [
        (disk.pool, disk.volume)
        for disk in guest.status.leaving_disks
        if not any(field.startswith(f"disks[{disk.name}]") for field in waiting)
    ]


def _sleeps_no_more(guest: Guest, observed: GuestState.ValueType) -> bool:
    """Return whether the memory of a hibernated guest is to be thrown away: it was woken, or asked to be off."""
    over = observed in ALIVE_STATES or guest.spec.power == POWER_OFF
    return bool(guest.status.hibernation_volume) and over
