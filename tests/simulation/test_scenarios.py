"""Scenarios as files, each with what docs/ha.md promises of it: `gugus simulate` plays them with the code that decides."""

from pathlib import Path

import pytest

from simulator.play import play
from simulator.scenario import load

FOLDER = Path(__file__).parent / "scenarios"
SCENARIOS = sorted(file.name for file in FOLDER.glob("*.yaml"))
SEEDS = range(3)
"""What is promised holds whatever messages take."""

WITHOUT_A_WATCHDOG = """
nodes: [{name: n1}, {name: n2}, {name: n3}]
guests: [{name: web, node: n3}]
commands:
  - wait 5
  - watchdog off n3
  - freeze n3
"""


MISTAKEN = """
pools: [{name: disks, locks: LOCKS}]
nodes: [{name: n1, pools: [disks]}, {name: n2, pools: [disks]}, {name: n3, pools: [disks]}]
guests: [{name: web, node: n3, pools: [disks]}]
commands:
  - wait 5
  - network off n3
  - wait 4
  - node confirm-off n3
"""


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_goes_as_it_expects(name: str) -> None:
    scenario = load((FOLDER / name).read_text(), name)
    for seed in SEEDS:
        played = play(scenario, seed)
        log = "\n".join(f"{line.at_s:9.3f} {line.about}: {line.text}" for line in played.log)
        assert played.ok, f"seed {seed}: {played.unmet} {played.broken}\n{log}"


def test_a_scenario_plays_the_same_each_time() -> None:
    scenario = load((FOLDER / "maintenance.yaml").read_text(), "maintenance.yaml")
    first, again = play(scenario), play(scenario)
    assert first.log == again.log
    assert first.steps == again.steps
    assert first.log != play(scenario, seed=1).log


def test_a_second_copy_is_told() -> None:
    """Whoever takes a watchdog away sees what it is for."""
    played = play(load(WITHOUT_A_WATCHDOG, "it"))
    assert not played.ok
    assert any("web runs on" in copy and "n3" in copy for copy in played.broken)


def test_each_step_has_every_guests_state_and_host() -> None:
    played = play(load((FOLDER / "power-cut.yaml").read_text(), "power-cut.yaml"))
    assert [step.command for step in played.steps] == ["begin", "wait 10", "power off n3", "power on n3", "end"]
    before, after = played.steps[1], played.steps[-1]
    assert (before.guests["web"]["state"], before.guests["web"]["node"]) == ("started", "n3")
    assert before.guests["web"]["runs_on"] == ["n3"]
    assert after.guests["web"]["node"] != "n3"
    assert after.nodes["n3"] == {"state": "online", "power": "on", "network": "on"}


@pytest.mark.parametrize(("locks", "saved"), [("none", False), ("host", True), ("lease", True)])
def test_a_wrong_word_makes_two_writers_where_the_storage_has_no_locks(locks: str, saved: bool) -> None:
    played = play(load(MISTAKEN.replace("LOCKS", locks), "it"))
    assert played.ok == saved, played.broken
    assert saved or "the disk of web in disks is written to from n3 and n1" in played.broken
    assert saved == any("is in use on host n3" in line.text for line in played.log)
