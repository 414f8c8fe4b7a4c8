"""`python -m bench.migrate`: live migration of a VM that keeps changing its memory, ours against `virsh migrate --live --p2p`.

Prints one JSON object. Both sides boot the same image with the same memory and the same load, one at a time, in turn; for
virsh, libvirtd of the second host listens without TLS or a password, which ours never does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

from bench.migrate.pings import Unheard
from bench.migrate.sides import Ours, Round, Virsh, prepare
from common.errors import GugusError
from lab import cluster
from lab.api import Lab, LabError
from lab.demo import why_not_real
from lab.operator import Operator

#: Allowed by the issue that asked for it.
MOST_RATIO = 1.1
SECTIONS = ("shared", "disk")

#: Single downtimes scatter from half to twice the median on either side: by five of them the ratio was from 0.94 to 1.22, hour by hour.
ROUNDS = 9


def main() -> int:
    """Run the command line; 0 when the ratios are within the limit."""
    parser = argparse.ArgumentParser(prog="python -m bench.migrate", description=__doc__.partition("\n")[0])
    parser.add_argument("--name", default="bench", help="name of the lab; made, and removed if it was not there")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="migrations of each (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="some sections")
    options = parser.parse_args()
    if reason := why_not_real():
        print(f"cannot measure: {reason}", file=sys.stderr)
        return 2
    lab = Lab(options.name)
    was_up = lab.status().state != "down"
    try:
        lab.up(None if was_up else 2)
        with Operator(cluster.form(lab)) as operator:
            prepare(lab, operator)
            result = {section: measure(lab, operator, section == "disk", options.rounds) for section in options.only}
    except (LabError, GugusError, TimeoutError) as error:
        print(f"cannot measure: {error}", file=sys.stderr)
        return 2
    finally:
        if not was_up:
            lab.down()
    print(json.dumps(result))
    ratios = [value for part in result.values() for key, value in part.items() if key.endswith("_ratio")]
    lost = sum(part["lost_pings_elsewhere"] for part in result.values())
    return 0 if all(ratio <= MOST_RATIO for ratio in ratios) and not lost else 1


def measure(lab: Lab, operator: Operator, disk: bool, rounds: int) -> dict[str, Any]:
    """Measure one section: medians of both sides, and their ratios."""
    ours = Ours(lab, operator, disk=disk)
    virsh = Virsh(lab, ours.domain(), disk=disk)
    section = "disk" if disk else "shared"
    seen: dict[str, list[Round]] = {"ours": [], "virsh": []}
    hung = dict.fromkeys(seen, 0)
    for number in range(rounds):
        for name, side in (("ours", ours), ("virsh", virsh)) if number % 2 else (("virsh", virsh), ("ours", ours)):
            while True:
                try:
                    seen[name].append(side.round())
                    break
                except Unheard as error:
                    hung[name] += 1
                    print(f"{section} {number + 1}/{rounds} {name}: {error}", file=sys.stderr)
                    if hung[name] > rounds:
                        raise
            print(f"{section} {number + 1}/{rounds} {name}: {seen[name][-1]}", file=sys.stderr)
    result: dict[str, Any] = {"rounds": rounds}
    for name, found in seen.items():
        result[f"{name}_total_s"] = round(statistics.median(one.total_s for one in found), 3)
        result[f"{name}_downtime_ms"] = statistics.median(one.silence_ms for one in found)
        result[f"{name}_told_ms"] = statistics.median(one.told_ms for one in found)
        result[f"{name}_hung"] = hung[name]
    result["total_ratio"] = round(result["ours_total_s"] / result["virsh_total_s"], 3)
    result["downtime_ratio"] = round(result["ours_downtime_ms"] / max(result["virsh_downtime_ms"], 1.0), 3)
    result["lost_pings_elsewhere"] = sum(one.lost for one in seen["ours"])
    return result


if __name__ == "__main__":
    sys.exit(main())
