"""A finding is told once when it lasts, and its end once when it stays away, however it flaps."""

import itertools
from collections.abc import Iterable

from gugus.cluster.v1.cluster_pb2 import Finding
from gugus.cluster.v1.event_pb2 import SEVERITY_ERROR, SEVERITY_WARNING
from hypothesis import given
from hypothesis import strategies as st

from manager.damping import HOLD_S, QUIET_S, Damper, key_of

STEP_S = 5.0
AWAY = Finding(reason="MEMBER_AWAY", about="node/n2", severity=SEVERITY_WARNING)
SLOW = Finding(reason="DISK_SLOW", about="node/n2", severity=SEVERITY_WARNING)
STALLS = Finding(reason="DISK_SLOW", about="node/n2", severity=SEVERITY_ERROR)


class World:
    """What is stored, a clock, and who acts."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.open: list[Finding] = []
        self.told: list[str] = []
        self.damper = Damper()

    def look(self, *found: Finding, times: int = 1) -> list[str]:
        """Look so often; return what was told."""
        before = len(self.told)
        for _ in range(times):
            self.now_s += STEP_S
            begun, ended = self.damper.step(self.open, found, self.now_s)
            gone = {key_of(finding) for finding in (*begun, *ended)}
            self.open = [finding for finding in self.open if key_of(finding) not in gone] + begun
            self.told += [f"{f.reason}:{f.severity}" for f in begun] + [f"{f.reason} ended" for f in ended]
        return self.told[before:]


def test_it_is_told_once_when_it_has_lasted_and_its_end_when_it_stays_away() -> None:
    world = World()
    assert world.look(AWAY, times=2) == []
    assert world.look(AWAY) == ["MEMBER_AWAY:2"]
    assert world.look(AWAY, times=100) == []
    assert world.look(times=int(QUIET_S / STEP_S) - 1) == []
    assert world.look() == ["MEMBER_AWAY ended"]
    assert world.look(times=100) == []


def test_a_restart_is_no_alarm() -> None:
    world = World()
    assert world.look(AWAY, times=int(HOLD_S / STEP_S)) == []
    assert world.look(times=10) == []


def test_what_comes_and_goes_is_one_alarm() -> None:
    world = World()
    for _ in range(50):
        world.look(AWAY, times=2)
        world.look(times=1)
    assert world.told == ["MEMBER_AWAY:2"]


def test_each_return_makes_the_next_end_later() -> None:
    world, ends = World(), []
    for _ in range(4):
        world.look(AWAY, times=3)
        began_s = world.now_s
        while not world.look():
            pass
        ends.append(world.now_s - began_s)
    assert ends == [QUIET_S, 2 * QUIET_S, 4 * QUIET_S, 8 * QUIET_S]


def test_it_is_told_again_when_it_becomes_worse_and_not_when_it_becomes_better() -> None:
    world = World()
    assert world.look(SLOW, times=3) == ["DISK_SLOW:2"]
    assert world.look(STALLS, times=10) == ["DISK_SLOW:3"]
    assert world.look(SLOW, times=10) == []
    assert world.look(times=100) == ["DISK_SLOW ended"]


def test_the_next_acting_manager_tells_nothing_twice_and_ends_what_it_finds_gone() -> None:
    world = World()
    world.look(AWAY, times=3)
    world.damper = Damper()
    assert world.look(AWAY, times=20) == []
    world.damper = Damper()
    assert world.look(times=100) == ["MEMBER_AWAY ended"]


@given(st.lists(st.tuples(st.sampled_from(["", "away", "slow", "stalls", "die"]), st.integers(1, 30)), max_size=40))
def test_begins_and_ends_alternate_whatever_happens(story: Iterable[tuple[str, int]]) -> None:
    world, found = World(), {"": [], "die": [], "away": [AWAY, SLOW], "slow": [SLOW], "stalls": [STALLS]}
    for what, times in story:
        if what == "die":
            world.damper = Damper()
        world.look(*found[what], times=times)
    away = [text for text in world.told if "AWAY" in text]
    assert all((" ended" in text) == bool(index % 2) for index, text in enumerate(away))
    slow = [text for text in world.told if "SLOW" in text]
    assert all(first != second for first, second in itertools.pairwise(slow))
