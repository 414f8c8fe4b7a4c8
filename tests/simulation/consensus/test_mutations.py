"""The simulator has teeth: with any one rule left out it finds a broken promise, and with the rule in place it finds none there."""

import pytest

from tests.simulation.consensus.broken import BROKEN, Mutation
from tests.simulation.consensus.scenarios import SCENARIOS
from tests.simulation.consensus.timeline import Violation
from tests.simulation.consensus.world import Options, World

BY_SEEDS = [rule for rule, mutation in BROKEN.items() if mutation.seeds]
BY_SCENARIO = [rule for rule, mutation in BROKEN.items() if mutation.scenario]


def broken_promise(seed: int, options: Options) -> str:
    """Return what a run found; a member that only fell over an exception of its own does not count."""
    try:
        World(seed, options).run()
    except Violation as error:
        return str(error)
    except Exception:
        return ""
    return ""


def first_bad_seed(mutation: Mutation) -> int | None:
    return next((seed for seed in range(mutation.seeds) if broken_promise(seed, mutation.options)), None)


@pytest.mark.parametrize("rule", BY_SEEDS)
def test_without_a_rule_some_seed_finds_a_broken_promise(rule: str) -> None:
    seed = first_bad_seed(BROKEN[rule])
    assert seed is not None, f"{BROKEN[rule].seeds} seeds without {rule} found nothing"
    World(seed, BROKEN[rule].setting).run()  # with the rule: nothing wrong


@pytest.mark.parametrize("rule", BY_SCENARIO)
def test_without_a_rule_its_scenario_goes_wrong(rule: str) -> None:
    scenario = SCENARIOS[BROKEN[rule].scenario]
    with pytest.raises(Violation):
        scenario.run(BROKEN[rule].options)
    scenario.run()


def test_every_rule_is_shown() -> None:
    assert set(BY_SEEDS) | set(BY_SCENARIO) == set(BROKEN)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_goes_well_with_all_rules(name: str) -> None:
    SCENARIOS[name].run()
