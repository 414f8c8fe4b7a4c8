"""What to do next for one guest that is not being recovered: a pure function from what is asked for and what is seen to one step.

Each step is idempotent, and after it the function is asked anew; so a controller that dies between any two steps loses nothing.
"""

from dataclasses import dataclass
from enum import Enum, auto

from gugus.agent.v1.guest_pb2 import (
    GUEST_STATE_PAUSED,
    GUEST_STATE_RUNNING,
    GUEST_STATE_STOPPING,
    GuestState,
)
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_RECOVERING,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STOPPED,
    POWER_ON,
    Guest,
)
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED, NODE_STATE_ONLINE, Node

ALIVE_STATES = frozenset({GUEST_STATE_RUNNING, GUEST_STATE_PAUSED, GUEST_STATE_STOPPING})
"""What an agent says of a guest that has processes."""


class Action(Enum):
    """A step that the guest controller can take."""

    REMOVE = auto()
    """Being deleted: end it on its node, delete its volumes, forget it."""
    PLACE = auto()
    """Choose a node and give it the guest."""
    PROVISION = auto()
    """Make its volumes on its node."""
    START = auto()
    """Define it on its node and start it."""
    STOP = auto()
    """Stop it on its node."""
    DEFINE = auto()
    """Bring the definition on its node up to date, HA included."""
    SETTLE = auto()
    """It is as asked: write down that it runs or is stopped."""
    WAIT = auto()
    """Nothing can be done now; the reason says for what it waits."""


@dataclass(frozen=True, slots=True)
class Step:
    """The next step and why."""

    action: Action
    reason: str = ""


def next_step(guest: Guest, node: Node | None, observed: GuestState.ValueType, held: bool | None = None) -> Step:
    """Return the next step for a guest.

    `node` is the one that the guest is given to, None when there is none; `observed` is what that node's agent says of the guest now;
    `held` whether it says that it holds the guest under HA, None when it does not say.
    """
    status = guest.status
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
    if not status.volumes_ready:
        return Step(Action.PROVISION, "its volumes are to be made")
    return _power_step(guest, observed, held)


def _power_step(guest: Guest, observed: GuestState.ValueType, held: bool | None) -> Step:
    alive = observed in ALIVE_STATES
    wanted = guest.spec.power == POWER_ON
    if wanted and not alive:
        return Step(Action.START, "it is to run")
    if not wanted and alive:
        return Step(Action.STOP, "it is not to run")
    if guest.status.ha_armed != guest.spec.ha.enabled:
        return Step(Action.DEFINE, "its HA setting changed")
    if held is not None and held != guest.spec.ha.enabled:
        return Step(Action.DEFINE, "its node holds it otherwise than its HA setting says")
    settled = GUEST_PHASE_RUNNING if wanted else GUEST_PHASE_STOPPED
    if guest.status.phase != settled or guest.status.observed != observed:
        return Step(Action.SETTLE)
    return Step(Action.WAIT)
