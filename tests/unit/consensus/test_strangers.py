"""A voter that was away while others were added and removed finds its way back, whoever leads now."""

from functools import partial

from manager.consensus import Consensus, Role
from tests.unit.consensus.conftest import Cluster
from tests.unit.consensus.test_cluster import leader_of, until

NAMES = ["n1", "n2", "n3"]


def reaches(member: Consensus, names: set[str]) -> bool:
    view = member.leadership()
    return names <= {peer.name for peer in view.peers if peer.connected} | {view.leader}


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
            await leader.transfer_leadership("n4")
            await until(lambda: cluster.up["n4"].leadership().role is Role.LEADER)
            leader = await leader_of(cluster)
        await until(partial(reaches, leader, {"n4", "n5"}))
        await leader.remove_voter(gone)
        await cluster.stop(gone)
    leader = await leader_of(cluster)
    await leader.propose(b"new times", 5)
    await cluster.start("n3", NAMES)
    await until(lambda: cluster.logs["n3"].applied[-1:] == [b"new times"])
    assert [voter.name for voter in cluster.up["n3"].leadership().voters] == ["n3", "n4", "n5"]
