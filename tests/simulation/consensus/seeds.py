"""Running many seeds, in several processes, and what came of them.

Invariant: the result of a seed does not depend on which process runs it, nor on what ran there before.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .broken import BROKEN
from .timeline import Violation
from .world import Options, World

ROOT = Path(__file__).parents[3]

PROGRAM = "python -m tests.simulation"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one seed; `wrong` is "" when every promise held."""

    seed: int
    wrong: str
    counts: Counter[str] = field(default_factory=Counter)


def command(seed: int, without: str | None = None) -> str:
    """Return the command that runs one seed again."""
    return f"{PROGRAM} --start {seed} --seeds 1" + (f" --without {without}" if without else "") + " --trace"


def options_for(without: str | None) -> Options:
    """Return a run's options, with a rule broken on purpose if one is named."""
    return Options() if without is None else BROKEN[without].options


def run_seed(seed: int, without: str | None = None, told: Callable[[str], None] | None = None) -> Outcome:
    """Run one seed. A violation is a result; anything else that is raised is one, too, for nothing else may be."""
    world = World(seed, options_for(without), told)
    try:
        world.run()
        wrong = ""
    except Violation as error:
        wrong = f"Violation: {error}"
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    counts = Counter(world.record.counts)
    counts.update(acknowledged=world.history.acknowledged, reads=world.history.reads, events=world.timeline.events)
    return Outcome(seed, wrong, counts)


def run_seeds(
    seeds: range, jobs: int, without: str | None = None, told: Callable[[str], None] | None = None
) -> Iterator[Outcome]:
    """Yield outcomes in order of the seeds. `told` takes a line about each step, in one process only."""
    if jobs == 1:
        yield from (run_seed(seed, without, told) for seed in seeds)
        return
    workers = [_start_worker(seeds[first::jobs], without) for first in range(min(jobs, len(seeds)))]
    try:
        for position in range(len(seeds)):
            pipe = workers[position % jobs].stdout
            assert pipe is not None
            if not (line := pipe.readline()):
                raise RuntimeError(f"the process that should run seed {seeds[position]} has ended")
            seed, wrong, counts = json.loads(line)
            yield Outcome(seed, wrong, Counter(counts))
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _start_worker(seeds: range, without: str | None) -> subprocess.Popen[str]:
    """Start a process of its own: multiprocessing would leave one behind, its resource tracker."""
    numbers = [str(number) for number in (seeds.start, seeds.stop, seeds.step)]
    program = [sys.executable, "-m", "tests.simulation.consensus.seeds", *numbers, *([without] if without else [])]
    return subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def _work() -> None:
    """Be a worker: one line of JSON a seed."""
    start, stop, step = (int(number) for number in sys.argv[1:4])
    for outcome in run_seeds(range(start, stop, step), 1, sys.argv[4] if len(sys.argv) > 4 else None):
        print(json.dumps([outcome.seed, outcome.wrong, outcome.counts]), flush=True)


if __name__ == "__main__":
    _work()
