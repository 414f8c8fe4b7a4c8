"""Hosts that go down in order, as pure functions: what a policy means, whom a freeze holds, and what recovery makes of it."""

import pytest
from gugus.cluster.v1.cluster_pb2 import (
    SHUTDOWN_POLICY_CONDITIONAL,
    SHUTDOWN_POLICY_FAIL_OVER,
    SHUTDOWN_POLICY_FREEZE,
    SHUTDOWN_POLICY_MIGRATE,
    SHUTDOWN_POLICY_UNSPECIFIED,
    ClusterSettings,
)
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RECOVERING, GUEST_PHASE_RUNNING
from gugus.cluster.v1.heartbeat_pb2 import HeartbeatRequest
from gugus.cluster.v1.node_pb2 import (
    HOST_EXIT_POWER_OFF,
    HOST_EXIT_REBOOT,
    NODE_STATE_FENCED,
    NODE_STATE_FENCING,
    NODE_STATE_ONLINE,
    NODE_STATE_SUSPECT,
    Node,
    NodeStatus,
)

from manager.ha import departure
from manager.ha.guest_machine import Event
from manager.ha.recovery import GuestView, Move, Wait, recover
from manager.scheduler import GuestRequest, NodeView
from manager.store.kinds import new

SETTINGS = ClusterSettings()
REBOOT = HeartbeatRequest(node="n1", boot_id="b1", exit=HOST_EXIT_REBOOT)


def node(state: int = NODE_STATE_ONLINE) -> Node:
    made = new(Node, "n1")
    made.status.CopyFrom(NodeStatus(state=state, boot_id="b1"))  # type: ignore[arg-type]
    return made


def left(state: int = NODE_STATE_ONLINE, beat: HeartbeatRequest = REBOOT, settings: ClusterSettings = SETTINGS) -> Node:
    """A node that said that its host goes down, at the second 100."""
    made = node()
    begun = departure.begun(made, beat, settings)
    assert begun is not None
    made.status.departure.CopyFrom(begun)
    made.status.departure.at.FromSeconds(100)
    made.status.state = state  # type: ignore[assignment]
    return made


@pytest.mark.parametrize(
    ("wanted", "reboot", "off"),
    [
        (SHUTDOWN_POLICY_UNSPECIFIED, SHUTDOWN_POLICY_FREEZE, SHUTDOWN_POLICY_FAIL_OVER),
        (SHUTDOWN_POLICY_CONDITIONAL, SHUTDOWN_POLICY_FREEZE, SHUTDOWN_POLICY_FAIL_OVER),
        (SHUTDOWN_POLICY_FREEZE, SHUTDOWN_POLICY_FREEZE, SHUTDOWN_POLICY_FREEZE),
        (SHUTDOWN_POLICY_FAIL_OVER, SHUTDOWN_POLICY_FAIL_OVER, SHUTDOWN_POLICY_FAIL_OVER),
        (SHUTDOWN_POLICY_MIGRATE, SHUTDOWN_POLICY_MIGRATE, SHUTDOWN_POLICY_MIGRATE),
    ],
)
def test_what_a_policy_means(wanted: int, reboot: int, off: int) -> None:
    assert departure.resolved(wanted, HOST_EXIT_REBOOT) == reboot  # type: ignore[arg-type]
    assert departure.resolved(wanted, HOST_EXIT_POWER_OFF) == off  # type: ignore[arg-type]


def test_a_departure_begins_once_and_with_the_boot_that_holds_the_lease() -> None:
    assert departure.begun(node(), REBOOT, SETTINGS) is not None
    assert departure.begun(left(), REBOOT, SETTINGS) is None
    assert departure.begun(node(), HeartbeatRequest(boot_id="b1"), SETTINGS) is None
    assert departure.begun(node(), HeartbeatRequest(boot_id="b0", exit=HOST_EXIT_REBOOT), SETTINGS) is None
    assert departure.begun(node(), None, SETTINGS) is None
    for state in (NODE_STATE_SUSPECT, NODE_STATE_FENCING, NODE_STATE_FENCED):
        assert departure.begun(node(state), REBOOT, SETTINGS) is None


