"""What is to be done next for a guest: every row of the table, and that following it always comes to rest."""

from dataclasses import dataclass

import pytest
from gugus.agent.v1.guest_pb2 import (
    GUEST_END_CRASH,
    GUEST_END_POWEROFF,
    GUEST_END_UNSPECIFIED,
    GUEST_STATE_CRASHED,
    GUEST_STATE_PAUSED,
    GUEST_STATE_RUNNING,
    GUEST_STATE_STOPPED,
    GUEST_STATE_STOPPING,
    GUEST_STATE_UNSPECIFIED,
    GuestEnd,
    GuestState,
    PendingChange,
)
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_CREATING,
    GUEST_PHASE_ERROR,
    GUEST_PHASE_HIBERNATED,
    GUEST_PHASE_PAUSED,
    GUEST_PHASE_PENDING,
    GUEST_PHASE_RECOVERING,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STARTING,
    GUEST_PHASE_STOPPED,
    GUEST_PHASE_STOPPING,
    GUEST_PHASE_UNKNOWN,
    POWER_HIBERNATED,
    POWER_OFF,
    POWER_ON,
    POWER_PAUSED,
    DiskSpec,
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

from manager.controllers.guest_step import Action, next_step, reclaimable, settled_phase

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
    ended: GuestEnd.ValueType = GUEST_END_UNSPECIFIED
    spec_number: int = 1
    applied: int = 1
    template: bool = False
    locked: bool = False
    migrating: bool = False
    memory: str = ""
    leaving: bool = False
    boot: str = ""

    def guest(self) -> Guest:
        guest = Guest()
        guest.meta.name, guest.meta.deleting = "web", self.deleting
        guest.spec.power, guest.spec.ha.enabled = self.power, self.ha
        guest.status.phase, guest.status.observed = self.phase, self.noted
        guest.status.volumes_ready, guest.status.ha_armed = self.volumes, self.armed
        guest.status.node = "" if self.node is None else "n1"
        guest.spec_number, guest.status.applied_spec_number = self.spec_number, self.applied
        guest.spec.template, guest.status.hibernation_volume, guest.status.boot_id = (
            self.template,
            self.memory,
            self.boot,
        )
        if self.locked:
            guest.status.lock.task = "snapshot"
        if self.migrating:
            guest.status.migration.target = "n2"
        if self.leaving:
            guest.status.leaving_disks.add(name="data", pool="p", volume="v")
        return guest

    def action(self) -> Action:
        node = None
        if self.node is not None:
            node = Node()
            node.meta.name, node.status.state, node.status.reason = "n1", self.node, "for a reason"
            node.status.boot_id = "boot-2"
        return next_step(self.guest(), node, self.seen, self.held, self.ended).action


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
    "guest that an operation works on is left alone": (running(seen=STOPPED, locked=True), Action.WAIT),
    "new guest that an operation fills is left alone": (Case(node=None, locked=True), Action.WAIT),
    "deleted guest that an operation works on is left alone": (Case(deleting=True, locked=True), Action.WAIT),
    "guest whose migration is not settled is left alone": (running(seen=STOPPED, migrating=True), Action.WAIT),
    "template is never started": (Case(power=ON, template=True), Action.WAIT),
    "template that runs is stopped": (running(template=True), Action.STOP),
    "guest that shut itself down stays down": (running(seen=STOPPED, ended=GUEST_END_POWEROFF), Action.END),
    "guest under HA that shut itself down is started again": (
        running(seen=STOPPED, ended=GUEST_END_POWEROFF, ha=True, armed=True),
        Action.START,
    ),
    "guest that was started and did not come up is started again, however it ended before": (
        running(seen=STOPPED, ended=GUEST_END_POWEROFF, phase=GUEST_PHASE_STARTING),
        Action.START,
    ),
    "held guest that crashed is started again": (
        running(power=POWER_PAUSED, seen=STOPPED, phase=GUEST_PHASE_PAUSED, ended=GUEST_END_CRASH),
        Action.START,
    ),
    "running guest is held": (running(power=POWER_PAUSED), Action.SUSPEND),
    "stopped guest is started to be held": (Case(power=POWER_PAUSED), Action.START),
    "held guest is written down": (running(power=POWER_PAUSED, seen=PAUSED), Action.SETTLE),
    "held guest rests": (
        running(power=POWER_PAUSED, seen=PAUSED, noted=PAUSED, phase=GUEST_PHASE_PAUSED),
        Action.WAIT,
    ),
    "held guest goes on": (running(seen=PAUSED, noted=PAUSED, phase=GUEST_PHASE_PAUSED), Action.RESUME),
    "held guest is stopped": (running(power=OFF, seen=PAUSED, phase=GUEST_PHASE_PAUSED), Action.STOP),
    "hibernated guest rests": (
        Case(power=POWER_HIBERNATED, phase=GUEST_PHASE_HIBERNATED, memory="m"),
        Action.WAIT,
    ),
    "memory of a guest that was woken is thrown away": (running(memory="m"), Action.SETTLE),
    "hibernated guest is woken": (Case(power=ON, phase=GUEST_PHASE_HIBERNATED, memory="m"), Action.START),
    "memory of a guest that is to be off is thrown away": (Case(memory="m"), Action.SETTLE),
    "changed spec is brought to a running guest": (running(applied=0), Action.APPLY),
    "changed spec is brought to a stopped guest": (Case(applied=0), Action.APPLY),
    "what is to run is started with its changed spec": (running(seen=STOPPED, applied=0), Action.START),
    "what is not to run is stopped before it is changed": (running(power=OFF, applied=0), Action.STOP),
    "what stopped is written down before it is changed": (Case(phase=GUEST_PHASE_STOPPING, applied=0), Action.SETTLE),
    "volume that left is deleted": (running(leaving=True), Action.RECLAIM),
    "volume that left is deleted after the spec is brought": (running(leaving=True, applied=0), Action.APPLY),
    "boot of the host is looked at once": (running(seen=STOPPED, boot="boot-1"), Action.BOOTED),
    "boot that was looked at is over": (running(seen=STOPPED, boot="boot-2"), Action.START),
    "guest that has just come knows of no boot": (
        Case(power=ON, phase=GUEST_PHASE_CREATING, boot="boot-1"),
        Action.START,
    ),
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


