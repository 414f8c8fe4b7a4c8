"""A disk that fails stops its member; a disk that is full only stops writes, and only until there is room."""

import asyncio
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from manager.consensus import Consensus, ConsensusError, Limits, NotLeader, Role, Unavailable, actor, journal
from manager.consensus.disk import FolderDisk
from tests.unit.consensus.conftest import Cluster
from tests.unit.consensus.test_cluster import NAMES, leader_of, until

SMALL = Limits(segment_bytes=20_000)


class FaultyDisk(FolderDisk):
    """A real folder that fails when told to, by the member's name in its path."""

    full: ClassVar[set[str]] = set()
    failing: ClassVar[set[str]] = set()

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.member = folder.name.removeprefix("data-")

    def allocate(self, name: str, size: int) -> None:
        if self.member in self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().allocate(name, size)

    def sync(self, name: str) -> None:
        if self.member in self.failing:
            raise OSError(errno.EIO, "Input/output error")
        super().sync(name)


@pytest.fixture(autouse=True)
def faulty_disks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(actor, "FolderDisk", FaultyDisk)
    monkeypatch.setattr(journal, "LOOK_FOR_ROOM_S", 0.1)
    yield
    FaultyDisk.full.clear()
    FaultyDisk.failing.clear()


async def fill(member: Consensus, name: str) -> int:
    """Write until the disk is full; return how many writes were accepted."""
    FaultyDisk.full.add(name)
    accepted = list[bytes]()

    async def write_on() -> None:
        while len(accepted) < 1_000:
            accepted.append(await member.propose(b"w%d " % len(accepted) + bytes(1_000), 5))

    with pytest.raises((Unavailable, NotLeader), match=f"the disk of {name} is full|not the leader"):
        await write_on()
    return len(accepted)


async def test_a_full_disk_refuses_writes_keeps_what_it_accepted_and_resumes(cluster: Cluster) -> None:
    one = await cluster.start("n1", ["n1"], limits=SMALL)
    await leader_of(cluster)
    accepted = await fill(one, "n1")
    assert accepted > 10
    await one.read_barrier(5)
    await until(lambda: one.leadership().storage.full)
    assert one.leadership().role is Role.LEADER
    FaultyDisk.full.clear()
    await until(lambda: not one.leadership().storage.full)
    assert await one.propose(b"room again", 5) == b"ok:room again"
    await cluster.stop("n1")
    await cluster.start("n1", ["n1"], limits=SMALL)
    await leader_of(cluster)
    await until(lambda: cluster.logs["n1"].applied[-1:] == [b"room again"])
    assert len(cluster.logs["n1"].applied) == accepted + 1


async def test_a_leader_with_a_full_disk_lets_another_lead(cluster: Cluster) -> None:
    for name in NAMES:
        await cluster.start(name, NAMES, limits=SMALL)
    leader = await leader_of(cluster)
    me = str(leader.leadership().leader)
    await fill(leader, me)
    await until(lambda: any(cluster.up[n].leadership().role is Role.LEADER for n in NAMES if n != me))
    successor = await leader_of(cluster)
    assert await successor.propose(b"goes on", 5) == b"ok:goes on"
    FaultyDisk.full.clear()
    await until(lambda: cluster.logs[me].applied[-1:] == [b"goes on"])


async def test_a_failed_sync_stops_the_member_and_not_the_cluster(cluster: Cluster) -> None:
    for name in NAMES:
        await cluster.start(name, NAMES)
    leader = await leader_of(cluster)
    me = str(leader.leadership().leader)
    FaultyDisk.failing.add(me)
    with pytest.raises(ConsensusError):
        await leader.propose(b"into the void", 2)
    await until(lambda: leader.leadership().role is Role.STOPPED)
    assert "Input/output error" in str(leader.leadership().failure)
    async with asyncio.timeout(1):
        with pytest.raises(Unavailable, match="stopped"):
            await leader.propose(b"x", 5)
    del cluster.up[me]
    successor = await leader_of(cluster)
    assert await successor.propose(b"without it", 5) == b"ok:without it"
    await leader.stop()
