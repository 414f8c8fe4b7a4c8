"""What comes next for a host of a rolling reboot: a table, and what ends it all."""

import pytest
from gugus.agent.v1.guest_pb2 import GUEST_KIND_VIRTUAL_MACHINE
from gugus.agent.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_FAILED,
    TASK_STATE_RUNNING,
    TASK_STATE_SUCCEEDED,
)
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, POWER_ON, Guest
from gugus.cluster.v1.node_pb2 import (
    NODE_STATE_FENCED,
    NODE_STATE_ONLINE,
    REBOOT_STEP_DONE,
    REBOOT_STEP_DRAIN,
    REBOOT_STEP_FAILED,
    REBOOT_STEP_REBOOT,
    REBOOT_STEP_SKIPPED,
    REBOOT_STEP_UNSPECIFIED,
    Node,
    NodeReboot,
    RebootStep,
    RollingReboot,
)

from common.errors import GugusError
from common.leases import LeaseTimes
from manager.ha import rolling_steps as steps
from manager.ha.rolling_steps import Work
from manager.scheduler.what_if import Stored
from planner.settings import Settings


def notes(**of: RebootStep.ValueType) -> RollingReboot:
    return RollingReboot(nodes=[NodeReboot(node=name, step=step) for name, step in of.items()])


def node(name: str, state: int = NODE_STATE_ONLINE) -> Node:
    made = Node()
    made.meta.name = name
    made.status.state, made.status.reason = state, "as it is"  # type: ignore[assignment]
    made.status.facts.cpus, made.status.facts.memory_allocatable_bytes = 4, 4 << 30
    made.status.facts.hypervisors.add(ready=True, kinds=[GUEST_KIND_VIRTUAL_MACHINE])
    return made


def guest(name: str, on: str, memory_gib: int) -> Guest:
    made = Guest()
    made.meta.name = made.meta.uid = name
    made.spec.kind, made.spec.power, made.spec.cpus = GUEST_KIND_VIRTUAL_MACHINE, POWER_ON, 1
    made.spec.memory_bytes = memory_gib << 30
    made.status.node, made.status.phase = on, GUEST_PHASE_RUNNING
    return made


def stored(*guests: Guest) -> Stored:
    return Stored([node("n1"), node("n2")], guests, (), Settings(), LeaseTimes())


@pytest.mark.parametrize(
    ("drain", "left", "cancelled", "step"),
    [
        (Work(TASK_STATE_RUNNING), ["web"], False, None),
        (Work(TASK_STATE_RUNNING), ["web"], True, None),
        (Work(TASK_STATE_SUCCEEDED), [], False, REBOOT_STEP_REBOOT),
        (Work(TASK_STATE_SUCCEEDED), [], True, REBOOT_STEP_REBOOT),
        (Work(TASK_STATE_FAILED, "it is bound"), [], False, REBOOT_STEP_REBOOT),  # what is left does not run
        (Work(TASK_STATE_CANCELLED), ["web"], True, REBOOT_STEP_UNSPECIFIED),
    ],
)
def test_after_a_host_was_emptied(
    drain: Work, left: list[str], cancelled: bool, step: RebootStep.ValueType | None
) -> None:
    assert steps.after_drain("n1", drain, left, cancelled=cancelled) == step


@pytest.mark.parametrize(
    ("drain", "why"),
    [
        (Work(TASK_STATE_FAILED, "web is bound"), "n1 could not be emptied: web is bound"),
        (Work(TASK_STATE_CANCELLED), "n1 could not be emptied: it was cancelled"),
        (None, "n1 could not be emptied: it was cancelled"),
    ],
)
def test_a_host_that_cannot_be_emptied_is_not_rebooted(drain: Work | None, why: str) -> None:
    with pytest.raises(GugusError, match=why) as caught:
        steps.after_drain("n1", drain, ["web"], cancelled=False)
    assert caught.value.reason == "GUESTS_LEFT"


def test_a_host_gets_its_guests_back_before_the_next_one() -> None:
    assert steps.after_restore("n1", Work(TASK_STATE_RUNNING)) is None
    assert steps.after_restore("n1", Work(TASK_STATE_SUCCEEDED)) == REBOOT_STEP_DONE
    assert steps.after_restore("n1", None) == REBOOT_STEP_DONE
    with pytest.raises(GugusError, match="n1 was rebooted, but 1 guest is not back"):
        steps.after_restore("n1", Work(TASK_STATE_FAILED, "1 guest is not back"))


