from dataclasses import replace

import pytest
from gugus.cluster.v1.node_pb2 import (
    NODE_STATE_FENCED,
    NODE_STATE_FENCING,
    NODE_STATE_JOINING,
    NODE_STATE_ONLINE,
    NODE_STATE_SUSPECT,
)
from hypothesis import given
from hypothesis import strategies as st

from common.leases import LeaseTimes, holder_deadline_ns, safe_after_ns
from manager.ha.node_machine import Beat, NodeDecision, NodeView, deadline, decide, lease_over_ns, renews

S = 1_000_000_000
TIMES = LeaseTimes()
STATES = [NODE_STATE_JOINING, NODE_STATE_ONLINE, NODE_STATE_SUSPECT, NODE_STATE_FENCING, NODE_STATE_FENCED]


def view(state: int, **changes: object) -> NodeView:
    made = NodeView("n1", state, "boot-1", 4, takeover_ns=0, answered_ns=0, beat=Beat(0, "boot-1"))  # type: ignore[arg-type]
    return replace(made, **changes)  # type: ignore[arg-type]


def due(v: NodeView, now_ns: int) -> NodeDecision:
    decision = decide(v, now_ns, TIMES)
    assert decision is not None
    return decision


def test_a_new_node_is_online_with_its_first_beat() -> None:
    joining = view(NODE_STATE_JOINING, boot_id="", lapse_number=0, answered_ns=None)
    assert decide(replace(joining, beat=None), S, TIMES) is None
    decision = due(joining, S)
    assert (decision.state, decision.boot_id, decision.raise_epoch) == (NODE_STATE_ONLINE, "boot-1", True)


def test_three_missed_beats_make_a_suspect_and_two_do_not() -> None:
    assert decide(view(NODE_STATE_ONLINE), 3 * S - 1, TIMES) is None
    decision = due(view(NODE_STATE_ONLINE), 3 * S)
    assert decision.state == NODE_STATE_SUSPECT
    assert "3.0 s" in decision.reason


def test_a_suspect_that_is_heard_in_time_is_online_again() -> None:
    heard = view(NODE_STATE_SUSPECT, beat=Beat(8 * S, "boot-1"))
    assert due(heard, 8 * S).state == NODE_STATE_ONLINE
    assert due(heard, lease_over_ns(0, TIMES)).state == NODE_STATE_FENCING, "its lease is over: too late"


def test_a_silent_node_is_fenced_exactly_when_time_proves_it() -> None:
    assert decide(view(NODE_STATE_SUSPECT), lease_over_ns(0, TIMES) - 1, TIMES) is None
    assert due(view(NODE_STATE_SUSPECT), lease_over_ns(0, TIMES)).state == NODE_STATE_FENCING
    assert decide(view(NODE_STATE_FENCING), safe_after_ns(0, TIMES) - 1, TIMES) is None
    assert due(view(NODE_STATE_FENCING), safe_after_ns(0, TIMES)).state == NODE_STATE_FENCED


@pytest.mark.parametrize("state", [NODE_STATE_ONLINE, NODE_STATE_SUSPECT, NODE_STATE_FENCING])
@pytest.mark.parametrize("beat", [Beat(S, "boot-2"), Beat(S, "boot-1", 5)])
def test_another_boot_or_a_newer_lapse_is_proof_at_once(state: int, beat: Beat) -> None:
    decision = due(view(state, beat=beat), S)
    assert decision.state == NODE_STATE_FENCED
    assert (decision.boot_id, decision.lapse_number) == ("boot-1", 4), "stored only when it gets the lease"


@pytest.mark.parametrize("beat", [Beat(S, "boot-1"), Beat(S, "boot-1", 4), Beat(S, "boot-1", 3)])
def test_an_old_lapse_is_no_proof(beat: Beat) -> None:
    assert decide(view(NODE_STATE_FENCING, beat=beat), S, TIMES) is None


def test_a_fenced_node_comes_back_only_as_another_incarnation_and_raises_the_epoch() -> None:
    assert decide(view(NODE_STATE_FENCED, beat=Beat(S, "boot-1")), S, TIMES) is None
    assert decide(view(NODE_STATE_FENCED, beat=Beat(S, "boot-1", 4)), S, TIMES) is None
    lapsed = due(view(NODE_STATE_FENCED, beat=Beat(S, "boot-1", 5)), S)
    assert (lapsed.state, lapsed.lapse_number, lapsed.raise_epoch) == (NODE_STATE_ONLINE, 5, True)
    booted = due(view(NODE_STATE_FENCED, beat=Beat(S, "boot-2")), S)
    assert (booted.boot_id, booted.lapse_number, booted.raise_epoch) == ("boot-2", 4, True)


