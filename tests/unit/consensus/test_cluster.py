"""Members on loopback: real TLS, real disks, real threads."""

import asyncio
import time
from collections.abc import Callable

import pytest

from manager.consensus import (
    MAX_PAYLOAD_BYTES,
    Consensus,
    ConsensusError,
    Leadership,
    MembershipRefused,
    NotLeader,
    PayloadTooLarge,
    ProposalTimeout,
    Role,
    Unavailable,
)
from tests.unit.consensus.conftest import Cluster

NAMES = ["n1", "n2", "n3"]


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.01)


async def leader_of(cluster: Cluster) -> Consensus:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        for member in cluster.up.values():
            if member.leadership().role is Role.LEADER:
                try:
                    await member.read_barrier(1)
                except ConsensusError:
                    continue
                return member
        await asyncio.sleep(0.02)
    raise AssertionError("no leader")


async def test_acknowledged_writes_survive_the_leader_and_a_restart_of_all(cluster: Cluster) -> None:
    for name in NAMES:
        await cluster.start(name, NAMES)
    leader = await leader_of(cluster)
    for i in range(20):
        assert await leader.propose(b"a%d" % i, 5) == b"ok:a%d" % i
    first = leader.leadership().leader
    assert first is not None
    await cluster.stop(first)
    second = await leader_of(cluster)
    assert await second.propose(b"after", 5) == b"ok:after"
    await cluster.start(first, NAMES)
    await until(lambda: cluster.logs[first].applied[-1:] == [b"after"])
    for name in NAMES:
        await cluster.stop(name)
    for name in NAMES:
        await cluster.start(name, NAMES)
    await leader_of(cluster)
    await until(
        lambda: all(log.applied == [b"a%d" % i for i in range(20)] + [b"after"] for log in cluster.logs.values())
    )


async def test_a_follower_names_the_leader_instead_of_forwarding(cluster: Cluster) -> None:
    for name in NAMES:
        await cluster.start(name, NAMES)
    leader = (await leader_of(cluster)).leadership().leader
    follower = next(n for n in NAMES if n != leader)
    await until(lambda: cluster.up[follower].leadership().leader == leader)
    with pytest.raises(NotLeader) as refused:
        await cluster.up[follower].propose(b"x", 2)
    assert refused.value.leader == leader
    with pytest.raises(NotLeader):
        await cluster.up[follower].read_barrier(2)


async def test_without_a_majority_a_write_is_unknown_and_a_read_is_refused(cluster: Cluster) -> None:
    for name in NAMES:
        await cluster.start(name, NAMES)
    leader = await leader_of(cluster)
    me = leader.leadership().leader
    for name in NAMES:
        if name != me:
            await cluster.stop(name)
    with pytest.raises(ProposalTimeout):
        await leader.propose(b"lost?", 5)
    with pytest.raises((NotLeader, Unavailable)):
        await leader.read_barrier(2)
    await until(lambda: leader.leadership().role is not Role.LEADER)


async def test_a_cluster_grows_from_one_to_three_and_shrinks_again(cluster: Cluster) -> None:
    seen: list[Leadership] = []
    one = await cluster.start("n1", ["n1"])
    one.subscribe(seen.append)
    await leader_of(cluster)
    await one.propose(b"alone", 5)
    await cluster.start("n2", ["n1", "n2"], joining=True)
    await one.add_voter(cluster.member("n2"), 5)
    await cluster.start("n3", NAMES, joining=True)
    await one.add_voter(cluster.member("n3"), 5)
    await one.propose(b"three", 5)
    await until(lambda: all(log.applied == [b"alone", b"three"] for log in cluster.logs.values()))
    await until(lambda: len(cluster.up["n3"].leadership().voters) == 3)
    assert [len(view.voters) for view in seen if view.role is Role.LEADER][-1] == 3
    with pytest.raises(MembershipRefused, match="hand leadership over"):
        await one.remove_voter("n1")
    await one.transfer_leadership("n2")
    await until(lambda: cluster.up["n2"].leadership().role is Role.LEADER)
    two = await leader_of(cluster)
    await two.remove_voter("n1")
    await two.remove_voter("n3")
    await cluster.stop("n1")
    await cluster.stop("n3")
    assert await two.propose(b"alone again", 5) == b"ok:alone again"
    await cluster.stop("n2")
    await cluster.start("n2", NAMES)
    again = await leader_of(cluster)
    assert [v.name for v in again.leadership().voters] == ["n2"]


async def test_an_unreachable_newcomer_is_not_added(cluster: Cluster) -> None:
    one = await cluster.start("n1", ["n1"])
    await leader_of(cluster)
    with pytest.raises(MembershipRefused, match=r"n2 at 127.0.0.1:.* is not reached"):
        await one.add_voter(cluster.member("n2"), 0.3)
    assert await one.propose(b"still works", 5) == b"ok:still works"


async def test_a_payload_of_48_kib_is_refused_with_its_size(cluster: Cluster) -> None:
    one = await cluster.start("n1", ["n1"])
    await leader_of(cluster)
    await one.propose(bytes(MAX_PAYLOAD_BYTES), 5)
    with pytest.raises(PayloadTooLarge, match="49152"):
        await one.propose(bytes(48 * 1024), 5)
