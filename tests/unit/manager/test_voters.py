"""Voters come and go one at a time, under load, with whatever killed half-way, and nobody who left disturbs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE

from client.sdk import Gugus
from common.errors import GugusError, unavailable
from manager.consensus import Consensus, MembershipRefused, ProposalTimeout
from manager.controllers import voters as voters_controller
from manager.controllers.voters import Voters
from tests.unit.manager.cluster import LOOK_S
from tests.unit.manager.hosts import Hosts, hosts

ELECTION_S = 1.6


@pytest.fixture(autouse=True)
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voters_controller, "PERIOD_S", 0.2)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Hosts]:
    async with hosts(tmp_path, 3) as cluster:
        yield cluster


@pytest.fixture
async def gugus(cluster: Hosts) -> AsyncIterator[Gugus]:
    async with cluster.client("n1", "n2", "n3") as gugus:
        yield gugus


@contextlib.asynccontextmanager
async def writing(cluster: Hosts, *managers: str, writers: int = 3) -> AsyncIterator[list[str]]:
    """Write without a pause; in the end, nothing that was acknowledged may be missing. An error fails the test."""
    acknowledged = list[str]()
    over = asyncio.Event()

    async def write(gugus: Gugus) -> None:
        while not over.is_set():
            acknowledged.append((await gugus.cluster.create_token()).id)

    async with cluster.client(*managers) as gugus:
        tasks = [asyncio.create_task(write(gugus)) for _ in range(writers)]
        try:
            yield acknowledged
        finally:
            over.set()
            await asyncio.gather(*tasks)
        stored = {token.meta.name for token in await gugus.cluster.tokens()}
    assert not set(acknowledged) - stored


async def more(acknowledged: list[str], count: int = 20) -> None:
    """Return when so many more writes were acknowledged."""
    wanted = len(acknowledged) + count
    async with asyncio.timeout(20):
        while len(acknowledged) < wanted:  # noqa: ASYNC110 (writers have no event)
            await asyncio.sleep(LOOK_S)


async def three(cluster: Hosts, gugus: Gugus) -> None:
    await gugus.cluster.promote("n2")
    await gugus.cluster.promote("n3")
    assert cluster.in_force() == ["n1", "n2", "n3"]


async def test_one_grows_to_three_and_five_and_shrinks_back_to_one_under_load(tmp_path: Path) -> None:
    names = [f"n{index}" for index in range(1, 6)]
    async with hosts(tmp_path, 5) as cluster, cluster.client(*names) as gugus:
        async with writing(cluster, *names) as acknowledged:
            for count, name in enumerate(names[1:], 2):
                status = await gugus.cluster.promote(name)
                assert [voter.name for voter in status.voters] == names[:count]
                await more(acknowledged)
            for name in names[:4]:
                status = await gugus.cluster.demote(name)
                assert name not in [voter.name for voter in status.voters]
                await more(acknowledged)
        assert cluster.in_force() == ["n5"]
        await cluster.eventually(lambda: list(cluster.managers) == ["n5"])
        assert [cluster.node(name).status.voter for name in names] == [False] * 4 + [True]


async def test_a_voter_that_is_one_already_is_promoted_at_once(cluster: Hosts, gugus: Gugus) -> None:
    before = len(cluster.events())
    status = await gugus.cluster.promote("n1")
    assert [voter.name for voter in status.voters] == ["n1"]
    assert len(cluster.events()) == before


async def test_the_last_voter_and_an_unknown_node_are_refused(gugus: Gugus) -> None:
    for call, reason in (
        (gugus.cluster.demote("n1"), "LAST_VOTER"),
        (gugus.cluster.transfer(), "LAST_VOTER"),
        (gugus.cluster.promote("n9"), "NODE_NOT_FOUND"),
        (gugus.cluster.demote("n9"), "NODE_NOT_FOUND"),
    ):
        with pytest.raises(GugusError) as caught:
            await call
        assert caught.value.reason == reason


async def test_only_a_voter_that_is_there_takes_over(cluster: Hosts, gugus: Gugus) -> None:
    await gugus.cluster.promote("n2")
    epoch = (await gugus.cluster.status()).epoch
    with pytest.raises(GugusError) as caught:
        await gugus.cluster.transfer("n3")
    assert caught.value.reason == "NOT_A_VOTER"
    await cluster.stop_manager("n2")
    await cluster.eventually(lambda: not cluster.view("n1").peers[0].connected)
    with pytest.raises(GugusError) as caught:
        await gugus.cluster.transfer()
    assert caught.value.reason == "NOT_READY"
    assert (await gugus.cluster.status()).epoch == epoch, "n1 acted all the time"


async def test_a_demotion_that_would_lose_the_quorum_is_refused_and_changes_nothing(
    cluster: Hosts, gugus: Gugus, monkeypatch: pytest.MonkeyPatch
) -> None:
    await three(cluster, gugus)
    await cluster.stop_manager("n3")
    await cluster.eventually(lambda: not {p.name: p.connected for p in cluster.view("n1").peers}["n3"])
    with pytest.raises(GugusError) as caught:
        await gugus.cluster.demote("n2")
    assert caught.value.reason == "WOULD_LOSE_QUORUM"
    assert "n3" in caught.value.message
    assert cluster.in_force() == ["n1", "n2", "n3"]
    assert not cluster.node("n2").status.retiring
    assert [v.name for v in (await gugus.cluster.demote("n3")).voters] == ["n1", "n2"], "the lost one may go"


async def test_the_acting_manager_is_demoted_through_itself(cluster: Hosts, gugus: Gugus) -> None:
    await three(cluster, gugus)
    async with cluster.client(cluster.acting) as only:
        first = cluster.acting
        status = await only.cluster.demote(first)
    assert first not in [voter.name for voter in status.voters]
    await cluster.eventually(lambda: first not in cluster.managers)
    await cluster.eventually(lambda: not cluster.node(first).status.retiring)


async def test_leadership_is_transferred_under_load(cluster: Hosts, gugus: Gugus) -> None:
    await three(cluster, gugus)
    async with writing(cluster, "n1", "n2", "n3") as acknowledged:
        for to in ("n2", "n3", "n1"):
            status = await gugus.cluster.transfer(to)
            assert (status.leader, status.acting) == (to, to)
            await more(acknowledged)
        status = await gugus.cluster.transfer()
        assert status.acting not in ("", "n1")
        assert (await gugus.cluster.transfer(away_from="n1")).acting == status.acting, "a repetition does nothing"


async def test_a_manager_that_finds_no_successor_goes_on(
    cluster: Hosts, gugus: Gugus, monkeypatch: pytest.MonkeyPatch
) -> None:
    await three(cluster, gugus)
    monkeypatch.setattr("manager.acting.HAND_OVER_TIMEOUT_S", 0.3)

    async def refuse(*_: Any, **__: Any) -> str:
        raise MembershipRefused("n2 lacks an entry")

    monkeypatch.setattr(Consensus, "transfer_leadership", refuse)
    with pytest.raises(GugusError) as caught:
        await gugus.cluster.transfer("n2")
    assert caught.value.reason == "NOT_HANDED_OVER"
    assert "n2 lacks an entry" in caught.value.message
    await cluster.eventually(lambda: cluster.acting == "n1")
    await gugus.cluster.create_token()


async def test_a_removed_manager_that_still_runs_does_not_disturb(
    cluster: Hosts, gugus: Gugus, monkeypatch: pytest.MonkeyPatch
) -> None:
    await three(cluster, gugus)

    async def cannot(*_: Any) -> None:
        raise unavailable("AGENT_AWAY", "the agent does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(Voters, "_deactivate", cannot)
        async with cluster.client("n1") as one:
            with pytest.raises(GugusError, match="does not answer"):
                await one.cluster.demote("n3", timeout_s=1)
        assert cluster.in_force() == ["n1", "n2"]
        before = cluster.view("n1")
        async with writing(cluster, "n1", "n2") as acknowledged:
            await asyncio.sleep(3 * ELECTION_S)
            assert acknowledged
        now = cluster.view("n1")
        assert (now.term, now.leader) == (before.term, before.leader)
        assert "n3" in cluster.managers
        async with cluster.client("n3") as old:
            status = await old.cluster.status()
        assert {"NOT_A_VOTER", "NO_LEADER", "MAJORITY_LOST"} & {finding.reason for finding in status.findings}
    await cluster.eventually(lambda: "n3" not in cluster.managers)
    await cluster.eventually(lambda: not cluster.node("n3").status.retiring)


async def test_a_promotion_that_was_broken_off_is_finished_by_its_repetition(
    cluster: Hosts, gugus: Gugus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voters_controller, "PERIOD_S", 60)
    await asyncio.sleep(0.3)  # the old period is over

    async def die(*_: Any, **__: Any) -> None:
        raise ProposalTimeout("outcome unknown")

    with monkeypatch.context() as patch:
        patch.setattr(Consensus, "add_voter", die)
        with pytest.raises(GugusError):
            await gugus.cluster.promote("n2", timeout_s=1)
    assert "n2" in cluster.managers
    assert cluster.node("n2").status.retiring
    assert [v.name for v in (await gugus.cluster.promote("n2")).voters] == ["n1", "n2"]
    assert (cluster.node("n2").status.voter, cluster.node("n2").status.retiring) == (True, False)


async def test_a_promotion_that_nobody_repeats_leaves_no_manager_behind(
    cluster: Hosts, gugus: Gugus, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise MembershipRefused("n2 has caught up to 3 only; it was not added")

    monkeypatch.setattr(Consensus, "add_voter", refuse)
    with pytest.raises(GugusError) as caught:
        await gugus.cluster.promote("n2")
    assert caught.value.reason == "CHANGE_REFUSED"
    await cluster.eventually(lambda: not cluster.node("n2").status.retiring)
    await cluster.eventually(lambda: "n2" not in cluster.managers)
    assert not (cluster.folder / "n2" / "pki" / "ca.key").exists()


async def test_what_was_removed_before_a_crash_is_noted_and_stopped_by_whoever_acts(
    cluster: Hosts, gugus: Gugus
) -> None:
    """As if the manager had died between the removal and all that follows it."""
    await three(cluster, gugus)
    await cluster.managers[cluster.acting]._voters._mark("n3", retiring=True)
    await cluster.managers[cluster.acting]._consensus.remove_voter("n3")
    await cluster.eventually(lambda: not cluster.node("n3").status.voter)
    await cluster.eventually(lambda: "n3" not in cluster.managers)
    assert "VOTER_REMOVED" in [event.reason for event in cluster.events()]


async def test_a_voter_is_never_stopped_by_a_mark_that_was_left(cluster: Hosts, gugus: Gugus) -> None:
    """As if the manager had died after it had made a voter, or before it removed one."""
    await three(cluster, gugus)
    await cluster.managers[cluster.acting]._voters._mark("n3", retiring=True)
    await cluster.eventually(lambda: not cluster.node("n3").status.retiring)
    assert cluster.in_force() == ["n1", "n2", "n3"]
    assert cluster.node("n3").status.state == NODE_STATE_ONLINE
    assert "n3" in cluster.managers


async def test_the_same_change_is_joined_and_another_is_refused(cluster: Hosts, gugus: Gugus) -> None:
    first = asyncio.create_task(gugus.cluster.promote("n2"))
    await cluster.eventually(lambda: cluster.managers["n1"]._voters._changing)
    again = asyncio.create_task(gugus.cluster.promote("n2"))
    with pytest.raises(GugusError) as caught:
        await gugus.cluster.promote("n3")
    assert caught.value.reason == "CHANGE_UNDER_WAY"
    assert "promoting n2" in caught.value.message
    assert await first == await again or len((await again).voters) == 2