def test_a_host_that_goes_down_is_fenced_by_its_report_and_not_taken_back_by_another_one() -> None:
    leaving = Beat(S, "boot-1", 5, leaving=True)
    assert due(view(NODE_STATE_ONLINE, beat=leaving), S).state == NODE_STATE_FENCED
    assert decide(view(NODE_STATE_FENCED, beat=leaving), S, TIMES) is None
    assert due(view(NODE_STATE_FENCED, beat=Beat(S, "boot-2")), S).state == NODE_STATE_ONLINE


def test_a_fenced_node_does_not_come_back_before_recovery_has_looked_at_its_guests() -> None:
    rebooted = view(NODE_STATE_FENCED, beat=Beat(S, "boot-2"))
    assert decide(replace(rebooted, unrecovered=True), S, TIMES) is None
    assert due(rebooted, S).state == NODE_STATE_ONLINE


@pytest.mark.parametrize("state", [NODE_STATE_ONLINE, NODE_STATE_SUSPECT, NODE_STATE_FENCING, NODE_STATE_FENCED])
def test_a_late_beat_of_an_earlier_boot_proves_nothing(state: int) -> None:
    late = view(state, takeover_ns=S, beat=Beat(S, "boot-0", 9, current=False))
    assert decide(late, S, TIMES) is None
    assert not renews(late, S, TIMES)


def test_a_fenced_node_does_not_come_back_while_it_reports_a_running_ha_guest() -> None:
    assert decide(view(NODE_STATE_FENCED, beat=Beat(S, "boot-2", None, ("web",))), S, TIMES) is None


@pytest.mark.parametrize("state", STATES)
def test_only_nodes_committed_online_are_renewed(state: int) -> None:
    assert renews(view(state), S, TIMES) == (state == NODE_STATE_ONLINE)
    assert not renews(view(state, pending=True), S, TIMES)
    assert decide(view(state, pending=True), 99 * S, TIMES) is None


@pytest.mark.parametrize("beat", [None, Beat(S, "boot-2"), Beat(S, "boot-1", 5)])
def test_a_beat_that_will_be_proof_is_not_renewed(beat: Beat | None) -> None:
    assert not renews(view(NODE_STATE_ONLINE, beat=beat), S, TIMES)


def test_a_new_manager_waits_from_its_takeover_for_nodes_that_were_online() -> None:
    taken = view(NODE_STATE_FENCING, takeover_ns=50 * S, answered_ns=None)
    assert decide(taken, 50 * S + safe_after_ns(0, TIMES) - 1, TIMES) is None
    assert due(taken, 50 * S + safe_after_ns(0, TIMES)).state == NODE_STATE_FENCED


def test_a_change_of_manager_costs_no_second_wait_for_a_node_already_suspected() -> None:
    taken = view(NODE_STATE_FENCING, takeover_ns=50 * S, answered_ns=None, off_seen_ns=42 * S)
    assert due(taken, 42 * S + safe_after_ns(0, TIMES)).state == NODE_STATE_FENCED


@pytest.mark.parametrize("state", [NODE_STATE_ONLINE, NODE_STATE_SUSPECT, NODE_STATE_FENCING])
def test_the_deadline_is_when_the_decision_changes(state: int) -> None:
    at = deadline(view(state), TIMES)
    assert at is not None
    assert decide(view(state), at - 1, TIMES) is None
    assert decide(view(state), at, TIMES) is not None


@given(
    lease_ms=st.integers(3_000, 60_000),
    drift=st.integers(-1_000, 1_000),
    ask_to_answer_ns=st.integers(0, 30 * S),
)
def test_fencing_by_time_is_later_than_the_kill_for_any_clocks_within_the_bound(
    lease_ms: int, drift: int, ask_to_answer_ns: int
) -> None:
    """Real time is the manager's; the holder's clock runs `drift` ppm slower than it."""
    times = LeaseTimes(lease_ms=lease_ms)
    stopped_ns = (holder_deadline_ns(0, lease_ms) + times.kill_budget_ms * 1_000_000) * (1_000_000 + drift) // 1_000_000
    assert stopped_ns < safe_after_ns(ask_to_answer_ns, times)
