"""Run seeds of the consensus simulator: `python -m tests.simulation --seeds N --start S`; prints one JSON object."""

import argparse
import json
import sys
import time
import traceback

from manager.consensus.core import RaftCore
from tests.simulation.consensus.broken import BROKEN
from tests.simulation.consensus.world import Faults, World


def main() -> int:
    """Run the seeds; exit status 1 when one of them broke a promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--without", choices=sorted(BROKEN), help="break this rule on purpose")
    parser.add_argument("--fixed-voters", action="store_true", help="three members, no change of voters")
    parser.add_argument("--trace", action="store_true", help="print the stack of each violation")
    options = parser.parse_args()
    core_class = BROKEN[options.without] if options.without else RaftCore
    started = time.monotonic()
    bad: dict[int, str] = {}
    totals = dict.fromkeys(("acked", "reads", "elections", "changes"), 0)
    for seed in range(options.start, options.start + options.seeds):
        world = World(seed, Faults(membership=not options.fixed_voters), core_class)
        try:
            world.run()
        except Exception as error:
            bad[seed] = f"{type(error).__name__}: {error}"
            if options.trace:
                traceback.print_exc()
        totals["acked"] += len(world.acked)
        totals["reads"] += world.reads
        totals["elections"] += world.elections
        totals["changes"] += world.changes
    result = {"seeds": options.seeds, "violations": len(bad), **totals, "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps({**result, "bad": dict(list(bad.items())[:10])}))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
