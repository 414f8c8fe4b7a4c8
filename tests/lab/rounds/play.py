"""One round: everything is well, a fault befalls hosts, everything is well again, and what must hold held all along."""

import random
import sys
import time
from dataclasses import dataclass

from tests.lab.rounds.ground import Ground
from tests.lab.rounds.kinds import Field, Kind

RECOVER_SECONDS = 30.0
"""From a fault until every guest of its hosts runs again: 18 s by the lease for one, and what several at once cost on few cores."""
WELL_SECONDS = 120.0
"""From the end of a fault until everything is well: the boot of a host, and its manager's way back."""
WRITE_SECONDS = 60.0


@dataclass(frozen=True)
class Outcome:
    """One round that held."""

    kind: str
    victims: list[str]
    recovered_s: float | None
    well_s: float


def play(ground: Ground, kind: Kind, rng: random.Random, patience: float) -> Outcome:
    """Play one round and judge it. Raises Violated."""
    ground.wait_well(WELL_SECONDS * patience)
    before = ground.before()
    victims = choose(ground, kind, rng, {copy.node for copy in before.copies.values()})
    print(f"  {time.strftime('%H:%M:%S')} {kind.name}: {', '.join(victims)}", file=sys.stderr, flush=True)
    theirs = [guest for guest in ground.guests if before.copies[guest].node in victims]
    recovered_s: list[float] = []

    def recovered() -> None:
        ground.wait_anew(before, theirs, RECOVER_SECONDS * patience)
        recovered_s.append(round(time.time() - before.at_s, 1))

    kind.harm(Field(ground.lab, rng, victims, recovered))
    undone = time.monotonic()
    ground.wait_well(WELL_SECONDS * patience)
    well_s = round(time.monotonic() - undone, 1)
    ground.check_writes(before, WRITE_SECONDS * patience)
    ground.check_one_copy(before.at_s)
    # A host whose lease ended says so itself, and counts as fenced.
    befallen = ground.names if kind.stops_all else victims
    fenced = befallen if kind.fenced else ()
    ground.check_nobody_else(before, fenced, victims if kind.reset else ())
    return Outcome(kind.name, victims, recovered_s[0] if recovered_s else None, well_s)


def choose(ground: Ground, kind: Kind, rng: random.Random, busy: set[str]) -> list[str]:
    """Choose whom the fault befalls, hosts with guests before others."""
    acting = ground.operator.wait("a manager to act", lambda: ground.operator.status().acting, WELL_SECONDS)
    voters = [voter.name for voter in ground.operator.status().voters]
    candidates = voters if kind.victims == 0 else ground.names
    count = kind.victims or len(voters) // 2 + 1
    order = sorted(rng.sample(sorted(candidates), len(candidates)), key=lambda name: name not in busy)
    if kind.acting is True:
        order = [acting, *(name for name in order if name != acting)]
    elif kind.acting is False:
        order = [name for name in order if name != acting]
    return order[:count]
