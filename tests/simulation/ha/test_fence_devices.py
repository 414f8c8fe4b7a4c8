"""Fence devices amid faults: they make recovery quick, and whatever they do, a guest never runs twice."""

from collections.abc import Callable

import pytest

from manager.ha import fence_plan, node_machine
from manager.ha.fence_plan import Action, Answer, Outcome
from simulator.clockwork import S
from simulator.rules import Rules
from tests.simulation.ha.test_ha_simulation import broken
from tests.simulation.ha.world import World

SEEDS = 200
MUTANT_SEEDS = 150
STORM_S = 120
CALM_S = 110
"""After the last fault: a device's patience and pauses, then as in the storms without devices."""


def storm(seed: int) -> World:
    world = World(seed, devices=True)
    world.run(10)
    world.storm(STORM_S)
    world.run(CALM_S)
    return world


def switch_failure(seed: int) -> World:
    """Two of five hosts are cut from everybody at one moment."""
    world = World(seed, devices=True, calm=True, nodes=5, homes=("n1", "n5"))
    world.leader = "n2"
    world.run(15)
    world.links |= {frozenset((one, other)) for one in ("n1", "n5") for other in ("n2", "n3", "n4")}
    world.run(20)
    return world


def fenced_before(seed: int, rules: Rules | None = None) -> World:
    """The acting manager loses sight of a host that runs guests and whose device cut its power a minute ago."""
    world = World(seed, rules=rules, devices=True, calm=True)
    world.leader = "n2"
    world.run(15)
    for victim in ("n1", "n3"):
        world.hosts[victim].power_off()
        world.run(25)
    world.links |= {frozenset(("n1", "n2"))}
    world.run(20)
    return world


@pytest.mark.parametrize("start", range(0, SEEDS, 50))
def test_no_storm_with_fence_devices_makes_two_copies(start: int) -> None:
    cuts = 0
    for seed in range(start, start + 50):
        world = storm(seed)
        cuts += len(world.cuts)
        assert world.placed(), "\n".join([f"seed {seed}", *world.story[-40:]])
    assert cuts > 50, "the devices were hardly used"


def test_a_seed_repeats_itself() -> None:
    assert storm(7).story == storm(7).story


def test_a_person_who_saw_a_host_off_is_believed() -> None:
    assert any("a person saw" in line for seed in range(20) for line in storm(seed).story)


@pytest.mark.parametrize("fault", ["power", "freeze", "network"])
def test_guests_run_elsewhere_within_seconds(fault: str) -> None:
    for seed in range(20):
        world = World(seed, devices=True, calm=True)
        world.leader = "n2"
        world.run(20)
        assert world.placed()
        match fault:
            case "power":
                world.hosts["n1"].power_off()
            case "freeze":
                world.hosts["n1"].freeze()
            case _:
                world.links |= {frozenset(("n1", "n2")), frozenset(("n1", "n3"))}
        before = world.queue.now
        while not {*world.copies("g0"), *world.copies("g1")} or "n1" in world.copies("g0") + world.copies("g1"):
            world.run(0.1)
            assert world.queue.now - before < 60 * S, "\n".join(world.story)
        assert world.queue.now - before <= 6 * S, "\n".join(world.story)


def test_a_switch_failure_cuts_no_more_power_than_the_cap_allows() -> None:
    for seed in range(20):
        assert len(switch_failure(seed).cuts) <= 1, f"seed {seed}"


def test_a_proof_of_an_earlier_boot_says_nothing_of_this_one() -> None:
    worlds = [fenced_before(seed) for seed in range(20)]
    for world in worlds:
        assert len(world.copies("g0")) == len(world.copies("g1")) == 1, "\n".join(world.story)


def test_a_host_that_others_reach_keeps_its_power() -> None:
    """Only the acting manager cannot hear it."""
    for seed in range(20):
        world = World(seed, devices=True, calm=True)
        world.leader = "n2"
        world.run(15)
        world.links |= {frozenset(("n1", "n2"))}
        world.run(25)
        assert not world.cuts
        assert not world.copies("g0") or world.copies("g0") != ["n1"]


def keeps_proofs(seed: int) -> World:
    """What a device said is not forgotten either when the node is back."""
    return fenced_before(seed, Rules(proofs_end=False))


def time_out_is_success(answer: Answer) -> bool:
    wanted = Outcome.IS_OFF if answer.shot.action is Action.STATUS else Outcome.DONE
    return answer.outcome in (wanted, Outcome.FAILED)


def believes_the_command(answer: Answer) -> bool:
    """What the device said to `off` is enough; the state is not read back."""
    return answer.shot.action is Action.STATUS or answer.outcome is Outcome.DONE


Mutant = tuple[object, str, Callable[..., object], Callable[[int], World]]

MUTANTS: dict[str, Mutant] = {
    "a time-out is taken for success": (fence_plan, "succeeded", time_out_is_success, storm),
    "the state is not read back": (fence_plan, "succeeded", believes_the_command, storm),
    "a result of an earlier round is accepted": (node_machine, "is_of", lambda off, boot, lapse: True, keeps_proofs),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, function, mutant, run = MUTANTS[name]
    monkeypatch.setattr(module, function, mutant)
    assert broken(run, range(MUTANT_SEEDS)), name


def test_without_the_cap_a_switch_failure_cuts_the_power_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence_plan, "cap", lambda nodes, limits: nodes)
    assert any(len(switch_failure(seed).cuts) > 1 for seed in range(20))
