from collections.abc import Iterator

import pytest
from gugus.store.v1 import store_pb2
from hypothesis import given
from hypothesis import strategies as st

from manager.store import rules
from manager.store.history import HistoryGone
from manager.store.repeats import MAX_REQUESTS
from manager.store.rules import MAX_OPERATIONS, MAX_REQUEST_ID_CHARS, MAX_VALUE_BYTES, FromNewerRelease
from manager.store.state import StoreState


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
    ("payload", "named"),
    [
        (b"\xff\xff\xff", "no transaction"),
        (txn(puts=[put("noslash")]), "noslash"),
        (txn(puts=[put("/name")]), "/name"),
        (txn(puts=[put("guest/" + "x" * 300)]), "at most 200"),
        (txn(puts=[put("guest/a", b"x" * (MAX_VALUE_BYTES + 1))]), "guest/a: 40961 bytes; an object has at most 40960"),
        (txn(puts=[put("guest/a"), put("guest/a")]), "guest/a"),
        (txn(puts=[put("guest/a")], deletes=["guest/a"]), "guest/a"),
        (txn(compares=[store_pb2.Compare(key="guest/a")]), "guest/a: a compare without"),
        (txn(deletes=[f"guest/{i}" for i in range(MAX_OPERATIONS + 1)]), "257 compares, puts and deletes"),
        (txn(puts=[put("guest/a")], request_id="r" * (MAX_REQUEST_ID_CHARS + 1)), "at most 256"),
    ],
)
def test_a_malformed_transaction_is_a_result_that_names_the_limit_and_changes_nothing(
    payload: bytes, named: str
) -> None:
    state = StoreState()
    result = apply(state, payload)
    assert named in result.error
    assert not result.succeeded
    assert state.revision == 0


@given(st.binary(max_size=200))
def test_no_payload_makes_apply_raise_but_one_of_a_newer_release(payload: bytes) -> None:
    state = StoreState()
    try:
        state.apply(1, payload)
    except FromNewerRelease:
        assert state.revision == 0


@pytest.mark.parametrize("inner", [False, True])
def test_a_transaction_of_a_newer_release_stops_the_member(inner: bool) -> None:
    """Applying what is known of it would make this member's state another than the others'."""
    new_field = b"\xfa\x07\x03new"  # field 127, length-delimited
    change = put("guest/a").SerializeToString() + (new_field if inner else b"")
    payload = b"\x12" + bytes([len(change)]) + change + (b"" if inner else new_field)
    state = StoreState()
    with pytest.raises(FromNewerRelease, match="install the release"):
        state.apply(1, payload)
    assert state.get("guest/a") is None


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


def test_a_failure_is_remembered_too_so_that_a_late_first_attempt_cannot_succeed_after_all() -> None:
    """A retry was told that it failed; then the first attempt, under way all the while, is applied."""
    state = StoreState()
    once = txn(puts=[put("guest/a")], compares=[store_pb2.Compare(key="node/n", exists=True)], request_id="r")
    assert not apply(state, once).succeeded
    apply(state, txn(puts=[put("node/n")]))
    other = StoreState()
    other.restore(state.snapshot())
    for s in (state, other):
        result = apply(s, once)
        assert (result.succeeded, result.repeated) == (False, True)
        assert [(f.key, f.mod_revision) for f in result.failed] == [("node/n", 0)]
        assert s.get("guest/a") is None


def test_request_ids_are_remembered_in_bounded_number() -> None:
    state = StoreState()
    for i in range(MAX_REQUESTS + 1):
        apply(state, txn(puts=[put("guest/a")], request_id=f"r{i}"))
    assert apply(state, txn(puts=[put("guest/a")], request_id="r1")).repeated
    assert not apply(state, txn(puts=[put("guest/a")], request_id="r0")).repeated


def test_the_remembered_requests_are_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manager.store.repeats.MAX_BYTES", 1_000)
    one, other = StoreState(), StoreState()
    for i in range(100):
        for state in (one, other):
            apply(state, txn(puts=[put("guest/a")], request_id=f"r{i:099}"))
        restored = StoreState()
        restored.restore(other.snapshot())
        other = restored
    assert list(one.snapshot()) == list(other.snapshot())
    assert apply(one, txn(puts=[put("guest/a")], request_id=f"r{99:099}")).repeated
    assert not apply(one, txn(puts=[put("guest/a")], request_id=f"r{80:099}")).repeated


@pytest.mark.parametrize(
    ("piece", "why"),
    [
        (b"\xff\xff", "snapshot of the store"),
        (store_pb2.Snapshot(version=2).SerializeToString(), "version 2; this release reads up to 1, install"),
        (store_pb2.Snapshot().SerializeToString(), "version 0"),
        (store_pb2.Snapshot(version=1).SerializeToString() + b"\xfa\x07\x03new", "does not know"),
    ],
)
def test_a_snapshot_that_cannot_be_read_is_refused_as_a_whole(piece: bytes, why: str) -> None:
    state = StoreState()
    apply(state, txn(puts=[put("guest/a")]))
    before = list(state.snapshot())
    with pytest.raises(ValueError, match=why):
        state.restore([*before, piece])
    assert list(state.snapshot()) == before


def test_a_snapshot_larger_than_any_state_is_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of zeros compress to nothing: the file's size says little about what it unpacks to."""
    monkeypatch.setattr("manager.store.pieces.QUOTA_BYTES", 1_000_000)
    monkeypatch.setattr("manager.store.pieces.RESERVE_BYTES", 100_000)
    drawn = 0

    def bomb() -> Iterator[bytes]:
        nonlocal drawn
        while True:
            objects = [store_pb2.Object(key=f"guest/{drawn}-{i}", value=bytes(40_000)) for i in range(10)]
            drawn += 1
            yield store_pb2.Snapshot(version=1, objects=objects).SerializeToString()

    with pytest.raises(ValueError, match="more than 1100000 bytes"):
        StoreState().restore(bomb())
    assert drawn == 3


def test_beyond_the_quota_users_are_refused_and_the_cluster_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "QUOTA_BYTES", 1_000)
    monkeypatch.setattr(rules, "RESERVE_BYTES", 500)
    state = StoreState()

    def write(key: str, size: int, spare: bool = False) -> store_pb2.TxnResult:
        return apply(state, txn(puts=[put(key, bytes(size))], spare_reserve=spare))

    assert write("guest/a", 900 - 71, spare=True).succeeded
    assert state.size_bytes == 900
    refused = write("guest/b", 100, spare=True)
    assert "900 bytes, 171 more are asked for; 1000 is the most" in refused.exhausted
    assert state.revision == refused.revision == 1
    assert write("guest/b", 100).succeeded, "the cluster's own work has the reserve"
    assert write("guest/a", 800, spare=True).succeeded, "what shrinks is never refused"
    assert "1500 is the most" in write("guest/c", 1_000).exhausted
    assert apply(state, txn(deletes=["guest/a"], spare_reserve=True)).succeeded
    assert state.size_bytes == 171
    restored = StoreState()
    restored.restore(state.snapshot())
    assert restored.size_bytes == 171


def test_old_history_is_gone_and_says_so() -> None:
    state = StoreState(history_changes=3)
    for i in range(5):
        apply(state, txn(puts=[put(f"guest/g{i}")]))
    assert [c.revision for c in state.changes_after(2)] == [3, 4, 5]
    with pytest.raises(HistoryGone):
        state.changes_after(1)
    assert list(state.changes_after(9)) == []


def test_history_is_bounded_in_bytes_too() -> None:
    state = StoreState(history_bytes=1_000)
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
