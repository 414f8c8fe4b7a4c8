"""Locks of disks in the simulation: who is refused, in the agent's words, and when a storage gives a lock back."""

import pytest
from gugus.agent.v1.guest_pb2 import GuestSpec

from simulator.clockwork import S
from simulator.host import Host
from simulator.rules import Rules
from simulator.storage import Locks, Pool
from simulator.world import Setup, World
from tests.simulation.ha.world import node


def world_of(pool: Pool, rules: Rules | None = None) -> World:
    nodes = [node(name, devices=False, pools=[pool.name]) for name in ("n1", "n2", "n3")]
    return World(Setup(nodes=nodes, voters=["n1"], pools=[pool]), 0, rules=rules)


def spec(pool: str) -> GuestSpec:
    made = GuestSpec(name="web", uid="web")
    made.disks.add(name="disk", pool=pool)
    return made


def refused(world: World, host: Host, generation: int, pool: str = "it") -> str:
    error = world.storage.claim(host, spec(pool), generation)
    return error.reason if error else ""


@pytest.mark.parametrize("locks", [Locks.HOST, Locks.LEASE])
def test_a_disk_is_locked_while_its_guests_process_lives_and_its_generation_stays(locks: Locks) -> None:
    world = world_of(Pool("it", locks))
    one, other = world.hosts["n1"], world.hosts["n2"]
    assert not refused(world, one, 5)
    error = world.storage.claim(other, spec("it"), 6)
    assert error is not None
    assert "is in use on host n1 (generation 5)" in error.message
    world.storage.release("n1", "web")
    assert refused(world, other, 4) == "STALE_GENERATION"
    assert not refused(world, other, 6)
    assert refused(world, one, 7) == "DISK_IN_USE"
    assert not world.storage.two_writers("web")


def test_a_pool_that_nobody_declared_is_as_a_folder_on_nfs() -> None:
    world = world_of(Pool("it"))
    assert not refused(world, world.hosts["n1"], 1, "other")
    world.cut_off("n1", off=True)
    world.run(89)
    assert refused(world, world.hosts["n2"], 2, "other") == "DISK_IN_USE"
    world.run(2)
    assert not refused(world, world.hosts["n2"], 2, "other")


def test_who_is_not_heard_for_long_can_write_no_more_once_another_one_does() -> None:
    world = world_of(Pool("it", Locks.LEASE, 20 * S))
    one, other = world.hosts["n1"], world.hosts["n2"]
    assert not refused(world, one, 1)
    one.freeze()
    world.run(21)
    one.thaw()
    assert refused(world, other, 2) == "DISK_IN_USE"  # nobody wanted it meanwhile: it is its own still
    world.cut_off("n1", off=True)
    world.run(21)
    assert not refused(world, other, 2)
    assert not world.storage.two_writers("web")
    assert "guest/web: n1 has lost the lock of its disk in it" in "\n".join(world.story)


def test_a_server_hears_of_an_end_only_from_a_host_that_it_hears() -> None:
    world = world_of(Pool("it", Locks.LEASE, 20 * S))
    assert not refused(world, world.hosts["n1"], 1)
    world.cut_off("n1", off=True)
    world.storage.release("n1", "web")
    assert refused(world, world.hosts["n2"], 2) == "DISK_IN_USE"
    world.cut_off("n1", off=False)
    assert not refused(world, world.hosts["n2"], 2)


@pytest.mark.parametrize(("locks", "mind"), [(Locks.NONE, True), (Locks.HOST, False), (Locks.LEASE, False)])
def test_without_locks_or_when_nobody_minds_them_there_are_two_writers(locks: Locks, *, mind: bool) -> None:
    world = world_of(Pool("it", locks), Rules(storage_locks=mind))
    assert not refused(world, world.hosts["n1"], 1)
    assert not refused(world, world.hosts["n2"], 2)
    assert world.storage.two_writers("web") == "the disk of web in it is written to from n1 and n2"
