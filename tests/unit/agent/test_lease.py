"""The lease as its holder sees it: renewed only by answers in time, ended for good until its report was answered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.fencing.lease import LeaseKeeper, Phase

MS = 1_000_000
LEASE_MS = 10_000


def held(at_ms: int = 0) -> LeaseKeeper:
    keeper = LeaseKeeper()
    keeper.beat_sent(1, at_ms * MS)
    assert keeper.beat_answered(1, LEASE_MS, fenced=False, now_ns=at_ms * MS)
    return keeper


def test_lease_counts_from_the_sending_of_the_answered_beat() -> None:
    keeper = LeaseKeeper()
    keeper.beat_sent(1, 0)
    assert keeper.beat_answered(1, LEASE_MS, fenced=False, now_ns=9_000 * MS)
    assert keeper.remaining_ns(9_000 * MS) == 1_000 * MS
    assert keeper.tick(LEASE_MS * MS) is Phase.LAPSING


def test_answer_that_comes_after_its_own_lease_renews_nothing() -> None:
    keeper = LeaseKeeper()
    keeper.beat_sent(1, 0)
    assert not keeper.beat_answered(1, LEASE_MS, fenced=False, now_ns=LEASE_MS * MS)
    assert keeper.phase is Phase.VACANT


def test_only_a_beat_with_the_report_ends_a_lapse() -> None:
    keeper = held()
    keeper.beat_sent(2, 9_900 * MS)
    keeper.tick(10_000 * MS)
    keeper.beat_sent(3, 10_010 * MS)
    keeper.emptied(1)
    keeper.beat_sent(4, 10_020 * MS)
    for early in (2, 3):
        assert not keeper.beat_answered(early, LEASE_MS, fenced=False, now_ns=10_050 * MS)
    assert keeper.phase is Phase.LAPSED
    assert keeper.beat_answered(4, LEASE_MS, fenced=False, now_ns=10_050 * MS)


def test_answer_without_a_lease_leaves_the_one_that_is_held() -> None:
    keeper = held()
    keeper.beat_sent(2, 1_000 * MS)
    assert not keeper.beat_answered(2, 0, fenced=False, now_ns=1_010 * MS)
    assert keeper.phase is Phase.HELD
    assert keeper.remaining_ns(1_010 * MS) == (LEASE_MS - 1_010) * MS


def test_fenced_node_empties_itself_whatever_its_deadline_says() -> None:
    keeper = held()
    keeper.beat_sent(2, 1_000 * MS)
    keeper.beat_answered(2, LEASE_MS, fenced=True, now_ns=1_001 * MS)
    assert keeper.phase is Phase.LAPSING
    assert not keeper.holds(1_001 * MS)


def test_report_that_is_refused_again_and_again_gets_a_new_number() -> None:
    keeper = held()
    keeper.tick(10_000 * MS)
    keeper.emptied(1)
    for i in range(2, 10):
        keeper.beat_sent(i, 11_000 * MS)
        keeper.beat_answered(i, LEASE_MS, fenced=True, now_ns=11_000 * MS)
    assert keeper.phase is Phase.LAPSING


def refuse(keeper: LeaseKeeper, sequence: int, at_ms: int) -> Phase:
    keeper.beat_sent(sequence, at_ms * MS)
    keeper.beat_answered(sequence, 0, fenced=True, now_ns=at_ms * MS)
    return keeper.phase


def test_a_host_that_has_booted_reports_no_lapse_for_what_its_boot_proves_already() -> None:
    keeper = LeaseKeeper(lapses=3)
    keeper.boot()
    assert {refuse(keeper, sequence, 10 * sequence) for sequence in range(100)} == {Phase.VACANT}
    keeper.beat_sent(1000, 2_000 * MS)
    assert keeper.beat_answered(1000, LEASE_MS, fenced=False, now_ns=2_000 * MS)
    assert keeper.lapses == 3


def test_one_whose_boot_is_no_news_reports_a_lapse_all_the_same() -> None:
    assert refuse(LeaseKeeper(), 1, 0) is Phase.LAPSING, "it is not the first process of its boot"
    booted = LeaseKeeper()
    booted.boot()
    assert refuse(booted, 1, 0) is Phase.VACANT
    assert refuse(booted, 2, 4_999) is Phase.VACANT
    assert refuse(booted, 3, 5_000) is Phase.LAPSING


def test_shorter_lease_of_a_later_beat_holds() -> None:
    keeper = held()
    keeper.beat_sent(2, 1_000 * MS)
    keeper.beat_answered(2, 3_000, fenced=False, now_ns=1_000 * MS)
    assert keeper.deadline_ns == 4_000 * MS


@pytest.mark.parametrize(("now_ms", "phase"), [(4_999, Phase.HELD), (5_000, Phase.LAPSING)])
def test_restarted_agent_keeps_a_lease_that_still_holds(now_ms: int, phase: Phase) -> None:
    keeper = LeaseKeeper()
    keeper.resume(5_000 * MS, now_ms * MS)
    assert keeper.phase is phase


@given(st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 15_000), st.booleans()), max_size=40))
def test_never_held_longer_than_a_lease_after_the_last_answered_beat(beats: list[tuple[int, int, bool]]) -> None:
    """Whatever the delays: when HELD, a beat of the same lapse was sent less than a lease ago and has been answered."""
    keeper, now, events = LeaseKeeper(), 0, list[tuple[int, int, int]]()
    answered = list[int]()
    for sequence, (gap, delay, lost) in enumerate(beats):
        now += gap
        events.append((now, 0, sequence))
        if not lost:
            events.append((now + delay, 1, sequence))
    sent = dict[int, int]()
    for at, kind, sequence in sorted(events):
        if keeper.tick(at * MS) is Phase.LAPSING:
            keeper.emptied(keeper.lapses + 1)
            answered.clear()
        if kind == 0:
            keeper.beat_sent(sequence, at * MS)
            sent[sequence] = at
        elif keeper.beat_answered(sequence, LEASE_MS, fenced=False, now_ns=at * MS):
            answered.append(sent[sequence])
        if keeper.holds(at * MS):
            assert at < max(answered) + LEASE_MS
