"""Watchers resume at any revision without a gap or a repeat, or are told that they cannot."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.store.history import BATCH_BYTES, BATCH_CHANGES, History, HistoryGone, RawChange

sizes = st.lists(st.integers(1, 5), max_size=60)


def fill(history: History, revisions: list[int], value: bytes = b"v") -> list[RawChange]:
    changes = []
    for revision, count in enumerate(revisions, start=history.start + 1):
        made = [RawChange(revision, f"guest/{i}", value) for i in range(count)]
        history.record(made)
        changes += made
    return changes


def follow(history: History, since: int) -> list[RawChange]:
    seen: list[RawChange] = []
    while batch := history.after(since):
        seen += batch
        since = batch[-1].revision
    return seen


@given(sizes, st.integers(0, 60), st.integers(1, 40))
def test_whoever_resumes_gets_each_change_once_or_learns_that_it_is_gone(
    revisions: list[int], since: int, kept: int
) -> None:
    history = History(max_changes=kept)
    changes = fill(history, revisions)
    if since < history.start:
        with pytest.raises(HistoryGone):
            history.after(since)
        return
    assert follow(history, since) == [change for change in changes if change.revision > since]
    assert len([c for c in changes if c.revision > history.start]) <= kept


@given(sizes)
def test_a_revision_is_never_cut_in_two(revisions: list[int]) -> None:
    history = History(max_changes=17)
    changes = fill(history, revisions)
    for since in range(history.start, len(revisions)):
        batch = history.after(since)
        last = batch[-1].revision
        assert batch == [change for change in changes if since < change.revision <= last]


def test_a_batch_is_bounded_in_number_and_in_bytes() -> None:
    history = History()
    fill(history, [1] * (BATCH_CHANGES * 3))
    assert len(history.after(0)) == BATCH_CHANGES
    large = History()
    fill(large, [1] * 100, bytes(40_000))
    assert len(large.after(0)) == BATCH_BYTES // 40_000 + 1
    assert len(follow(large, 0)) == 100


def test_history_of_a_replaced_state_is_gone_and_the_future_has_none_yet() -> None:
    history = History()
    fill(history, [1, 2, 3])
    history.restart(7)
    with pytest.raises(HistoryGone, match="after revision 6 are gone; kept are those after 7"):
        history.after(6)
    assert history.after(7) == []
    assert history.after(12) == []
    fill(history, [1] * 6)
    assert [c.revision for c in history.after(12)] == [13]


def test_memory_stays_bounded_when_changes_are_dropped_one_by_one() -> None:
    history = History(max_changes=10)
    fill(history, [1] * 5_000)
    assert len(history._changes) < 1_100
    assert [c.revision for c in follow(history, history.start)] == list(range(4_991, 5_001))
