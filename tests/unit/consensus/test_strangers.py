"""Whom a member listens to: one that was away finds its way back, one that lost its folder is another."""

import asyncio
import shutil
import time
from contextlib import suppress
from functools import partial

import pytest

from manager.consensus import Consensus, ConsensusError, MembershipRefused, Role
from tests.unit.consensus.conftest import Cluster
from tests.unit.consensus.test_cluster import leader_of, until

NAMES = ["n1", "n2", "n3"]


def reaches(member: Consensus, names: set[str]) -> bool:
    view = member.leadership()
    return names <= {peer.name for peer in view.peers if peer.connected} | {view.leader}


async def hand_over(leader: Consensus, cluster: Cluster, to: str) -> None:
    """Ask until it is so, as the managers do: a vote may be lost, or n4's log be behind by what was just written."""
    end = time.monotonic() + 10
    while cluster.up[to].leadership().role is not Role.LEADER:
        assert time.monotonic() < end, "it was not handed over"
        with suppress(ConsensusError):
            await leader.transfer_leadership(to)
        await asyncio.sleep(1)


async def test_a_voter_that_knows_none_of_the_others_any_more_catches_up(cluster: Cluster) -> None:
    for name in NAMES:
        await cluster.start(name, NAMES)
    await leader_of(cluster)
    await cluster.stop("n3")
    for fresh in ("n4", "n5"):
        await cluster.start(fresh, [*NAMES, fresh], joining=True)
        leader = await leader_of(cluster)
        await leader.add_voter(cluster.member(fresh), 5)
    for gone in ("n1", "n2"):
        leader = await leader_of(cluster)
        if leader.leadership().leader == gone:
            await hand_over(leader, cluster, "n4")
            leader = await leader_of(cluster)
        await until(partial(reaches, leader, {"n4", "n5"}))
        await leader.remove_voter(gone)
        await cluster.stop(gone)
    leader = await leader_of(cluster)
    await leader.propose(b"new times", 5)
    await cluster.start("n3", NAMES)
    await until(lambda: cluster.logs["n3"].applied[-1:] == [b"new times"])
    await until(lambda: [v.name for v in cluster.up["n3"].leadership().voters] == ["n3", "n4", "n5"])  # a tick later


async def test_a_voter_that_lost_its_folder_is_another_member_until_it_is_added_anew(cluster: Cluster) -> None:
    one = await cluster.start("n1", ["n1"])
    await leader_of(cluster)
    for fresh in ("n2", "n3"):
        await cluster.start(fresh, ["n1", fresh], joining=True)
        await one.add_voter(cluster.member(fresh), 5)
    await one.propose(b"before", 5)
    await cluster.stop("n3")
    shutil.rmtree(cluster.folder / "data-n3")
    await cluster.start("n3", NAMES, joining=True)
    await until(lambda: reaches(one, {"n2"}))
    await asyncio.sleep(1)
    await cluster.stop("n2")
    with pytest.raises(ConsensusError):
        await one.propose(b"two of three, but not the three that were", 2)
    await cluster.start("n2", NAMES)
    leader = await leader_of(cluster)
    with pytest.raises(
        MembershipRefused, match=r"n3 is a voter, but has lost its data folder: remove it, then add it again"
    ):
        await leader.add_voter(cluster.member("n3"), 5)
    await leader.remove_voter("n3")
    await leader.add_voter(cluster.member("n3"), 5)
    await leader.propose(b"after", 5)
    await until(lambda: cluster.logs["n3"].applied[-1:] == [b"after"])
