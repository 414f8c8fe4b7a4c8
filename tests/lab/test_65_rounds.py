"""Rounds of the long run (`python -m tests.lab.rounds`), of the kinds of faults that no other test here has."""

import random

import pytest

from tests.lab.conftest import Room
from tests.lab.rounds.ground import Ground
from tests.lab.rounds.kinds import KINDS
from tests.lab.rounds.play import play

PATIENCE = 2.0
"""Times the waits of a machine that does nothing else."""


@pytest.mark.parametrize("name", ["cut-what-it-sends", "hung-libvirtd", "majority-lost"])
def test_round_of(room: Room, name: str) -> None:
    kind = next(kind for kind in KINDS if kind.name == name)
    room.run_both(room.other_than(room.acting))
    play(Ground(room.lab, room.operator, room.judge, guests=("web", "db")), kind, random.Random(name), PATIENCE)
