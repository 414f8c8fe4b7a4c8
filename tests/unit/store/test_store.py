import asyncio
import threading
from typing import Any

import grpc
import pytest
from gugus.cluster.v1 import guest_pb2, node_pb2

from common.errors import GugusError
from manager.consensus.types import NotLeader, ProposalTimeout
from manager.store import Change, Compacted, Conflict, Store, StoreState, Txn, kinds
from tests.unit.store.local import LocalConsensus


def make(**options: int) -> tuple[Store, LocalConsensus]:
    state = StoreState(**options)
    consensus = LocalConsensus(state)
    return Store(consensus, state), consensus


def guest(name: str, node: str = "") -> guest_pb2.Guest:
    made = kinds.new(guest_pb2.Guest, name)
    made.status.node = node
    return made


async def test_what_was_created_is_read_with_its_revision() -> None:
    store, _ = make()
    created = await store.create(guest("web", "n1"))
    assert created.meta.revision == 1
    assert created.meta.uid
    assert created.meta.generation == 1
    assert await store.require(guest_pb2.Guest, "web") == created
    with pytest.raises(GugusError) as error:
        await store.create(guest("web"))
    assert error.value.reason == "GUEST_ALREADY_EXISTS"


async def test_reads_wait_for_the_barrier_and_peeks_do_not() -> None:
    store, consensus = make()
    await store.get(guest_pb2.Guest, "web")
    await store.list(guest_pb2.Guest)
    assert consensus.barriers == 2
    store.peek(guest_pb2.Guest, "web")
    store.peek_all(guest_pb2.Guest)
    assert consensus.barriers == 2


async def test_list_is_by_name_and_by_prefix() -> None:
    store, _ = make()
    for name in ("web-2", "db", "web-1"):
        await store.create(guest(name))
    await store.create(kinds.new(node_pb2.Node, "n1"))
    assert [g.meta.name for g in await store.list(guest_pb2.Guest)] == ["db", "web-1", "web-2"]
    assert [g.meta.name for g in await store.list(guest_pb2.Guest, "web-")] == ["web-1", "web-2"]


async def test_a_write_upon_an_old_revision_is_a_conflict() -> None:
    store, _ = make()
    first = await store.create(guest("web"))
    await store.txn(Txn().put(first, expect_revision=first.meta.revision))
    with pytest.raises(Conflict) as error:
        await store.txn(Txn().put(first, expect_revision=first.meta.revision))
    assert error.value.keys == ("guest/web",)


async def test_concurrent_updates_all_count() -> None:
    store, _ = make()
    await store.create(guest("web"))

    def count(g: guest_pb2.Guest) -> guest_pb2.Guest:
        g.status.recoveries += 1
        return g

    await asyncio.gather(*(store.update(guest_pb2.Guest, "web", count, retries=50) for _ in range(20)))
    assert (await store.require(guest_pb2.Guest, "web")).status.recoveries == 20


async def test_an_update_that_changes_nothing_writes_nothing() -> None:
    store, _ = make()
    await store.create(guest("web"))
    for mutate in (lambda g: None, lambda g: g):
        assert (await store.update(guest_pb2.Guest, "web", mutate)).meta.revision == 1
    assert store.revision == 1


async def test_update_of_what_is_not_there_is_not_found() -> None:
    store, _ = make()
    for local in (False, True):
        with pytest.raises(GugusError) as error:
            await store.update(guest_pb2.Guest, "web", lambda g: g, local=local)
        assert error.value.reason == "GUEST_NOT_FOUND"


async def test_fields_of_a_newer_version_survive_an_update() -> None:
    store, consensus = make()
    made = guest("web")
    unknown = b"\xfa\x07\x03new"  # field 127, length-delimited
    made.MergeFromString(unknown)
    await store.create(made)

    def touch(g: guest_pb2.Guest) -> guest_pb2.Guest:
        g.status.failures += 1
        return g

    await store.update(guest_pb2.Guest, "web", touch)
    entry = consensus.state.get("guest/web")
    assert entry is not None
    assert unknown in entry.value