def test_volume_of_a_disk_that_its_guest_holds_on_to_is_not_deleted() -> None:
    guest = Case(leaving=True).guest()
    guest.status.leaving_disks.append(DiskSpec(name="other", pool="p", volume="w"))
    guest.status.pending.append(PendingChange(field="disks[data]"))
    assert reclaimable(guest, RUNS) == [("p", "w")]
    assert reclaimable(guest, STOPPED) == [("p", "v"), ("p", "w")]


@settings(deadline=None)
@given(
    power=st.sampled_from([ON, OFF, POWER_PAUSED]),
    phase=st.sampled_from([p for p in GuestPhase.values() if p != GUEST_PHASE_RECOVERING]),
    seen=st.sampled_from(GuestState.values()),
    noted=st.sampled_from(GuestState.values()),
    placed=st.booleans(),
    volumes=st.booleans(),
    ha=st.booleans(),
    armed=st.booleans(),
    held=st.sampled_from([True, False, None]),
    applied=st.booleans(),
    leaving=st.booleans(),
    memory=st.sampled_from(["", "m"]),
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
    applied: bool,
    leaving: bool,
    memory: str,
) -> None:
    case = Case(
        power=power, phase=phase, noted=noted, volumes=volumes, ha=ha, armed=armed, leaving=leaving, memory=memory
    )
    guest = case.guest()
    guest.status.applied_spec_number = int(applied)
    node = Node()
    node.status.state = NODE_STATE_ONLINE
    for _ in range(16):
        match next_step(guest, node if placed else None, seen, held).action:
            case Action.WAIT:
                break
            case Action.PLACE:
                placed, guest.status.ha_armed = True, guest.spec.ha.enabled
            case Action.PROVISION:
                guest.status.volumes_ready = True
            case Action.START:
                seen = RUNS
                guest.status.applied_spec_number, guest.status.hibernation_volume = 1, ""
            case Action.SUSPEND:
                seen = PAUSED
            case Action.RESUME:
                seen = RUNS
            case Action.APPLY:
                guest.status.applied_spec_number = 1
            case Action.RECLAIM:
                del guest.status.leaving_disks[:]
            case Action.STOP:
                seen = STOPPED
            case Action.DEFINE:
                guest.status.ha_armed, held = guest.spec.ha.enabled, None if held is None else guest.spec.ha.enabled
            case Action.SETTLE:
                guest.status.phase = settled_phase(guest, seen)
                guest.status.observed = seen
                if power == OFF or seen in (RUNS, PAUSED, ENDING):
                    guest.status.hibernation_volume = ""
            case other:
                pytest.fail(f"{other} was not asked for")
    else:
        pytest.fail("it never comes to rest")
    assert placed
    assert guest.status.volumes_ready
    assert guest.status.ha_armed == ha
    assert held in (None, ha)
    assert guest.status.phase == settled_phase(guest, seen)
    assert (seen in (RUNS, PAUSED, ENDING)) == (power != OFF)
    assert guest.status.applied_spec_number == guest.spec_number
    assert not guest.status.leaving_disks
    assert power != OFF or not guest.status.hibernation_volume
