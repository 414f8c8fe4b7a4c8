"""Guests and nodes from before a recovery: nothing is started on the word of an old state, and nothing that runs is killed."""

from typing import Any

import pytest
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_UNKNOWN, POWER_OFF, POWER_ON, Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED, NODE_STATE_JOINING, NODE_STATE_ONLINE, Node, NodeState
from gugus.cluster.v1.pool_pb2 import Pool

from common.leases import LeaseTimes
from manager.ha.inherited import Adopt, adoptions, movable, obstacle, unknown_copies
from manager.ha.node_machine import Beat, NodeView, deadline, decide, renews
from manager.ha.recovery import CopyReport, GuestView, Move, Unknown, Wait, recover, stale_copies
from manager.scheduler import GuestRequest
from manager.scheduler import NodeView as Room

FLOOR = 1000
HOUR_NS = 3_600_000_000_000


def guest(node: str = "n1", **status: Any) -> Guest:
    made = Guest()
    made.meta.name, made.meta.uid, made.meta.generation = "web", "u1", FLOOR + 5
    made.spec.power = POWER_ON
    made.spec.disks.add(pool="shared")
    made.status.node, made.status.inherited, made.status.volumes_ready = node, True, True
    for name, value in status.items():
        setattr(made.status, name, value)
    return made


def node(state: NodeState.ValueType = NODE_STATE_ONLINE) -> Node:
    made = Node()
    made.meta.name, made.status.state = "n1", state
    return made


def test_inherited_guest_waits_until_every_host_of_before_is_accounted_for() -> None:
    why = obstacle(guest(), node(), ["n3", "n2"], alive_at_home=False, movable=True)
    assert "n2, n3" in why
    assert "--off" in why
    assert not obstacle(guest(), node(), [], alive_at_home=False, movable=True)
    assert not obstacle(guest(inherited=False), node(), ["n2"], alive_at_home=False, movable=True)


def test_guest_that_runs_at_home_or_could_run_nowhere_else_does_not_wait() -> None:
    assert not obstacle(guest(), node(), ["n2"], alive_at_home=True, movable=True)
    assert not obstacle(guest(), node(), ["n2"], alive_at_home=False, movable=False)
    assert obstacle(guest(), node(NODE_STATE_JOINING), ["n2"], alive_at_home=False, movable=False)


def test_guest_whose_disks_went_with_its_host_says_so() -> None:
    assert "its disks were on n9" in obstacle(guest("n9"), None, [], alive_at_home=False, movable=False)
    assert not obstacle(guest("n9"), None, [], alive_at_home=False, movable=True)


@pytest.mark.parametrize(("shared", "ready", "home", "expected"), [
    (True, True, "n1", True), (False, True, "n1", False), (False, False, "n1", True), (False, True, "", True),
])  # fmt: skip
def test_a_guest_is_movable_with_a_shared_disk_or_before_its_disks_are_known(
    shared: bool, ready: bool, home: str, expected: bool
) -> None:
    pool = Pool()
    pool.spec.dir.shared = shared
    assert movable(guest(home, volumes_ready=ready), {"shared": pool}) is expected


def copy(generation: int = 7, *, running: bool = True, uid: str = "u1", name: str = "web") -> CopyReport:
    return CopyReport(name, generation, running, uid)


def test_guest_is_given_to_the_node_that_runs_it() -> None:
    found = adoptions("n2", [copy()], {"web": guest("n1")}, FLOOR, alive_at_home=())
    assert [(adopt.guest, adopt.node) for adopt in found] == [("web", "n2")]


def test_guest_that_is_off_by_the_state_and_runs_at_home_is_left_running() -> None:
    off = guest("n1")
    off.spec.power = POWER_OFF
    assert adoptions("n1", [copy()], {"web": off}, FLOOR, alive_at_home={"web"})
    assert not adoptions("n1", [copy()], {"web": guest("n1")}, FLOOR, alive_at_home={"web"}), "its start finds it"