def test_a_host_is_waited_for_but_not_for_ever() -> None:
    one = NodeReboot(node="n1", step=REBOOT_STEP_REBOOT, boot_id="old")
    assert steps.awaited(one, None, follows=True) == "it was removed"
    there = node("n1")
    there.status.boot_id = there.status.facts.boot_id = "new"
    assert steps.awaited(one, there, follows=False) == "its manager has not caught up yet"
    assert not steps.awaited(one, there, follows=True)
    steps.require_in_time(one, "it is off", 899_999, 0)
    with pytest.raises(GugusError, match="n1 is not back 900 s after it was to reboot: it is off"):
        steps.require_in_time(one, "it is off", 900_001, 0)
    with pytest.raises(GugusError, match="60 s"):
        steps.require_in_time(one, "it is off", 60_001, 60_000)


def test_a_host_is_left_alone_that_the_cluster_cannot_do_without() -> None:
    little, much = stored(guest("web", "n1", 1)), stored(guest("web", "n1", 3), guest("db", "n2", 3))
    steps.require_spare("n1", node("n1"), notes(n1=REBOOT_STEP_UNSPECIFIED), "", little)
    for there, no_majority, look, reason, why in (
        (node("n1", NODE_STATE_FENCED), "", little, "NODE_NOT_ONLINE", "n1 is not online: as it is"),
        (None, "", little, "NODE_NOT_ONLINE", "n1 is not online: it was removed"),
        (node("n1"), "of 3 managers 1 would be left", little, "CANNOT_SPARE", "1 would be left"),
        (node("n1"), "", much, "CANNOT_SPARE", "the others have no place for web"),
    ):
        with pytest.raises(GugusError, match=why) as caught:
            steps.require_spare("n1", there, notes(n1=REBOOT_STEP_UNSPECIFIED), no_majority, look)
        assert caught.value.reason == reason
        assert caught.value.remedy


def test_hosts_that_are_down_at_the_same_time_are_reckoned_with_together() -> None:
    nodes, guests = [node("n1"), node("n2"), node("n3")], [guest("a", "n1", 3), guest("b", "n2", 3)]
    three = Stored(nodes, guests, (), Settings(), LeaseTimes())
    steps.require_spare("n1", node("n1"), notes(n1=REBOOT_STEP_UNSPECIFIED, n2=REBOOT_STEP_DONE), "", three)
    with pytest.raises(GugusError, match="no place for"):
        steps.require_spare("n1", node("n1"), notes(n1=REBOOT_STEP_UNSPECIFIED, n2=REBOOT_STEP_DRAIN), "", three)


def test_a_majority_of_managers_stays() -> None:
    assert not steps.majority_without(["a", "b", "c"], ["a", "b", "c"], "a")
    assert "of 3 managers 1 would be left" in steps.majority_without(["a", "b", "c"], ["a", "b"], "a")
    assert "of 1 managers 0 would be left" in steps.majority_without(["a"], ["a"], "a")


def test_how_it_ends() -> None:
    done, open_, failed = REBOOT_STEP_DONE, REBOOT_STEP_UNSPECIFIED, REBOOT_STEP_FAILED
    assert steps.outcome(notes(a=done, b=open_), cancelled=False) is None
    assert steps.outcome(notes(a=done, b=REBOOT_STEP_DRAIN), cancelled=True) is None
    assert steps.outcome(notes(a=failed, b=REBOOT_STEP_REBOOT), cancelled=False) is None
    assert steps.outcome(notes(a=done, b=open_), cancelled=True) == TASK_STATE_CANCELLED
    assert steps.outcome(notes(a=done, b=failed, c=open_), cancelled=False) == TASK_STATE_FAILED
    assert steps.outcome(notes(a=done, b=REBOOT_STEP_SKIPPED), cancelled=False) == TASK_STATE_SUCCEEDED
    some = notes(a=done, b=failed)
    some.nodes[1].reason = "it is bound"
    assert steps.told(some, TASK_STATE_FAILED) == "stopped at b (rebooted a): it is bound"
    assert steps.told(notes(a=open_), TASK_STATE_CANCELLED) == "cancelled; rebooted no host"
    assert steps.told(notes(a=done, b=done), TASK_STATE_SUCCEEDED) == "rebooted a, b"
