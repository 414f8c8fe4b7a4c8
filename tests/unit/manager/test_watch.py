"""Watching through the API: where to go on, what clients may see, and what a newer release has stored."""

from collections.abc import Sequence
from contextlib import aclosing

import pytest
from gugus.cluster.v1.cluster_pb2 import Token
from gugus.cluster.v1.event_pb2 import WatchResponse
from gugus.cluster.v1.project_pb2 import Project
from gugus.cluster.v1.rule_pb2 import Rule

from client.sdk import Gugus
from common.errors import GugusError
from manager.store import Txn
from manager.store.kinds import new
from tests.unit.manager.cluster import Cluster

OURS = ("rule/watched", "project/watched")
"""Of kinds that no controller writes to."""


async def watched(gugus: Gugus, count: int, prefixes: Sequence[str] = OURS, since: int = 0) -> list[WatchResponse]:
    """Return the first messages of a watch."""
    found = list[WatchResponse]()
    async with aclosing(gugus.events.watch(prefixes, from_revision=since)) as changes:
        async for change in changes:
            found.append(change)
            if len(found) == count:
                break
    return found


def both() -> Txn:
    return Txn().put(new(Rule, "watched")).put(new(Project, "watched"))


def told(changes: Sequence[WatchResponse]) -> list[tuple[str, int, int]]:
    return [(change.key, change.revision, change.resume) for change in changes]


async def test_every_message_says_where_to_go_on_without_a_gap(cluster: Cluster) -> None:
    first = (await cluster.store.txn(both())).revision
    async with cluster.client() as gugus:
        present = await watched(gugus, 3)
        assert told(present[:2]) == [("project/watched", first, 0), ("rule/watched", first, 0)]
        assert present[2].synced
        assert present[2].resume == present[2].revision >= first
        second = (await cluster.store.txn(both())).revision
        changes = await watched(gugus, 2, since=present[2].resume)
        assert told(changes) == [("rule/watched", second, second - 1), ("project/watched", second, second)]
        assert told(await watched(gugus, 2, since=changes[0].resume)) == told(changes)


async def test_change_that_a_client_may_not_see_hides_no_other_one(cluster: Cluster) -> None:
    since = cluster.store.revision
    txn = Txn().put(new(Rule, "watched")).put(new(Token, "watched"))
    revision = (await cluster.store.txn(txn)).revision
    async with cluster.client() as gugus:
        for prefixes in ((), ("",), ("rule", "t")):
            seen = await watched(gugus, 1, prefixes, revision - 1)
            assert told(seen) == [("rule/watched", revision, revision)]
        with pytest.raises(GugusError, match="begins no key") as caught:
            await watched(gugus, 1, ("rule/", "token/"), since)
        assert caught.value.field == "prefixes[1]"


async def test_prefix_of_a_kind_that_is_not_known_here_is_refused_with_those_that_are(cluster: Cluster) -> None:
    async with cluster.client() as gugus:
        with pytest.raises(GugusError) as caught:
            await watched(gugus, 1, ("guests/",))
    assert (caught.value.reason, caught.value.field) == ("INVALID_ARGUMENT", "prefixes[0]")
    assert "guest, " in caught.value.remedy
    assert "token" not in caught.value.remedy


async def test_objects_of_a_newer_release_are_passed_over(cluster: Cluster) -> None:
    since = cluster.store.revision
    newer = both()
    newer.message.puts.add(key="rota/x", value=b"\xff\xff")
    revision = (await cluster.store.txn(newer)).revision
    async with cluster.client() as gugus:
        seen = await watched(gugus, 2, ("rule/watched", "project/watched"), since)
        assert told(seen) == [("rule/watched", revision, revision - 1), ("project/watched", revision, revision)]
        async with aclosing(gugus.events.watch()) as changes:
            async for change in changes:
                assert not change.key.startswith("rota/")
                if change.synced:
                    break
        with pytest.raises(GugusError, match="begins no key"):
            await watched(gugus, 1, ("rota/",))