def test_guest_that_was_placed_after_the_state_was_taken_stays_where_its_disks_are() -> None:
    (found,) = adoptions("n2", [copy(running=False)], {"web": guest("")}, FLOOR, alive_at_home=())
    assert (found.node, found.running) == ("n2", False)
    assert not stale_copies("n2", [copy(running=False)], {"web": view("")}, FLOOR)


@pytest.mark.parametrize("report", [copy(running=False), copy(uid="u2"), copy(generation=FLOOR + 1), copy(name="db")])
def test_what_is_not_adopted(report: CopyReport) -> None:
    assert not adoptions("n2", [report], {"web": guest("n1")}, FLOOR, alive_at_home=())


def test_second_copy_is_not_adopted() -> None:
    assert adoptions("n2", [copy()], {"web": guest("n1")}, FLOOR, alive_at_home={"web"}) == list[Adopt]()


def view(node: str = "n1", *, inherited: bool = True, ha: bool = True) -> GuestView:
    return GuestView(
        "web",
        node,
        FLOOR + 5,
        GUEST_PHASE_UNKNOWN,
        ha,
        True,
        GuestRequest("web", 1, 1, 1 << 20),
        uid="u1",
        inherited=inherited,
    )


def test_former_copies_are_not_killed_on_the_word_of_an_older_state() -> None:
    guests = {"web": view("n1")}
    assert not stale_copies("n2", [copy()], guests, FLOOR), "it runs; it is to be adopted"
    assert not stale_copies("n2", [copy(name="new", uid="u9")], guests, FLOOR), "made after the backup"
    assert not stale_copies("n2", [copy(name="new", uid="u9", running=False)], guests, FLOOR)
    assert not stale_copies("n2", [copy(uid="u2")], guests, FLOOR), "another guest of that name"
    assert unknown_copies([copy(name="new", uid="u9"), copy()], {"web": guest()}, FLOOR) == [copy(name="new", uid="u9")]


def test_copies_that_this_cluster_knows_better_of_are_stale_as_ever() -> None:
    taken_in = {"web": view("n1", inherited=False)}
    assert stale_copies("n2", [copy()], taken_in, FLOOR)
    assert stale_copies("n2", [copy(running=False)], taken_in, FLOOR)
    assert not stale_copies("n2", [copy(running=False)], {"web": view("n1")}, FLOOR)
    assert stale_copies("n2", [copy(FLOOR + 3, name="gone", uid="u9")], taken_in, FLOOR)


def room(name: str) -> Room:
    return Room(name, True, cpus=8, memory_bytes=8 << 30, kinds=frozenset({1}))


def test_guest_of_a_removed_node_moves_only_when_nobody_else_can_run_it() -> None:
    states = {"n1": NODE_STATE_ONLINE}
    (waits,) = recover([view("n2")], states, [], blocked="n3 may run it")
    assert waits == Wait("web", "n3 may run it")
    (moves,) = recover([view("n2")], states, [room("n1")])
    assert isinstance(moves, Move)
    assert (moves.to_node, moves.generation) == ("n1", FLOOR + 6)


def test_inherited_guest_of_a_node_that_is_lost_again_is_not_moved() -> None:
    (outcome,) = recover([view("n2", ha=False)], {"n2": NODE_STATE_FENCED}, [])
    assert isinstance(outcome, Unknown)
    assert not isinstance(outcome, Move)


def test_node_that_has_not_joined_anew_is_never_fenced_by_time() -> None:
    seen = NodeView("n2", NODE_STATE_JOINING, "boot", 3, takeover_ns=0, off_seen_ns=0)
    assert decide(seen, HOUR_NS, LeaseTimes()) is None
    assert deadline(seen, LeaseTimes()) is None
    assert not renews(seen, HOUR_NS, LeaseTimes())
    beats = NodeView("n2", NODE_STATE_JOINING, "boot", 3, takeover_ns=0, beat=Beat(HOUR_NS, "boot"))
    back = decide(beats, HOUR_NS, LeaseTimes())
    assert back is not None
    assert (back.state, back.raise_epoch) == (NODE_STATE_ONLINE, True)