async def test_a_retry_after_a_lost_answer_does_the_work_once() -> None:
    store, consensus = make()
    consensus.lose_answers = True
    with pytest.raises(ProposalTimeout):
        await store.create(guest("web"), request_id="r1")
    consensus.lose_answers = False
    assert (await store.create(guest("web"), request_id="r1")).meta.revision == 1
    assert store.revision == 1


async def test_a_follower_refuses_to_write() -> None:
    store, consensus = make()
    consensus.leader = False
    with pytest.raises(NotLeader):
        await store.create(guest("web"))


async def test_an_object_too_large_is_refused_with_its_size() -> None:
    store, _ = make()
    large = guest("web")
    large.spec.first_boot.user_data = "x" * 50_000
    with pytest.raises(GugusError, match="40960"):
        await store.create(large)
    halves = [guest("a"), guest("b")]
    for half in halves:
        half.spec.first_boot.user_data = "x" * 30_000
    with pytest.raises(GugusError, match=r"\(guest/a, guest/b\); a transaction has at most 49151"):
        await store.txn(Txn().put(halves[0]).put(halves[1]))
    assert store.revision == 0


async def test_delete_says_whether_something_was_there() -> None:
    store, _ = make()
    await store.create(guest("web"))
    with pytest.raises(Conflict):
        await store.delete(guest_pb2.Guest, "web", expect_revision=99)
    assert await store.delete(guest_pb2.Guest, "web")
    assert not await store.delete(guest_pb2.Guest, "web")


async def collect(store: Store, count: int, prefixes: tuple[str, ...] = (), since: int | None = 0) -> list[Change]:
    found: list[Change] = []
    async with asyncio.timeout(5):
        async for change in store.watch(prefixes, since):
            found.append(change)
            if len(found) == count:
                break
    return found


async def test_a_watcher_sees_each_change_once_and_resumes_without_a_gap() -> None:
    store, _ = make()
    await store.create(guest("a"))
    watching = asyncio.create_task(collect(store, 4))
    await asyncio.sleep(0)
    await store.txn(Txn().put(guest("b")).put(kinds.new(node_pb2.Node, "n1")))
    await store.delete(guest_pb2.Guest, "a")
    changes = await watching
    assert [(c.key, c.revision, c.deleted, c.final) for c in changes] == [
        ("guest/a", 1, False, True),
        ("guest/b", 2, False, False),
        ("node/n1", 2, False, True),
        ("guest/a", 3, True, True),
    ]
    for position, change in enumerate(changes[:-1]):
        following = (await collect(store, 1, since=change.resume))[0]
        assert following in (changes[position + 1], changes[position])
        assert following == changes[position + 1] or not change.final
    assert changes[1].obj.meta.revision == 2
    assert changes[3].obj is None


async def test_a_watcher_sees_only_its_prefixes_and_from_now_on() -> None:
    store, _ = make()
    await store.create(guest("a"))
    watching = asyncio.create_task(collect(store, 1, ("node/",), None))
    await asyncio.sleep(0)
    await store.create(guest("b"))
    await store.create(kinds.new(node_pb2.Node, "n1"))
    assert [c.key for c in await watching] == ["node/n1"]


async def test_a_watcher_starts_from_what_is_present() -> None:
    store, _ = make()
    await store.create(guest("a"))
    await store.create(kinds.new(node_pb2.Node, "n1"))
    revision, objects = store.present(("guest/",))
    assert revision == 2
    assert [(c.key, c.obj.meta.name) for c in objects] == [("guest/a", "a")]


@pytest.mark.parametrize("prefixes", [(), ("guest/",), ("guest/b", "node/")])
async def test_a_watcher_may_break_off_after_any_change_and_resume(prefixes: tuple[str, ...]) -> None:
    """With `resume` nothing is missing; what comes again is of the transaction that it broke off in."""
    store, _ = make()
    for _ in range(3):
        await store.txn(Txn().put(guest("a")).put(guest("b")).put(kinds.new(node_pb2.Node, "n1")))
        await store.txn(Txn().put(guest("b")).delete(node_pb2.Node, "n1"))
    every = [c for c in await collect(store, 15) if not prefixes or c.key.startswith(prefixes)]
    for position, change in enumerate(every[:-1]):
        rest = await collect(store, len(every) - position - 1, prefixes, change.resume)
        if change.final:
            assert [(c.revision, c.key) for c in rest] == [(c.revision, c.key) for c in every[position + 1 :]]
        else:
            first = next(i for i, c in enumerate(every) if c.revision == change.revision)
            assert [(c.revision, c.key) for c in rest] == [
                (c.revision, c.key) for c in every[first : first + len(rest)]
            ]


