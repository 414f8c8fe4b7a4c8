"""The real consensus core under seeded faults: nothing is lost, nobody diverges, everybody catches up."""

import pytest

from tests.simulation.consensus.broken import BROKEN
from tests.simulation.consensus.world import Faults, Violation, World

SEEDS = 60
"""Enough for each change; `python -m tests.simulation --seeds N` runs as many as one likes."""


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_promise_holds_under_crashes_partitions_and_changes_of_voters(seed: int) -> None:
    World(seed, Faults()).run()


@pytest.mark.parametrize(("rule", "seed"), [("h1", 1), ("h2", 10), ("votes", 42)])
def test_without_one_rule_the_simulator_sees_it_broken(rule: str, seed: int) -> None:
    with pytest.raises(Violation):
        World(seed, Faults(membership=False), BROKEN[rule]).run()


def test_one_seed_gives_one_run() -> None:
    runs = []
    for _ in range(2):
        world = World(5, Faults())
        world.run()
        runs.append((world.acked, world.leaders, world.history.digests))
    assert runs[0] == runs[1]
