"""What a judge makes of two processes of one guest."""

from dataclasses import dataclass

from lab.overlap import EXECUTES_NS, STOPPED_NS, Overlaps

SOURCE, TARGET = 10, 20


@dataclass(frozen=True)
class Process:
    guest: str
    pid: int


class World:
    """Two processes of `web`; the second was started to receive it."""

    def __init__(self, incoming: frozenset[int] = frozenset({TARGET})) -> None:
        self.ns = {SOURCE: 10**9, TARGET: 10**6}
        self.overlaps = Overlaps(lambda pid: self.ns[pid], lambda pid: pid in incoming)

    def idle(self, *pids: int) -> set[int]:
        return self.overlaps.idle([Process("web", pid) for pid in pids or (SOURCE, TARGET)])

    def run(self, pid: int, ns: int = 2 * EXECUTES_NS) -> None:
        self.ns[pid] += ns


def test_a_guest_that_goes_over_is_one_all_the_time() -> None:
    world = World()
    assert world.idle(SOURCE) == set()
    assert world.idle() == {TARGET}
    world.run(SOURCE)
    assert world.idle() == {TARGET}
    world.run(TARGET)
    assert world.idle() == {SOURCE}
    world.run(TARGET)
    world.run(SOURCE, STOPPED_NS // 2)
    assert world.idle() == {SOURCE}
    assert world.idle(TARGET) == set()


def test_a_source_that_runs_on_beside_its_target_is_a_second_copy() -> None:
    world = World()
    world.idle()
    world.run(TARGET)
    world.idle()
    world.run(SOURCE)
    assert world.idle() == set()


def test_two_that_nobody_moved_are_two_copies() -> None:
    assert World(incoming=frozenset()).idle() == set()


def test_a_guest_that_comes_back_is_one_copy() -> None:
    world = World(incoming=frozenset({SOURCE, TARGET}))
    assert world.idle() == {TARGET}
    world.run(TARGET)
    assert world.idle() == {SOURCE}


def test_processes_of_containers_and_of_the_simulator_are_left_alone() -> None:
    assert World().overlaps.idle([Process("db", 0), Process("db", 0)]) == set()
