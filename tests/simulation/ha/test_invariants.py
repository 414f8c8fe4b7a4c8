"""In fair weather everything has its bound and its reason; and each invariant is broken by what it is there for."""

from collections.abc import Mapping
from typing import Any

import pytest

from manager.ha import account, node_machine
from manager.scheduler import Terms
from simulator import recovering
from simulator.clockwork import MS
from simulator.rules import Rules
from simulator.world import TwoCopies
from tests.simulation.ha.invariants import Broken
from tests.simulation.ha.seeds import run

SEEDS = 24
MUTANT_SEEDS = 40
STORAGE_SEEDS = 30


@pytest.mark.parametrize("start", range(0, SEEDS, 8))
def test_in_fair_weather_who_can_run_runs_in_time_rules_hold_and_nobody_is_fenced_for_nothing(start: int) -> None:
    for seed in range(start, start + 8):
        run("fair", seed)


def test_a_seed_repeats_itself() -> None:
    assert run("fair", 5).story == run("fair", 5).story


def broken_by(kind: str, rules: Rules | None = None, seeds: int = MUTANT_SEEDS) -> str:
    """Return what broke first, "" when nothing did."""
    for seed in range(seeds):
        try:
            run(kind, seed, rules)
        except (Broken, TwoCopies) as error:
            return str(error)
    return ""


def test_a_watchdog_that_is_fed_blindly_is_caught() -> None:
    assert " and " in broken_by("storm", Rules(watchdog_minds_leases=False))


@pytest.mark.parametrize("start", range(0, STORAGE_SEEDS, 10))
def test_whatever_people_say_of_hosts_nobody_writes_to_a_disk_twice(start: int) -> None:
    for seed in range(start, start + 10):
        run("storage", seed)


def test_a_start_that_does_not_mind_locks_is_caught() -> None:
    assert "is written to from" in broken_by("storage", Rules(storage_locks=False))


Mutant = tuple[object, str, Any, str]

MUTANTS: Mapping[str, Mutant] = {
    "counters are never cleared": (account, "_clear", lambda guest: None, "failures are not forgotten"),
    "recovery gives up": (recovering, "recover", lambda *given, **named: [], "does not run"),
    "recovery does not mind rules": (
        recovering,
        "terms",
        lambda nodes, guests, rules, settings, **more: Terms(settings=settings),
        "keeps them apart",
    ),
    "one late beat is a lost host": (node_machine, "SUSPECT_AFTER_NS", 900 * MS, "though nothing was wrong"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, function, mutant, what = MUTANTS[name]
    monkeypatch.setattr(module, function, mutant)
    if name == "one late beat is a lost host":
        monkeypatch.setattr(node_machine, "lease_over_ns", lambda renewed_ns, times: renewed_ns)
    assert what in broken_by("fair"), name