async def test_a_watcher_of_a_revision_of_the_future_waits_for_it() -> None:
    store, _ = make()
    watching = asyncio.create_task(collect(store, 1, since=2))
    for name in ("a", "b", "c"):
        await asyncio.sleep(0.01)
        await store.create(guest(name))
    assert [c.key for c in await watching] == ["guest/c"]


async def test_however_slow_a_watcher_is_it_holds_one_batch() -> None:
    store, consensus = make()
    for index in range(2_000):
        consensus.state.apply(index, Txn().put(guest("g")).message.SerializeToString())
    changes: Any = store.watch(from_revision=0)
    assert (await anext(changes)).revision == 1
    held = [
        len(value) for value in changes.ag_frame.f_locals.values() if isinstance(value, list | tuple) and value != ()
    ]
    assert held
    assert max(held) <= 256
    rest = [(await anext(changes)).revision for _ in range(1_999)]
    assert rest == list(range(2, 2_001))


async def test_a_watcher_is_woken_once_for_all_that_came_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    store, consensus = make()
    woken = 0
    wake = store._wake

    def counted() -> None:
        nonlocal woken
        woken += 1
        wake()

    monkeypatch.setattr(store, "_wake", counted)
    watching = asyncio.create_task(collect(store, 100))
    await asyncio.sleep(0)
    for index in range(100):
        consensus.state.apply(index, Txn().put(guest(f"g{index}")).message.SerializeToString())
    await watching
    assert woken == 1


async def test_a_full_store_says_so_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manager.store.rules.QUOTA_BYTES", 100)
    store, _ = make()
    with pytest.raises(GugusError, match=r"asked for; 100 is the most\. Delete what is not needed") as error:
        await store.create(guest("web"))
    assert (error.value.code, error.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL")


async def test_the_outcome_of_a_proposal_that_failed_is_known_to_its_retry() -> None:
    store, consensus = make()
    await store.create(guest("web"))
    consensus.lose_answers = True
    for request in ("r1", "r2"):
        with pytest.raises(ProposalTimeout):
            await store.create(guest("web" if request == "r1" else "db"), request_id=request)
    consensus.lose_answers = False
    await store.delete(guest_pb2.Guest, "web")
    with pytest.raises(GugusError) as error:
        await store.create(guest("web"), request_id="r1")
    assert error.value.reason == "GUEST_ALREADY_EXISTS", "it failed when it was applied, and its answer was lost"
    assert (await store.create(guest("db"), request_id="r2")).meta.revision == 2


async def test_a_watcher_too_slow_is_told_so() -> None:
    store, _ = make(history_changes=2)
    for name in ("a", "b", "c", "d"):
        await store.create(guest(name))
    with pytest.raises(Compacted):
        await collect(store, 1, since=1)


async def test_an_installed_snapshot_ends_watchers_that_are_behind() -> None:
    store, consensus = make()
    other = StoreState()
    ahead = Store(LocalConsensus(other), other)
    for name in ("a", "b", "c"):
        await ahead.create(guest(name))
    await store.create(guest("a"))
    watching = asyncio.create_task(collect(store, 1, since=1))
    await asyncio.sleep(0.01)
    consensus.state.restore(other.snapshot())
    with pytest.raises(Compacted):
        await watching


async def test_changes_applied_in_another_thread_wake_watchers() -> None:
    store, consensus = make()
    watching = asyncio.create_task(collect(store, 50))
    await asyncio.sleep(0)

    def work() -> None:
        for index in range(50):
            consensus.state.apply(index, Txn().put(guest(f"g{index}")).message.SerializeToString())

    thread = threading.Thread(target=work)
    thread.start()
    changes = await watching
    thread.join()
    assert [c.revision for c in changes] == list(range(1, 51))


def test_a_message_that_is_not_stored_is_refused() -> None:
    with pytest.raises(TypeError, match="not stored"):
        kinds.kind_of(guest_pb2.GuestSpec)  # type: ignore[arg-type]
