"""The Promela model of fencing, checked with spin: no second copy in any state, and one for each rule that is left out."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).parents[2] / "docs" / "fencing" / "fencing.pml"
ONE_REIGN = "MOST_LEADERS=0"
SECONDS = 240
"""For one search; an idle core needs a tenth of it."""

pytestmark = pytest.mark.skipif(
    not (shutil.which("spin") and shutil.which("gcc")), reason="needs the packages spin and gcc"
)


def search(folder: Path, *defines: str, exhaustive: bool = False, seconds: int = SECONDS) -> str:
    """Search the model's states and return what the verifier prints. exhaustive: all of them, else with hashes of two bits each."""
    options = [f"-D{define}" for define in defines]
    subprocess.run(["spin", *options, "-a", str(MODEL)], cwd=folder, check=True, timeout=60, capture_output=True)
    kind = "-DCOLLAPSE" if exhaustive else "-DBITSTATE"
    claim = [] if any(define.startswith("SHOW") for define in defines) else ["-DNOCLAIM"]
    build = ["gcc", "-O1", "-DSAFETY", "-DMEMLIM=2000", kind, *claim, "-o", "pan", "pan.c"]
    subprocess.run(build, cwd=folder, check=True, timeout=120, capture_output=True)
    size = "-w22" if exhaustive else "-w28"
    try:
        done = subprocess.run(
            ["./pan", "-m20000", size], cwd=folder, check=True, timeout=seconds, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired as error:
        return (error.stdout or b"").decode()
    return done.stdout


def errors(output: str) -> int:
    found = re.search(r"errors: (\d+)", output)
    assert found, output
    return int(found[1])


def test_no_state_has_two_copies(tmp_path: Path) -> None:
    output = search(tmp_path, ONE_REIGN, exhaustive=True)
    assert errors(output) == 0, output
    assert "Search not completed" not in output
    assert not re.search(r"unreached in proctype \w+\n\t(?!.*-end-)", output), output


def test_no_two_copies_are_found_amid_a_change_of_managers(tmp_path: Path) -> None:
    """All ten million states take a minute of an idle core; what a third of that finds has every transition in it."""
    output = search(tmp_path, seconds=20)
    assert "assertion violated" not in output, output


@pytest.mark.parametrize("how", ["TIME", "DEVICE", "AGENT", "BOOT"])
def test_host_is_proven_dead_in_each_way_and_its_guest_runs_elsewhere(how: str, tmp_path: Path) -> None:
    assert errors(search(tmp_path, ONE_REIGN, f"SHOW_BY_{how}")) == 1


@pytest.mark.parametrize(
    "rule",
    ["NO_MARGIN", "NO_TOKENS", "BLIND_WATCHDOG", "TIMEOUT_IS_OFF", "NOT_READ_BACK", "EARLIER_ROUND"],
)
def test_a_rule_left_out_makes_two_copies(rule: str, tmp_path: Path) -> None:
    assert "assertion violated" in search(tmp_path, ONE_REIGN, rule)


@pytest.mark.parametrize("rule", ["NO_WAIT", "NO_MANAGER_WAIT"])
def test_a_rule_of_taking_over_left_out_makes_two_copies(rule: str, tmp_path: Path) -> None:
    assert "assertion violated" in search(tmp_path, rule)
