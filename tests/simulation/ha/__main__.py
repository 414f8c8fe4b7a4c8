"""Run seeds of simulated clusters: `python -m tests.simulation ha --seeds N --start S --kind KIND`; prints one JSON object."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from typing import Any

from tests.simulation.ha.seeds import KINDS, outcome

SHOWN = 20
"""Bad seeds that are told."""


def main(arguments: list[str] | None = None) -> int:
    """Run the seeds; exit status 1 when one of them broke a promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation ha", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many of each kind")
    parser.add_argument("--start", type=int, default=0, help="the first one")
    parser.add_argument("--kind", choices=KINDS, action="append", help="which; all when none is named")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    kinds = options.kind or list(KINDS)
    found = _here(kinds, options.start, options.seeds) if options.jobs == 1 else _spread(kinds, options)
    found["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(found))
    return 1 if found["violations"] else 0


def _here(kinds: list[str], start: int, seeds: int) -> dict[str, Any]:
    totals, bad = Counter[str](), dict[str, str]()
    for kind in kinds:
        for seed in range(start, start + seeds):
            one = outcome(kind, seed)
            totals.update(one.counts)
            if one.wrong:
                bad[f"python -m tests.simulation ha --kind {kind} --start {seed} --seeds 1"] = one.wrong
    return {
        "kinds": kinds,
        "seeds": seeds,
        "start": start,
        "violations": len(bad),
        "totals": dict(sorted(totals.items())),
        "bad": dict(list(bad.items())[:SHOWN]),
    }


def _spread(kinds: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Run parts of the seeds in processes of their own, and add up what they print."""
    parts = [(options.start + n * options.seeds // options.jobs) for n in range(options.jobs)]
    ends = [*parts[1:], options.start + options.seeds]
    workers = [
        subprocess.Popen(_command(kinds, start, end - start), stdout=subprocess.PIPE, text=True)
        for start, end in zip(parts, ends, strict=True)
        if end > start
    ]
    found = [json.loads(worker.communicate()[0]) for worker in workers]
    totals = sum((Counter(one["totals"]) for one in found), Counter[str]())
    bad = {command: wrong for one in found for command, wrong in one["bad"].items()}
    return {
        "kinds": kinds,
        "seeds": options.seeds,
        "start": options.start,
        "violations": sum(one["violations"] for one in found),
        "totals": dict(sorted(totals.items())),
        "bad": dict(list(bad.items())[:SHOWN]),
    }


def _command(kinds: list[str], start: int, seeds: int) -> list[str]:
    named = [word for kind in kinds for word in ("--kind", kind)]
    return [
        sys.executable,
        "-m",
        "tests.simulation",
        "ha",
        *named,
        "--start",
        str(start),
        "--seeds",
        str(seeds),
        "--jobs",
        "1",
    ]


if __name__ == "__main__":
    sys.exit(main())
