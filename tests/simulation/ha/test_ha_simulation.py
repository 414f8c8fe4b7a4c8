"""Whole managers and agents on a virtual clock: an HA guest never runs twice, and comes back when the faults end.

A failing seed is repeated byte for byte: `World(seed)`, `storm`, and `world.story` tells what happened.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from common.leases import LeaseTimes, safe_after_ns
from manager.ha import manager_lease, node_machine
from manager.ha.node_machine import Beat
from simulator.agent import Report
from simulator.clockwork import S
from simulator.rules import Rules
from simulator.world import TwoCopies
from tests.simulation.ha.seeds import KINDS
from tests.simulation.ha.world import World

SEEDS = 150
MUTANT_SEEDS = 150
STORM_S = 120
CALM_S = 60
"""After the last fault: boot, a manager's lease waited out, a node lease waited out, recovery and start."""


def storm(seed: int, rules: Rules | None = None) -> World:
    world = World(seed, rules=rules)
    world.run(10)
    world.storm(STORM_S)
    world.run(CALM_S)
    return world


def broken(run: Callable[[int], object], seeds: Iterable[int]) -> bool:
    for seed in seeds:
        try:
            run(seed)
        except TwoCopies:
            return True
    return False


@pytest.mark.parametrize("start", range(0, SEEDS, 50))
def test_no_storm_makes_two_copies_and_every_guest_comes_back(start: int) -> None:
    for seed in range(start, start + 50):
        world = storm(seed)
        assert world.placed(), "\n".join([f"seed {seed}", *world.story[-30:]])


def test_a_seed_repeats_itself() -> None:
    assert storm(7).story == storm(7).story


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_is_one_run_in_any_process(kind: str) -> None:
    """Line for line, whatever order sets of strings have there."""
    code = f"from tests.simulation.ha.seeds import run\nfor seed in (11, 12): print(*run({kind!r}, seed).story)"
    stories = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[3], check=True, capture_output=True, text=True,
        ).stdout
        for hash_seed in ("0", "42")
    }  # fmt: skip
    assert len(stories) == 1
    assert "runs on" in stories.pop()


def silent_host(seed: int, rules: Rules | None = None, drift_ppm: int = 50_000) -> World:
    """The slowest host freezes for good; its watchdog resets it at the last allowed moment."""
    world = World(seed, rules=rules, drift_ppm=drift_ppm, calm=True)
    world.leader = "n2"
    world.run(15)
    world.hosts["n1"].freeze()
    world.run(30)
    return world


def lonely_manager(seed: int, rules: Rules | None = None) -> World:
    """The acting manager is cut off together with its own agent, which it goes on answering while its lease lasts."""
    world = World(seed, rules=rules, calm=True)
    world.run(15)
    world.links |= {frozenset(("n1", "n2")), frozenset(("n1", "n3"))}
    world.run(30)
    return world


def late_beat(seed: int, rules: Rules | None = None, quiet_s: float = 0) -> World:
    """A new manager hears a beat that a host with a guest sent in its boot before, and that was late.

    quiet_s: for so long it hears nothing of the host before.
    """
    world = World(seed, rules=rules, calm=True)
    world.run(15)
    late: dict[str, tuple[int, Beat]] = {}
    for name, host in world.hosts.items():
        late[name] = host.agent.epoch, Beat(0, host.agent.boot_id)
        host.power_off()
        world.run(2)
        host.power_on()
        world.run(40)
    victim = world.copies("g0")[0]
    heir = next(name for name in world.names if name not in (victim, world.acting))
    world.leader = heir
    manager = world.hosts[heir].manager
    while not manager.machine.acting(manager.now()):
        world.run(0.01)
    world.hosts[victim].freeze()
    world.run(quiet_s)
    epoch, beat = late[victim]
    manager.heard(victim, 1, 1, epoch, beat, Report(0, {}))
    world.hosts[victim].thaw()
    world.run(30)
    return world


@pytest.mark.parametrize("quiet_s", [0, 4], ids=["online", "suspected"])
def test_a_late_beat_of_an_earlier_boot_moves_no_guest(quiet_s: float) -> None:
    for seed in range(30):
        world = late_beat(seed, quiet_s=quiet_s)
        assert world.placed(), "\n".join(world.story)


@pytest.mark.parametrize("scene", [silent_host, lonely_manager])
def test_a_scene_never_makes_two_copies(scene: Callable[[int], World]) -> None:
    for seed in range(30):
        world = scene(seed)
        assert "n1" not in world.copies("g0") + world.copies("g1")
        assert len(world.copies("g0")) == len(world.copies("g1")) == 1, "\n".join(world.story)


@pytest.mark.parametrize("leader", ["n1", "n2"])
def test_recovery_is_in_time_even_when_the_acting_manager_dies_with_the_guests(leader: str) -> None:
    for seed in range(20):
        world = World(seed, calm=True)
        world.leader = leader
        world.run(20)
        assert world.acting == leader
        assert world.placed()
        world.hosts["n1"].power_off()
        before = world.queue.now
        while len(world.copies("g0")) + len(world.copies("g1")) < 2:
            world.run(0.1)
            assert world.queue.now - before < 60 * S
        takeover = 5 * S if leader == "n1" else 0
        assert world.queue.now - before < safe_after_ns(0, LeaseTimes()) + takeover + 2 * S, "\n".join(world.story)


MUTANTS: dict[str, tuple[Rules, Callable[[int, Rules], World]]] = {
    "no drift bound and no margin": (
        Rules(managers_times=LeaseTimes(drift_ppm=0, margin_ms=0)),
        lambda seed, rules: silent_host(seed, rules),
    ),
    "agents ignore epochs": (Rules(epochs=False), storm),
    "coming back does not raise the epoch": (Rules(raise_epoch=False), storm),
    "any other boot is proof": (Rules(boots_know_the_epoch=False), late_beat),
    "a command carries the epoch of its sending, not of its decision": (Rules(epoch_of_decision=False), storm),
    "agents start without a lease": (Rules(start_needs_lease=False), storm),
    "every beat is renewed": (Rules(renews=lambda view, now, times: view.beat is not None), storm),
    "neither generations nor epochs are checked": (Rules(generations=False, epochs=False), storm),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_caught(name: str) -> None:
    rules, run = MUTANTS[name]
    assert broken(lambda seed: run(seed, rules), range(MUTANT_SEEDS)), name


def test_a_new_manager_that_does_not_wait_for_its_predecessors_answers_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = node_machine.last_renewal_ns
    monkeypatch.setattr(
        node_machine, "last_renewal_ns", lambda v: real(v) if v.answered_ns is not None else v.takeover_ns - 30 * S
    )
    assert broken(storm, range(MUTANT_SEEDS))


def test_a_manager_that_does_not_wait_the_lease_out_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager_lease, "waited_out_ns", lambda ttl_ms, drift_ppm: 0)
    assert broken(lonely_manager, range(MUTANT_SEEDS))
