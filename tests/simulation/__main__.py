"""Run seeds of the consensus simulator: `python -m tests.simulation --seeds N --start S`; prints one JSON object.

`python -m tests.simulation ha` runs those of whole clusters.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter

from tests.simulation.consensus.broken import BROKEN
from tests.simulation.consensus.seeds import command, run_seeds

SHOWN = 20
"""Bad seeds that are told in full."""


def main() -> int:
    """Run the seeds; exit status 1 when one of them broke a promise."""
    if sys.argv[1:2] == ["ha"]:
        from tests.simulation.ha.__main__ import main as clusters

        return clusters(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--start", type=int, default=0, help="the first one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument(
        "--without", choices=sorted(BROKEN), metavar="RULE", help=f"break a rule: {', '.join(sorted(BROKEN))}"
    )
    parser.add_argument(
        "--trace", action="store_true", help="tell each step of each seed on standard error; one process"
    )
    options = parser.parse_args()
    started = time.monotonic()
    seeds = range(options.start, options.start + options.seeds)
    told = (lambda line: print(line, file=sys.stderr)) if options.trace else None
    totals, bad = Counter[str](), dict[str, str]()
    for outcome in run_seeds(seeds, 1 if options.trace else options.jobs, options.without, told):
        totals.update(outcome.counts)
        if outcome.wrong:
            bad[command(outcome.seed, options.without)] = outcome.wrong
    result = {
        "seeds": options.seeds,
        "start": options.start,
        "violations": len(bad),
        "seconds": round(time.monotonic() - started, 1),
        "totals": dict(sorted(totals.items())),
        "bad": dict(list(bad.items())[:SHOWN]),
    }
    print(json.dumps(result))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
