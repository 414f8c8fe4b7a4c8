import pytest
from gugus.store.v1 import store_pb2
from hypothesis import given
from hypothesis import strategies as st

from manager.store.state import MAX_VALUE_BYTES, REMEMBERED_REQUESTS, HistoryGone, StoreState


def txn(**fields: object) -> bytes:
    return store_pb2.Txn(**fields).SerializeToString()  # type: ignore[arg-type]


def put(key: str, value: bytes = b"v") -> store_pb2.Put:
    return store_pb2.Put(key=key, value=value)


def apply(state: StoreState, payload: bytes) -> store_pb2.TxnResult:
    return store_pb2.TxnResult.FromString(state.apply(1, payload))


def test_each_changing_transaction_raises_the_revision_by_one() -> None:
    state = StoreState()
    assert apply(state, txn(puts=[put("guest/a"), put("guest/b")])).revision == 1
    assert apply(state, txn(deletes=["guest/a"])).revision == 2
    assert apply(state, txn(deletes=["guest/a"])).revision == 2, "nothing was there: nothing changed"
    entry = state.get("guest/b")
    assert entry is not None
    assert (entry.create_revision, entry.mod_revision, entry.version) == (1, 1, 1)


def test_versions_count_from_the_making_of_an_object() -> None:
    state = StoreState()
    for _ in range(3):
        apply(state, txn(puts=[put("guest/a")]))
    entry = state.get("guest/a")
    assert entry is not None
    assert (entry.create_revision, entry.mod_revision, entry.version) == (1, 3, 3)
    apply(state, txn(deletes=["guest/a"]))
    apply(state, txn(puts=[put("guest/a")]))
    again = state.get("guest/a")
    assert again is not None
    assert (again.create_revision, again.version) == (5, 1)


def test_a_failed_compare_changes_nothing_and_tells_the_revision() -> None:
    state = StoreState()
    apply(state, txn(puts=[put("guest/a", b"1")]))
    result = apply(
        state,
        txn(compares=[store_pb2.Compare(key="guest/a", mod_revision=7)], puts=[put("guest/a", b"2"), put("guest/b")]),
    )
    assert not result.succeeded
    assert [(f.key, f.mod_revision) for f in result.failed] == [("guest/a", 1)]
    assert state.get("guest/b") is None
    entry = state.get("guest/a")
    assert entry is not None
    assert entry.value == b"1"


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff\xff\xff",
        txn(puts=[put("noslash")]),
        txn(puts=[put("/name")]),
        txn(puts=[put("guest/" + "x" * 300)]),
        txn(puts=[put("guest/a", b"x" * (MAX_VALUE_BYTES + 1))]),
        txn(puts=[put("guest/a"), put("guest/a")]),
        txn(puts=[put("guest/a")], deletes=["guest/a"]),
        txn(compares=[store_pb2.Compare(key="guest/a")]),
    ],
)
def test_a_malformed_transaction_is_a_result_and_changes_nothing(payload: bytes) -> None:
    state = StoreState()
    result = apply(state, payload)
    assert result.error
    assert not result.succeeded
    assert state.revision == 0


@given(st.binary(max_size=200))
def test_no_payload_makes_apply_raise(payload: bytes) -> None:
    StoreState().apply(1, payload)


def test_a_request_id_is_applied_once_even_across_a_snapshot() -> None:
    state = StoreState()
    once = txn(puts=[put("guest/a")], compares=[store_pb2.Compare(key="guest/a", exists=False)], request_id="r1")
    assert apply(state, once).revision == 1
    other = StoreState()
    other.restore(state.snapshot())
    for s in (state, other):
        result = apply(s, once)
        assert (result.succeeded, result.repeated, result.revision) == (True, True, 1)
        assert s.revision == 1


def test_a_failed_transaction_may_be_tried_again_under_its_request_id() -> None:
    state = StoreState()
    assert not apply(
        state, txn(puts=[put("guest/a")], compares=[store_pb2.Compare(key="node/n", exists=True)], request_id="r")
    ).succeeded
    assert apply(state, txn(puts=[put("guest/a")], request_id="r")).succeeded


def test_request_ids_are_remembered_in_bounded_number() -> None:
    state = StoreState()
    for i in range(REMEMBERED_REQUESTS + 1):
        apply(state, txn(puts=[put("guest/a")], request_id=f"r{i}"))
    assert apply(state, txn(puts=[put("guest/a")], request_id="r1")).repeated
    assert not apply(state, txn(puts=[put("guest/a")], request_id="r0")).repeated


def test_a_snapshot_that_cannot_be_read_is_refused() -> None:
    for data in (b"\xff\xff", store_pb2.Snapshot(version=2).SerializeToString()):
        with pytest.raises(ValueError, match="snapshot"):
            StoreState().restore([data])


def test_old_history_is_gone_and_says_so() -> None:
    state = StoreState(history_changes=3)
    for i in range(5):
        apply(state, txn(puts=[put(f"guest/g{i}")]))
    assert [c.revision for c in state.changes_after(2)] == [3, 4, 5]
    with pytest.raises(HistoryGone):
        state.changes_after(1)
    assert list(state.changes_after(9)) == []


def test_history_is_bounded_in_bytes_too() -> None:
    state = StoreState(history_bytes=1000)
    for _ in range(5):
        apply(state, txn(puts=[put("guest/a", b"x" * 400)]))
    assert len(state.changes_after(3)) == 2
    with pytest.raises(HistoryGone):
        state.changes_after(2)


keys = st.sampled_from(["guest/a", "guest/b", "node/a", "node/b"])
compares = st.builds(lambda k, r: store_pb2.Compare(key=k, mod_revision=r), keys, st.integers(1, 6)) | st.builds(
    lambda k, e: store_pb2.Compare(key=k, exists=e), keys, st.booleans()
)
txns = st.builds(
    lambda c, p, d, r: store_pb2.Txn(
        compares=c, puts=[put(k, v) for k, v in p.items()], deletes=d, request_id=r
    ).SerializeToString(),
    st.lists(compares, max_size=1),
    st.dictionaries(keys, st.binary(max_size=3), max_size=2),
    st.lists(keys, max_size=2),
    st.sampled_from(["", "", "r1", "r2"]),
)


@given(st.lists(txns, max_size=25), st.integers(0, 25))
def test_members_agree_whether_they_applied_or_restored(payloads: list[bytes], cut: int) -> None:
    one, other = StoreState(), StoreState()
    for index, payload in enumerate(payloads):
        if index == cut:
            restored = StoreState()
            restored.restore(other.snapshot())
            other = restored
        assert one.apply(index, payload) == other.apply(index, payload)
    assert list(one.snapshot()) == list(other.snapshot())


@given(st.lists(txns, max_size=25))
def test_replaying_the_history_gives_the_state(payloads: list[bytes]) -> None:
    state = StoreState()
    for index, payload in enumerate(payloads):
        state.apply(index, payload)
    replayed: dict[str, bytes] = {}
    for change in state.changes_after(0):
        if change.value is None:
            del replayed[change.key]
        else:
            replayed[change.key] = change.value
    assert replayed == {entry.key: entry.value for entry in state.list()[1]}
