"""The real consensus core and store under seeded faults: thousands of runs, each of which must keep every promise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.consensus.seeds import command, run_seed, run_seeds

SEEDS = 2_000
"""Enough for each change; `python -m tests.simulation --seeds N` runs as many as one likes."""
PROCESSES = 2
REPEATED = (3, 17, 1_234)
"""Seeds that are run again in other processes."""


def test_every_promise_holds_in_thousands_of_runs() -> None:
    bad = {command(outcome.seed): outcome.wrong for outcome in run_seeds(range(SEEDS), PROCESSES) if outcome.wrong}
    assert not bad, f"{len(bad)} of {SEEDS} seeds: " + "; ".join(
        f"`{run}` {wrong[:200]}" for run, wrong in list(bad.items())[:5]
    )


def test_runs_are_eventful_enough_to_mean_something() -> None:
    """All kinds of faults happen, and the cluster gets work done in spite of them."""
    outcomes = [run_seed(seed) for seed in range(60)]
    totals = sum((outcome.counts for outcome in outcomes), start=outcomes[0].counts.__class__())
    for what in (
        "partition", "weather", "crash", "cut_power_in_a_write", "freeze", "slow_disk", "full_disk", "failing_disk", "failed disks",
        "membership", "voters added", "voters removed", "transfer", "handed over", "snapshots", "watchers begun anew",
    ):  # fmt: skip
        assert totals[what] > 0, what
    assert totals["elections"] > 2 * len(outcomes)
    assert totals["acknowledged"] > 50 * len(outcomes)
    assert totals["reads"] > 50 * len(outcomes)


@pytest.mark.parametrize("seed", REPEATED)
def test_one_seed_is_one_run_in_any_process(seed: int) -> None:
    """Byte for byte, whatever order sets and dictionaries of strings have there."""
    code = f"from tests.simulation.consensus.world import World; w = World({seed}); w.run(); print(w.digest())"
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[3], check=True, capture_output=True, text=True,
        ).stdout
        for hash_seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64
