"""`python -m tests.lab.rounds`: rounds of real faults at random on a lab of five hosts, judged after each one; for hours.

One line a round on standard error, one JSON object at the end on standard output. It ends at the first thing that must hold and does
not, and leaves the lab as it is then, to be looked at. The same seed plays the same faults; what follows from them is for real.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from common.errors import GugusError
from lab import cluster
from lab.api import Lab, LabError
from lab.demo import why_not_real
from lab.fencing import give_devices, take_devices
from lab.judge import Judge
from lab.operator import Operator
from tests.lab.rounds.ground import Ground, Violated
from tests.lab.rounds.kinds import KINDS, Kind
from tests.lab.rounds.play import WELL_SECONDS, Outcome, play


def main() -> int:
    """Run the command line; 0 when everything held in all rounds."""
    options = arguments()
    if reason := why_not_real():
        print(f"cannot run: {reason}", file=sys.stderr)
        return 2
    lab = Lab(options.name)
    found: list[Outcome] = []
    trouble = ""
    began = time.monotonic()
    try:
        lab.up(options.nodes if lab.status().state == "down" else None)
        with Operator(cluster.form(lab)) as operator, Judge(lab) as judge:
            ground = Ground(lab, operator, judge)
            ground.prepare()
            (give_devices if options.devices else take_devices)(operator, lab.plan)
            ground.wait_well(WELL_SECONDS)
            for number, (kind, rng) in enumerate(chosen(options, len(ground.names)), 1):
                if time.monotonic() - began > options.minutes * 60:
                    break
                found.append(play(ground, kind, rng, options.patience))
                print(f"{number}/{options.rounds} {found[-1]}", file=sys.stderr, flush=True)
    except (Violated, LabError, GugusError, TimeoutError) as error:
        trouble = f"{type(error).__name__}: {error}"
        print(f"ROUND {len(found) + 1} FAILED at {time.strftime('%H:%M:%S')}: {trouble}", file=sys.stderr)
        print(
            f"the lab stays as it is: gugus-lab status --name {lab.name}; gugus-lab down --name {lab.name}",
            file=sys.stderr,
        )
    if not trouble and not options.keep:
        lab.down()
    print(json.dumps(summary(options.seed, found, trouble)))
    return 1 if trouble else 0


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.rounds", description=__doc__.partition("\n")[0])
    parser.add_argument("--name", default="rounds", help="name of the lab (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=5, help="hosts of a lab that is made (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=100, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="which faults, and whom they befall (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=[kind.name for kind in KINDS], help="some kinds")
    parser.add_argument(
        "--patience", type=float, default=1.0, help="times the usual waits, for a busy machine (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no round is begun after so long")
    parser.add_argument(
        "--devices", action="store_true", help="give every host the lab's power switch as a fence device"
    )
    parser.add_argument("--keep", action="store_true", help="leave the lab up at the end, for another run")
    return parser.parse_args()


def chosen(options: argparse.Namespace, hosts: int) -> Iterator[tuple[Kind, random.Random]]:
    """Yield the kind of each round with its own source of chance: every kind once, in a new order each time.

    What would cost a majority of so few hosts, and is not to, is left out.
    """
    fit = [kind for kind in KINDS if 2 * kind.victims < hosts]
    kinds = [kind for kind in fit if not options.only or kind.name in options.only]
    if not kinds:
        raise LabError(f"no kind of fault to choose from for {hosts} hosts: give other --only, or more --nodes")
    order = random.Random(options.seed)
    bag: list[Kind] = []
    for number in range(options.rounds):
        if not bag:
            bag = order.sample(kinds, len(kinds))
        yield bag.pop(), random.Random(f"{options.seed}/{number}")


def summary(seed: int, found: list[Outcome], trouble: str) -> dict[str, Any]:
    """Return what is printed at the end."""
    recovered = sorted(one.recovered_s for one in found if one.recovered_s is not None)
    return {
        "seed": seed,
        "rounds": len(found),
        "kinds": dict(sorted(Counter(one.kind for one in found).items())),
        "recovered_p50_s": recovered[len(recovered) // 2] if recovered else None,
        "recovered_max_s": recovered[-1] if recovered else None,
        "well_max_s": max((one.well_s for one in found), default=None),
        "violated": trouble or None,
    }


if __name__ == "__main__":
    sys.exit(main())
