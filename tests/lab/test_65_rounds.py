"""The long run (`python -m tests.lab.rounds`), in short: the kinds of faults that no other test here has."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from lab.demo import why_not_real
from tests import runs
from tests.lab.conftest import Room
from tests.lab.rounds.ground import Ground
from tests.lab.rounds.kinds import KINDS
from tests.lab.rounds.play import play

PATIENCE = 2.0
"""Times the waits of a machine that does nothing else."""
FIVE = "five"
RUN_SECONDS = 400.0
ROOT = Path(__file__).resolve().parents[2]


def test_one_way_cut_a_hung_libvirtd_and_a_lost_majority_are_survived(room: Room) -> None:
    room.run_both(room.other_than(room.acting))
    ground = Ground(room.lab, room.operator, room.judge, guests=("web", "db"))
    for name in ("cut-what-it-sends", "hung-libvirtd", "majority-lost"):
        kind = next(kind for kind in KINDS if kind.name == name)
        play(ground, kind, random.Random(name), PATIENCE)


@pytest.mark.lab
def test_two_of_five_hosts_are_lost_at_once() -> None:
    """In a lab of its own, by the command; what it leaves when something does not hold is removed with the rest."""
    if reason := why_not_real():
        pytest.skip(f"no real lab: {reason}")
    lab = runs.current().take_lab(FIVE)
    lab.down()
    words = ["--name", FIVE, "--rounds", "1", "--only", "two-hosts", "--patience", f"{PATIENCE}"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.lab.rounds", *words],
            cwd=ROOT, capture_output=True, text=True, timeout=RUN_SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["kinds"] == {"two-hosts": 1}
    finally:
        lab.down()
