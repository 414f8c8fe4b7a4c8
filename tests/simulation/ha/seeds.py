"""Kinds of runs of simulated clusters by seed, and what came of them: `python -m tests.simulation ha`."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from simulator.rules import Rules
from simulator.world import TwoCopies
from tests.simulation.ha.invariants import Broken, Watch
from tests.simulation.ha.world import World, apart

STORM_S = 120
CALM_S = {"storm": 60, "devices": 110, "moving": 110, "storage": 110}
"""After the last fault of a storm: boots, leases waited out, a device's patience, a move's."""

FAULTS = 12
KINDS = ("storm", "devices", "moving", "storage", "fair")
"""storm: everything at once, messages lost and late by up to half a minute. devices: the same with fence devices that hang and lie,
every second time with a witness. moving: the same while somebody migrates guests. storage: that while people say of hosts that are on
that they are off. fair: messages come; one fault after another; five hosts, fence devices, a rule, moves."""

MOVING = 0.02
"""Chance, five times a second, that somebody asks for the migration of a guest; a tenth of it in fair weather."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a seed: what was wrong, "" when nothing was; what happened, in numbers; the last lines of its log."""

    seed: int
    wrong: str
    counts: Counter[str] = field(default_factory=Counter)
    story: tuple[str, ...] = ()


def made(kind: str, seed: int, rules: Rules | None = None) -> World:
    """Return the world of a kind of run."""
    if kind == "fair":
        guests = ("g0", "g1")
        return World(
            seed,
            rules=rules,
            calm=True,
            nodes=5,
            devices=True,
            moving=MOVING / 10,
            homes=("n1", "n2"),
            packs=True,
            end_early=["g1"],
            placement_rules=[apart(*guests)],
        )
    return World(
        seed,
        rules=rules,
        devices=kind == "devices",
        moving=MOVING if kind in ("moving", "storage") else 0.0,
        lies=kind == "storage",
        end_early=["g1"] if kind == "storage" else (),
        witness=kind == "devices" and seed % 2 == 1,
    )


def run(kind: str, seed: int, rules: Rules | None = None) -> World:
    """Run a seed. Raises TwoCopies and Broken."""
    world = made(kind, seed, rules)
    if kind == "fair":
        Watch(world, fair=True, apart=("g0", "g1"))
        world.fair_weather(FAULTS)
        return world
    Watch(world)
    world.run(10)
    world.storm(STORM_S)
    world.moving, world.rules = 0.0, Rules() if kind == "moving" else world.rules
    world.run(CALM_S[kind])
    if not world.placed():
        raise Broken("not every guest runs where the state says, long after the last fault")
    return world


def outcome(kind: str, seed: int, run_it: Callable[[str, int], World] = run) -> Outcome:
    """Return what came of a seed."""
    worlds: list[World] = []

    def kept(kind: str, seed: int) -> World:
        worlds.append(run_it(kind, seed))
        return worlds[-1]

    try:
        world = kept(kind, seed)
    except (TwoCopies, Broken) as error:
        return Outcome(seed, f"{type(error).__name__}: {error}")
    except Exception as error:
        return Outcome(seed, f"{type(error).__name__}: {error}")
    counts = Counter(
        starts=world.starts,
        events=len(world.log),
        cuts=len(world.cuts),
        seconds=round(world.queue.now / 1e9),
        moves=sum("moves from" in line.text for line in world.log),
        fenced=sum(line.text.startswith("fenced") for line in world.log),
    )
    return Outcome(seed, "", counts)
