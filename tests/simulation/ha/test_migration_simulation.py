"""Migrations amid faults: a guest under HA never runs twice, at whatever moment managers, sources and targets fail."""

from collections.abc import Callable

import pytest
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED

from manager.ha.migration import Word
from simulator.manager import Manager
from simulator.rules import Rules
from simulator.state import Move, Txn
from tests.simulation.ha.invariants import Broken, Watch
from tests.simulation.ha.test_ha_simulation import broken
from tests.simulation.ha.world import World, apart

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


def move_into_a_recovery(seed: int) -> World:
    """A guest is recovered, and just then someone asks for another one to go to the only node that it fits; a rule keeps them apart."""
    world = World(seed, calm=True, homes=("n1", "n2"), placement_rules=[apart("g0", "g1")])
    Watch(world, apart=("g0", "g1"))
    world.run(15)
    asked: list[Move] = []

    def ask() -> None:
        if not asked and world.committed.nodes["n1"].status.state == NODE_STATE_FENCED:
            asked.append(Move("move", "g1", "n3", "person", at_ns=world.queue.now))
            world.commit(Txn({}, {"move/move": asked[0]}))

    world.watchers.append(ask)
    world.hosts["n1"].power_off()
    world.run(60)
    assert asked
    return world


def test_who_moves_and_who_is_recovered_mind_each_other() -> None:
    for seed in range(10):
        world = move_into_a_recovery(seed)
        assert world.placed(), "\n".join([f"seed {seed}", *world.story])


def test_decisions_that_do_not_count_one_another_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Manager, "give", Manager.put)
    with pytest.raises(Broken, match="a rule keeps them apart"):
        move_into_a_recovery(0)


def test_a_late_word_of_an_earlier_move_says_nothing_of_this_one() -> None:
    world = World(0, calm=True, homes=("n1", "n2"))
    world.run(15)
    world.commit(Txn({}, {"move/move": Move("move", "g0", "n3", "person", at_ns=world.queue.now)}))
    world.run(1)
    ends = world.hosts["n1"].agent.ends
    granted = ends.leaving["g0"].generation
    ends.arrived("g0", granted - 1)
    ends.let_go("g0", granted - 1)
    world.run(0.5)
    assert world.copies("g0") == ["n1"]
    assert world.committed.guests["g0"].status.HasField("migration")
    world.run(30)
    assert world.copies("g0") == ["n3"]
    assert world.placed()


def test_nobody_listens_to_the_answer_of_a_call_that_was_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(0, calm=True, homes=("n1", "n2"))
    world.run(15)
    world.commit(Txn({}, {"move/move": Move("move", "g0", "n3", "person", at_ns=world.queue.now)}))
    world.run(1)
    moves, answers = world.hosts[world.acting].manager.moves, list[Callable[[Word], None]]()
    monkeypatch.setattr(moves, "_ask", lambda node, question, answer: answers.append(answer))
    moves.known["move"].word = "settle"
    world.run(0.3)
    answers.pop()(Word.RUNNING)  # the source's; the target is asked then, and its answer is late
    late = answers.pop()
    world.run(4)
    answers.pop()(Word.RUNNING)  # they were asked anew
    late(Word.ABSENT)
    world.run(0.5)
    assert world.committed.guests["g0"].status.HasField("migration")


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
