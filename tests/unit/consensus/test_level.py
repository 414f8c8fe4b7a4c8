"""Levels: when the cluster's is raised, and who may not go on."""

import pytest

from manager.consensus import level
from manager.consensus.level import Levels, WrongRelease, refused_range

VOTERS = ["n1", "n2", "n3"]


@pytest.fixture(autouse=True)
def release(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that knows levels 2 to 4."""
    monkeypatch.setattr(level, "LEVEL", 4)
    monkeypatch.setattr(level, "OLDEST_LEVEL", 2)


def test_the_level_is_raised_to_what_all_connected_voters_can_apply() -> None:
    levels = Levels(2)
    assert levels.due("n1", VOTERS) is None, "nobody has said anything"
    levels.heard("n2", 4)
    levels.heard("n3", 3)
    assert levels.due("n1", VOTERS) == 3
    levels.apply(3)
    assert levels.due("n1", VOTERS) is None
    levels.heard("n3", 9)
    assert levels.due("n1", VOTERS) == 4, "no further than ours"
    levels.heard("n3", 0)
    assert levels.due("n1", VOTERS) is None, "who is away may come back as an older release"
    assert levels.due("n1", ["n1"]) == 4, "alone, one needs to ask nobody"


def test_a_level_never_falls() -> None:
    levels = Levels(3)
    levels.apply(2)
    assert levels.level == 3


@pytest.mark.parametrize(
    ("at", "why"),
    [
        (5, "the cluster is at level 5; this release knows levels up to 4: install the release"),
        (1, "the cluster is at level 1; this release needs level 2 at least: upgrade through the releases between"),
    ],
)
def test_a_release_that_cannot_apply_the_clusters_level_does_not_go_on(at: int, why: str) -> None:
    with pytest.raises(WrongRelease, match=why):
        Levels(at)


def test_a_raise_beyond_what_we_know_stops_us() -> None:
    levels = Levels(4)
    with pytest.raises(WrongRelease):
        levels.apply(5)
    assert levels.level == 4


def test_peers_without_a_common_level_refuse_one_another() -> None:
    assert refused_range(4, 2) == refused_range(2, 1) == refused_range(9, 4) == ""
    assert refused_range(1, 1) == "its release knows levels up to 1, ours needs 2 at least: upgrade it"
    assert refused_range(9, 5) == "its release needs level 5 at least, ours knows up to 4: upgrade ours first"