def test_a_host_is_answered_what_was_written_down_for_its_boot() -> None:
    assert departure.answer(node(), REBOOT) == SHUTDOWN_POLICY_UNSPECIFIED
    assert departure.answer(left(), REBOOT) == SHUTDOWN_POLICY_FREEZE
    assert departure.answer(left(), HeartbeatRequest(boot_id="b1")) == SHUTDOWN_POLICY_UNSPECIFIED
    assert (
        departure.answer(left(), HeartbeatRequest(boot_id="b2", exit=HOST_EXIT_REBOOT)) == SHUTDOWN_POLICY_UNSPECIFIED
    )


def test_it_is_called_off_when_the_same_boot_says_nothing_of_it_any_more() -> None:
    assert departure.called_off(left(), HeartbeatRequest(boot_id="b1"))
    assert not departure.called_off(left(), REBOOT)
    assert not departure.called_off(left(), HeartbeatRequest(boot_id="b0"))
    assert not departure.called_off(node(), HeartbeatRequest(boot_id="b1"))


def test_who_goes_down_gets_nothing_new_until_it_is_back() -> None:
    gone = left()
    assert departure.leaving(gone)
    assert departure.shutting_down(gone)
    assert not departure.shutting_down(left(settings=ClusterSettings(shutdown=SHUTDOWN_POLICY_MIGRATE)))
    gone.status.boot_id = "b2"
    departure.settle_return(gone)
    assert not departure.leaving(gone)
    assert not gone.status.HasField("departure")


def test_what_moved_away_is_to_come_back() -> None:
    gone = left(settings=ClusterSettings(shutdown=SHUTDOWN_POLICY_MIGRATE))
    gone.status.departure.task = "t"
    assert not departure.is_back(gone)
    departure.settle_return(gone)
    assert not departure.is_back(gone), "it has not told yet what it has"
    gone.status.facts.boot_id = "b1"
    assert departure.is_back(gone)
    gone.status.state = NODE_STATE_FENCED
    assert not departure.is_back(gone)


def test_a_freeze_lasts_so_long() -> None:
    gone = left(NODE_STATE_FENCED)
    assert departure.freezes(gone, 699.0, SETTINGS)
    assert not departure.freezes(gone, 700.0, SETTINGS)
    assert not departure.freezes(gone, 161.0, ClusterSettings(freeze_ms=60_000))
    assert not departure.freezes(left(), 101.0, SETTINGS), "not before it is proven dead"
    off = HeartbeatRequest(node="n1", boot_id="b1", exit=HOST_EXIT_POWER_OFF)
    assert not departure.freezes(left(NODE_STATE_FENCED, off), 101.0, SETTINGS)


# What recovery makes of it


def waiting(phase: int = GUEST_PHASE_RECOVERING, *, awaits: bool = True, memory: int = 1) -> GuestView:
    request = GuestRequest("web", 1, 1, memory, node="n1")
    return GuestView("web", "n1", 3, phase, True, True, request, awaits_node=awaits)  # type: ignore[arg-type]


def rooms(home: bool) -> list[NodeView]:
    return [
        NodeView(name, online, cpus=4, memory_bytes=8, kinds=frozenset({1}))
        for name, online in (("n1", home), ("n2", True))
    ]


def test_it_waits_while_its_node_is_down_and_is_given_back_to_it() -> None:
    [wait] = recover([waiting(GUEST_PHASE_RUNNING)], {"n1": NODE_STATE_FENCED}, rooms(False))
    assert isinstance(wait, Wait)
    assert wait.event is Event.FREEZE
    [move] = recover([waiting()], {"n1": NODE_STATE_ONLINE}, rooms(True))
    assert isinstance(move, Move)
    assert (move.to_node, move.generation, move.thaw) == ("n1", 4, True)


def test_a_node_that_is_not_ready_yet_is_waited_for() -> None:
    [wait] = recover([waiting(memory=9)], {"n1": NODE_STATE_ONLINE}, rooms(True))
    assert isinstance(wait, Wait)
    assert wait.event is None
    assert "n1 is back" in wait.reason


def test_nothing_is_frozen_before_it_is_proven_that_it_runs_nowhere() -> None:
    [wait] = recover([waiting(GUEST_PHASE_RUNNING)], {"n1": NODE_STATE_FENCING}, rooms(False))
    assert isinstance(wait, Wait)
    assert wait.event is Event.LOSE


def test_who_waits_no_longer_goes_where_there_is_room() -> None:
    [move] = recover([waiting(awaits=False)], {"n1": NODE_STATE_FENCED}, rooms(False))
    assert isinstance(move, Move)
    assert (move.to_node, move.thaw) == ("n2", False)
