"""The long run's own parts: which faults it plays, and what it tells at the end."""

import argparse

import pytest

from lab.api import LabError
from tests.lab.rounds.__main__ import chosen, summary
from tests.lab.rounds.kinds import KINDS
from tests.lab.rounds.play import Outcome


def names(hosts: int, rounds: int, seed: int = 1, only: tuple[str, ...] = ()) -> list[str]:
    options = argparse.Namespace(seed=seed, rounds=rounds, only=only)
    return [kind.name for kind, _ in chosen(options, hosts)]


def test_every_kind_has_its_turn_before_one_has_a_second() -> None:
    played = names(5, 2 * len(KINDS))
    assert sorted(played[: len(KINDS)]) == sorted(kind.name for kind in KINDS)
    assert sorted(played[len(KINDS) :]) == sorted(played[: len(KINDS)])
    assert played[: len(KINDS)] != played[len(KINDS) :]


def test_a_seed_plays_the_same_faults_again() -> None:
    assert names(5, 30, seed=7) == names(5, 30, seed=7) != names(5, 30, seed=8)
    options = argparse.Namespace(seed=7, rounds=3, only=())
    assert [rng.random() for _, rng in chosen(options, 5)] == [rng.random() for _, rng in chosen(options, 5)]


def test_three_hosts_never_lose_two_but_to_lose_the_majority() -> None:
    played = {*names(3, 100)}
    assert "majority-lost" in played
    assert not played & {"two-hosts", "another-meanwhile"}
    with pytest.raises(LabError, match="no kind of fault"):
        names(3, 1, only=("two-hosts",))


def test_what_is_told_at_the_end() -> None:
    found = [Outcome("power-cut", ["n1"], 12.5, 1.0), Outcome("brief-cut", ["n2"], None, 3.0)]
    told = summary(4, found, "")
    assert (told["rounds"], told["recovered_max_s"], told["well_max_s"], told["violated"]) == (2, 12.5, 3.0, None)
    assert summary(4, [], "Violated: two copies")["violated"] == "Violated: two copies"
