"""The state against a model of a few lines: transactions, idempotency, history, and snapshots at any point."""

from dataclasses import dataclass, field

from gugus.store.v1 import store_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.store.state import StoreState

KEYS = ["guest/a", "guest/b", "node/a"]


@dataclass
class Model:
    """Values and revisions in a dict; results by request id in another."""

    revision: int = 0
    objects: dict[str, tuple[bytes, int, int, int]] = field(default_factory=dict)
    results: dict[str, store_pb2.TxnResult] = field(default_factory=dict)
    log: list[tuple[int, str, bytes | None]] = field(default_factory=list)

    def apply(self, txn: store_pb2.Txn) -> store_pb2.TxnResult:
        if txn.request_id in self.results:
            again = store_pb2.TxnResult()
            again.CopyFrom(self.results[txn.request_id])
            again.repeated = True
            return again
        failed = [c.key for c in txn.compares if not self._holds(c)]
        if not failed:
            self._write(txn)
        result = store_pb2.TxnResult(
            succeeded=not failed,
            revision=self.revision,
            failed=[store_pb2.FailedCompare(key=key, mod_revision=self._at(key)) for key in failed],
        )
        if txn.request_id:
            self.results[txn.request_id] = result
        return result

    def _at(self, key: str) -> int:
        return self.objects[key][2] if key in self.objects else 0

    def _holds(self, compare: store_pb2.Compare) -> bool:
        if compare.HasField("exists"):
            return (compare.key in self.objects) == compare.exists
        return compare.key in self.objects and self._at(compare.key) == compare.mod_revision

    def _write(self, txn: store_pb2.Txn) -> None:
        deleted = [key for key in txn.deletes if key in self.objects]
        self.revision += bool(txn.puts or deleted)
        for put in txn.puts:
            _, made, _, version = self.objects.get(put.key, (b"", self.revision, 0, 0))
            self.objects[put.key] = (put.value, made, self.revision, version + 1)
            self.log.append((self.revision, put.key, put.value))
        for key in deleted:
            del self.objects[key]
            self.log.append((self.revision, key, None))


keys = st.sampled_from(KEYS)
compares = st.one_of(
    st.builds(lambda k, r: store_pb2.Compare(key=k, mod_revision=r), keys, st.integers(0, 8)),
    st.builds(lambda k, e: store_pb2.Compare(key=k, exists=e), keys, st.booleans()),
)


@st.composite
def transactions(draw: st.DrawFn) -> store_pb2.Txn:
    written = draw(st.lists(keys, unique=True, max_size=3))
    cut = draw(st.integers(0, len(written)))
    return store_pb2.Txn(
        compares=draw(st.lists(compares, max_size=2)),
        puts=[store_pb2.Put(key=key, value=draw(st.binary(max_size=3))) for key in written[:cut]],
        deletes=written[cut:],
        request_id=draw(st.sampled_from(["", "", "r1", "r2", "r3"])),
        spare_reserve=draw(st.booleans()),
    )


@settings(max_examples=300)
@given(st.lists(transactions(), max_size=30), st.sets(st.integers(0, 30), max_size=3))
def test_the_state_does_what_the_model_does_and_survives_snapshots(txns: list[store_pb2.Txn], cuts: set[int]) -> None:
    model, state, start = Model(), StoreState(), 0
    for index, txn in enumerate(txns):
        if index in cuts:
            pieces = list(state.snapshot())
            state = StoreState()
            state.restore(pieces)
            assert list(state.snapshot()) == pieces
            start = model.revision
        assert store_pb2.TxnResult.FromString(state.apply(index, txn.SerializeToString())) == model.apply(txn)
    revision, entries = state.list()
    assert revision == state.revision == model.revision
    assert {e.key: (e.value, e.create_revision, e.mod_revision, e.version) for e in entries} == model.objects
    assert [(c.revision, c.key, c.value) for c in state.changes_after(start)] == [c for c in model.log if c[0] > start]
    assert state.size_bytes == sum(len(key) + len(value[0]) + 64 for key, value in model.objects.items())
