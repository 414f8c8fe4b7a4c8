"""Migrations amid faults: a guest under HA never runs twice, at whatever moment managers, sources and targets fail."""

from collections.abc import Callable

import pytest

from simulator.rules import Rules
from tests.simulation.ha.test_ha_simulation import broken
from tests.simulation.ha.world import World

SEEDS = 120
MUTANT_SEEDS = 150
STORM_S = 120
CALM_S = 110
"""After the last fault: an operation's patience, then as in the storms without migrations."""

MOVING = 0.02
"""Chance, five times a second, that someone asks for the migration of a guest."""


def storm(seed: int, rules: Rules | None = None) -> World:
    world = World(seed, rules=rules, moving=MOVING)
    world.run(10)
    world.storm(STORM_S)
    world.moving = 0.0  # no more are asked for
    world.rules = Rules()
    world.run(CALM_S)
    return world


def calm(seed: int) -> World:
    world = World(seed, moving=MOVING, calm=True)
    world.run(120)
    return world


@pytest.mark.parametrize("start", range(0, SEEDS, 40))
def test_no_storm_makes_two_copies_of_a_guest_that_moves(start: int) -> None:
    for seed in range(start, start + 40):
        world = storm(seed)
        assert world.placed(), "\n".join([f"seed {seed}", *world.story[-40:]])


def test_guests_do_move() -> None:
    stories = "\n".join("\n".join(calm(seed).story) for seed in range(5))
    assert stories.count("is on") > 10


def test_guests_are_found_whose_sources_word_never_comes() -> None:
    assert sum(": MOVED" in line for seed in range(30) for line in storm(seed).story) > 3


def test_a_seed_repeats_itself() -> None:
    assert storm(3).story == storm(3).story


MUTANTS: dict[str, tuple[Rules, Callable[[int, Rules], World]]] = {
    "recovery ignores migrations": (Rules(recovery_minds_migrations=False), storm),
    "a late start is not refused by a host that has let go": (Rules(given_is_stale=False), storm),
    "the target runs as soon as it is complete": (Rules(hand_over=False), storm),
    "the source says that it is over before it has let go": (Rules(word_after_arrival=False), storm),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_caught(name: str) -> None:
    rules, run = MUTANTS[name]
    assert broken(lambda seed: run(seed, rules), range(MUTANT_SEEDS)), name
