"""The observer sees a contradiction the moment it is there."""

import pytest
from gugus.store.v1 import store_pb2

from manager.store import StoreState
from tests.simulation.consensus.record import Machine, Record
from tests.simulation.consensus.timeline import Violation


def txn(value: bytes, *deletes: str) -> bytes:
    puts = [store_pb2.Put(key="a/x", value=value)] if value else []
    return store_pb2.Txn(puts=puts, deletes=deletes).SerializeToString()


def machines() -> tuple[Machine, Machine]:
    record = Record()
    return Machine("m1", StoreState(), record), Machine("m2", StoreState(), record)


def test_members_that_apply_the_same_agree() -> None:
    one, two = machines()
    assert one.apply(2, txn(b"1")) == two.apply(2, txn(b"1"))
    one.apply(3, txn(b"", "a/x"))
    assert one.record.changes == {1: [("a/x", b"1")], 2: [("a/x", None)]}


def test_another_payload_or_state_at_an_index_is_a_violation() -> None:
    one, two = machines()
    one.apply(2, txn(b"1"))
    with pytest.raises(Violation, match="differs at 2"):
        two.apply(2, txn(b"2"))


def test_applying_twice_is_a_violation() -> None:
    one, _ = machines()
    one.apply(2, txn(b"1"))
    with pytest.raises(Violation, match="applied 2 after 2"):
        one.apply(2, txn(b"1"))


def test_a_snapshot_is_of_the_moment_when_it_was_asked_for_and_restores_to_it() -> None:
    one, two = machines()
    one.apply(2, txn(b"1"))
    pieces = one.snapshot()
    one.apply(3, txn(b"2"))
    two.restore(list(pieces))
    assert two.index == 2
    two.apply(3, txn(b"2"))


def test_restoring_what_never_was_is_a_violation() -> None:
    _, two = machines()
    never = StoreState()
    never.apply(2, txn(b"1"))
    with pytest.raises(Violation, match="never was"):
        two.restore(never.snapshot())


def test_two_leaders_of_a_term_are_a_violation() -> None:
    record = Record()
    record.leads("m1", 3)
    record.leads("m1", 3)
    with pytest.raises(Violation, match="two leaders in term 3"):
        record.leads("m2", 3)


def test_two_votes_in_a_term_are_a_violation_unless_the_disk_is_another_one() -> None:
    record, vote = Record(), {"type": "response_vote", "term": 3}
    record.left("m1", 0, "m2", vote)
    record.left("m1", 1, "m3", vote)
    with pytest.raises(Violation, match="voted for m2 and m3"):
        record.left("m1", 0, "m3", vote)


def test_a_term_that_was_spoken_of_and_forgotten_is_a_violation() -> None:
    record = Record()
    record.left("m1", 0, "m2", {"type": "higher_term", "term": 5})
    record.booted("m1", 1, 0)
    with pytest.raises(Violation, match="had sent messages of term 5"):
        record.booted("m1", 0, 4)


def test_two_commands_at_one_place_of_the_log_are_a_violation() -> None:
    record = Record()
    record.left("m1", 0, "m2", {"type": "append_entries", "term": 2, "entries": [(b"a", 7, 2)]})
    record.left("m1", 0, "m2", {"type": "append_entries", "term": 3, "entries": [(b"b", 7, 3)]})
    with pytest.raises(Violation, match="another command at index 7 of term 2"):
        record.left("m3", 0, "m2", {"type": "append_entries", "term": 3, "entries": [(b"b", 7, 2)]})
