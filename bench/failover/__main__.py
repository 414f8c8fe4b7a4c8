"""`python -m bench.failover`: from the cut of a host's power until its guest runs elsewhere, and what a planned drain costs.

Prints one JSON object. The guest is timed, and its copies are counted, by a judge outside of the cluster, who sees the processes of all
hosts and what the guest wrote to its disk.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from typing import Any

from bench.failover import drain, pacemaker, rounds
from bench.failover.bed import Bed
from bench.failover.rounds import SECTIONS
from common.errors import GugusError
from lab import cluster, demo_guests
from lab.api import Lab, LabError
from lab.demo import why_not_real
from lab.judge import Judge
from lab.operator import Operator

NODES = 3
DRAIN = "drain"
USUAL = ("lease", "device", DRAIN)
ACTING = ("acting-lease", "acting-device")
BESIDE = ("pacemaker",)


def main() -> int:
    """Run the command line; 0 when the limits are kept, no guest ever ran twice, and none was lost."""
    options = arguments()
    if reason := why_not_real():
        print(f"cannot measure: {reason}", file=sys.stderr)
        return 2
    result: dict[str, Any] = {}
    trouble = ""
    try:
        domain = ours(options, result)
        if "pacemaker" in options.beside:
            pacemaker.measure(domain, options.rounds, result.setdefault("pacemaker", {}))
    except (
        LabError,
        GugusError,
        TimeoutError,
        KeyboardInterrupt,
    ) as error:  # what was measured before is told all the same
        trouble = result["cannot"] = str(error) or "it was broken off"
        print(f"cannot measure: {trouble}", file=sys.stderr)
    mine = [result[section] for section in options.only if section in result]
    result["max_copies"] = max((part["max_copies"] for part in mine), default=0)
    print(json.dumps(result))
    if trouble:
        return 2
    return 0 if all(part["kept"] for part in mine) and result["max_copies"] == 1 else 1


def arguments() -> argparse.Namespace:
    """Return the options of the command line; `only` is in the order in which sections are measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.failover", description=__doc__.partition("\n")[0])
    parser.add_argument("--name", default="bench", help="name of the lab; made, and removed if it was not there")
    parser.add_argument("--rounds", type=int, default=20, help="power cuts of each section (default: %(default)s)")
    parser.add_argument("--drains", type=int, default=3, help="hosts that are drained (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=[*SECTIONS, DRAIN], help="some sections")
    parser.add_argument(
        "--acting",
        action="store_true",
        help="also cut the power of the host whose manager acts, with and without devices",
    )
    parser.add_argument(
        "--beside", nargs="*", choices=BESIDE, help="what else is measured (default: pacemaker, unless --only)"
    )
    options = parser.parse_args()
    if options.beside is None:
        options.beside = [] if options.only else list(BESIDE)
    wanted = {*(options.only or USUAL), *(ACTING if options.acting else ())}
    options.only = [section for section in (*SECTIONS, DRAIN) if section in wanted]
    return options


def ours(options: argparse.Namespace, result: dict[str, Any]) -> str:
    """Measure our sections, one after the other, into `result`; return libvirt's XML of the guest, for whom it is compared with."""
    lab = Lab(options.name)
    was_up = lab.status().state != "down"
    try:
        lab.up(None if was_up else NODES)
        with Operator(cluster.form(lab)) as operator, Judge(lab) as judge:
            bed = Bed(lab, operator, judge)
            demo_guests.prepare(operator, lab.plan)
            domain = rounds.domain(bed) if options.beside else ""
            for section in options.only:
                tell = partial(result.__setitem__, section)
                if section == DRAIN:
                    drain.measure(bed, options.drains, tell)
                else:
                    rounds.measure(section, bed, options.rounds, tell)
            return domain
    finally:
        if not was_up:
            lab.down()


if __name__ == "__main__":
    sys.exit(main())
