"""What is to be done next for a guest: every row of the table, and that following it always comes to rest."""

from dataclasses import dataclass

import pytest
from gugus.agent.v1.guest_pb2 import (
    GUEST_STATE_CRASHED,
    GUEST_STATE_PAUSED,
    GUEST_STATE_RUNNING,
    GUEST_STATE_STOPPED,
    GUEST_STATE_STOPPING,
    GUEST_STATE_UNSPECIFIED,
    GuestState,
)
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_CREATING,
    GUEST_PHASE_ERROR,
    GUEST_PHASE_PENDING,
    GUEST_PHASE_RECOVERING,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STARTING,
    GUEST_PHASE_STOPPED,
    GUEST_PHASE_STOPPING,
    GUEST_PHASE_UNKNOWN,
    POWER_OFF,
    POWER_ON,
    Guest,
    GuestPhase,
    Power,
)
from gugus.cluster.v1.node_pb2 import (
    NODE_STATE_FENCED,
    NODE_STATE_FENCING,
    NODE_STATE_JOINING,
    NODE_STATE_ONLINE,
    NODE_STATE_SUSPECT,
    Node,
    NodeState,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.controllers.guest_step import Action, next_step

ON, OFF = POWER_ON, POWER_OFF
RUNS, STOPPED, PAUSED, ENDING = GUEST_STATE_RUNNING, GUEST_STATE_STOPPED, GUEST_STATE_PAUSED, GUEST_STATE_STOPPING
AWAY = (NODE_STATE_JOINING, NODE_STATE_SUSPECT, NODE_STATE_FENCING, NODE_STATE_FENCED)


@dataclass(frozen=True)
class Case:
    """A guest on a node that is online, defined, with its volumes, stopped as was asked; and what differs from that."""

    node: NodeState.ValueType | None = NODE_STATE_ONLINE
    power: Power.ValueType = OFF
    seen: GuestState.ValueType = STOPPED
    phase: GuestPhase.ValueType = GUEST_PHASE_STOPPED
    noted: GuestState.ValueType = STOPPED
    volumes: bool = True
    ha: bool = False
    armed: bool = False
    held: bool | None = None
    deleting: bool = False

    def guest(self) -> Guest:
        guest = Guest()
        guest.meta.name, guest.meta.deleting = "web", self.deleting
        guest.spec.power, guest.spec.ha.enabled = self.power, self.ha
        guest.status.phase, guest.status.observed = self.phase, self.noted
        guest.status.volumes_ready, guest.status.ha_armed = self.volumes, self.armed
        guest.status.node = "" if self.node is None else "n1"
        return guest

    def action(self) -> Action:
        node = None
        if self.node is not None:
            node = Node()
            node.meta.name, node.status.state, node.status.reason = "n1", self.node, "for a reason"
        return next_step(self.guest(), node, self.seen, self.held).action


def running(**differs: object) -> Case:
    """A guest that runs as was asked."""
    settled = {"power": ON, "seen": RUNS, "phase": GUEST_PHASE_RUNNING, "noted": RUNS}
    return Case(**settled | differs)  # type: ignore[arg-type]


TABLE = {
    "new guest is placed": (Case(node=None, power=ON, phase=GUEST_PHASE_PENDING, volumes=False), Action.PLACE),
    "new guest that is not to run is placed, too": (Case(node=None, volumes=False), Action.PLACE),
    "placed guest gets its volumes": (Case(power=ON, phase=GUEST_PHASE_CREATING, volumes=False), Action.PROVISION),
    "guest without volumes is not started": (running(seen=STOPPED, volumes=False), Action.PROVISION),
    "guest with volumes is started": (Case(power=ON, phase=GUEST_PHASE_CREATING), Action.START),
    "guest that ended is started again": (running(seen=STOPPED), Action.START),
    "guest that crashed is started again": (running(seen=GUEST_STATE_CRASHED), Action.START),
    "start that failed is tried again": (running(seen=STOPPED, phase=GUEST_PHASE_ERROR), Action.START),
    "start that was begun goes on": (running(seen=STOPPED, phase=GUEST_PHASE_STARTING), Action.START),
    "start that succeeded is written down": (running(phase=GUEST_PHASE_STARTING), Action.SETTLE),
    "guest that runs rests": (running(), Action.WAIT),
    "guest of unknown phase that runs is written down": (running(phase=GUEST_PHASE_UNKNOWN), Action.SETTLE),
    "paused guest counts as running": (running(seen=PAUSED), Action.SETTLE),
    "paused guest that is known to be rests": (running(seen=PAUSED, noted=PAUSED), Action.WAIT),
    "guest that was made for later is written down as stopped": (Case(phase=GUEST_PHASE_CREATING), Action.SETTLE),
    "stopped guest rests": (Case(), Action.WAIT),
    "guest that crashed and is not to run is noted": (Case(seen=GUEST_STATE_CRASHED), Action.SETTLE),
    "running guest is stopped": (running(power=OFF), Action.STOP),
    "paused guest is stopped": (running(power=OFF, seen=PAUSED), Action.STOP),
    "stop that was begun goes on": (running(power=OFF, seen=ENDING, phase=GUEST_PHASE_STOPPING), Action.STOP),
    "stop that succeeded is written down": (Case(phase=GUEST_PHASE_STOPPING), Action.SETTLE),
    "guest that shuts down and is to run is waited for": (running(seen=ENDING, noted=ENDING), Action.WAIT),
    "running guest is put under HA": (running(ha=True), Action.DEFINE),
    "running guest is taken out of HA": (running(armed=True), Action.DEFINE),
    "stopped guest is put under HA": (Case(ha=True), Action.DEFINE),
    "guest is started before its HA is changed": (running(seen=STOPPED, ha=True), Action.START),
    "guest is stopped before its HA is changed": (running(power=OFF, ha=True), Action.STOP),
    "guest that its node does not hold under HA is told again": (
        running(ha=True, armed=True, held=False),
        Action.DEFINE,
    ),
    "guest that its node still holds under HA is told again": (running(held=True), Action.DEFINE),
    "guest that its node holds under HA rests": (running(ha=True, armed=True, held=True), Action.WAIT),
    "guest under HA rests": (running(ha=True, armed=True), Action.WAIT),
    "guest that is being recovered is left to the recovery": (running(phase=GUEST_PHASE_RECOVERING), Action.WAIT),
    "deleted guest is removed": (Case(deleting=True), Action.REMOVE),
    "deleted guest is removed while it runs": (running(deleting=True), Action.REMOVE),
    "deleted guest gets no volumes": (Case(volumes=False, deleting=True), Action.REMOVE),
    "deleted guest is not placed": (Case(node=None, deleting=True), Action.REMOVE),
    "deleted guest of a lost node is removed": (Case(node=NODE_STATE_FENCED, deleting=True), Action.REMOVE),
    "deleted guest of a node that may come back waits": (Case(node=NODE_STATE_SUSPECT, deleting=True), Action.WAIT),
}


@pytest.mark.parametrize(("case", "action"), TABLE.values(), ids=TABLE)
def test_next_step_for_a(case: Case, action: Action) -> None:
    assert case.action() is action


@pytest.mark.parametrize("state", AWAY)
@pytest.mark.parametrize("power", [ON, OFF])
@pytest.mark.parametrize("seen", [RUNS, STOPPED, GUEST_STATE_UNSPECIFIED])
def test_nothing_is_done_on_a_node_that_is_not_online(
    state: NodeState.ValueType, power: Power.ValueType, seen: GuestState.ValueType
) -> None:
    assert Case(node=state, power=power, seen=seen, volumes=False).action() is Action.WAIT


def test_step_that_waits_for_a_node_says_for_which_and_why() -> None:
    node = Node()
    node.meta.name, node.status.state, node.status.reason = "n1", NODE_STATE_SUSPECT, "no heartbeat for 3 s"
    step = next_step(Case().guest(), node, STOPPED)
    assert "n1" in step.reason
    assert "no heartbeat for 3 s" in step.reason


@settings(deadline=None)
@given(
    power=st.sampled_from([ON, OFF]),
    phase=st.sampled_from([p for p in GuestPhase.values() if p != GUEST_PHASE_RECOVERING]),
    seen=st.sampled_from(GuestState.values()),
    noted=st.sampled_from(GuestState.values()),
    placed=st.booleans(),
    volumes=st.booleans(),
    ha=st.booleans(),
    armed=st.booleans(),
    held=st.sampled_from([True, False, None]),
)
def test_steps_that_succeed_come_to_rest_at_what_was_asked_for(
    power: Power.ValueType,
    phase: GuestPhase.ValueType,
    seen: GuestState.ValueType,
    noted: GuestState.ValueType,
    placed: bool,
    volumes: bool,
    ha: bool,
    armed: bool,
    held: bool | None,
) -> None:
    guest = Case(power=power, phase=phase, noted=noted, volumes=volumes, ha=ha, armed=armed).guest()
    node = Node()
    node.status.state = NODE_STATE_ONLINE
    for _ in range(8):
        match next_step(guest, node if placed else None, seen, held).action:
            case Action.WAIT:
                break
            case Action.PLACE:
                placed, guest.status.ha_armed = True, guest.spec.ha.enabled
            case Action.PROVISION:
                guest.status.volumes_ready = True
            case Action.START:
                seen = RUNS
            case Action.STOP:
                seen = STOPPED
            case Action.DEFINE:
                guest.status.ha_armed, held = guest.spec.ha.enabled, None if held is None else guest.spec.ha.enabled
            case Action.SETTLE:
                guest.status.phase = GUEST_PHASE_RUNNING if power == ON else GUEST_PHASE_STOPPED
                guest.status.observed = seen
            case other:
                pytest.fail(f"{other} was not asked for")
    else:
        pytest.fail("it never comes to rest")
    assert placed
    assert guest.status.volumes_ready
    assert guest.status.ha_armed == ha
    assert held in (None, ha)
    assert guest.status.phase == (GUEST_PHASE_RUNNING if power == ON else GUEST_PHASE_STOPPED)
