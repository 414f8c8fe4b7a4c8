"""`python -m bench.failover`: from the cut of a host's power until its guest runs elsewhere, by the lease alone and with a fence device.

Prints one JSON object. The guest is timed, and its copies are counted, by a judge outside of the cluster, who sees the processes of all
hosts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

from bench.failover.rounds import Round, play
from common.errors import GugusError
from lab import cluster, demo_guests
from lab.api import Lab, LabError
from lab.demo import why_not_real
from lab.fencing import give_devices, take_devices
from lab.judge import Judge
from lab.operator import Operator

#: Seconds, by the issue that asked for it: the median, and the longest.
LIMITS = {"lease": (14.0, 18.0), "device": (5.0, None)}
NODES = 3


def main() -> int:
    """Run the command line; 0 when the limits are kept and no guest ever ran twice."""
    parser = argparse.ArgumentParser(prog="python -m bench.failover", description=__doc__.partition("\n")[0])
    parser.add_argument("--name", default="bench", help="name of the lab; made, and removed if it was not there")
    parser.add_argument("--rounds", type=int, default=20, help="power cuts of each section (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(LIMITS), default=list(LIMITS), help="some sections")
    parser.add_argument("--acting", action="store_true", help="cut the host whose manager acts, too, each second round")
    options = parser.parse_args()
    if reason := why_not_real():
        print(f"cannot measure: {reason}", file=sys.stderr)
        return 2
    lab = Lab(options.name)
    was_up = lab.status().state != "down"
    try:
        lab.up(None if was_up else NODES)
        with Operator(cluster.form(lab)) as operator, Judge(lab) as judge:
            prepare(lab, operator)
            result: dict[str, Any] = {
                section: measure(section, lab, operator, judge, options.rounds, options.acting)
                for section in options.only
            }
            demo_guests.remove_guests(operator)
            result["max_copies"] = judge.max_copies()
    except (LabError, GugusError, TimeoutError) as error:
        print(f"cannot measure: {error}", file=sys.stderr)
        return 2
    finally:
        if not was_up:
            lab.down()
    print(json.dumps(result))
    kept = all(result[section]["kept"] for section in options.only)
    return 0 if kept and result["max_copies"] == 1 else 1


def prepare(lab: Lab, operator: Operator) -> None:
    """Make the network, the pool and the image."""
    demo_guests.make_network(operator)
    demo_guests.make_pool(operator, lab.plan)
    for source in demo_guests.place_images(lab.plan):
        demo_guests.import_image(operator, source)


def measure(section: str, lab: Lab, operator: Operator, judge: Judge, rounds: int, acting_too: bool) -> dict[str, Any]:
    """Play rounds; victims take turns, so that no host counts as one that flaps."""
    (give_devices if section == "device" else take_devices)(operator, lab.plan)
    found: list[Round] = []
    names = [node.name for node in lab.plan.nodes()]
    for number in range(rounds):
        acting = operator.wait("a manager to act", lambda: operator.status().acting, 60.0)
        others = sorted((name for name in names if name != acting), key=lambda name: _last(found, name))
        victim = acting if acting_too and number % 2 else others[0]
        one = play(lab, operator, judge, victim)
        found.append(one)
        print(f"{section} {number + 1}/{rounds}: {one}", file=sys.stderr, flush=True)
    return summary(section, found)


def summary(section: str, found: list[Round]) -> dict[str, Any]:
    """Return the figures of a section, and whether they keep its limits."""
    times = [one.running_s for one in found]
    p50, longest = statistics.median(times), max(times)
    most_p50, most = LIMITS[section]
    return {
        "rounds": len(found),
        "p50_s": round(p50, 2),
        "max_s": longest,
        "suspect_p50_s": _median([one.suspect_s for one in found]),
        "fenced_p50_s": _median([one.fenced_s for one in found]),
        "by_device": sum("read back" in one.proof for one in found),
        "each_s": times,
        "kept": p50 <= most_p50 and (most is None or longest <= most),
    }


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 2) if known else None


def _last(found: list[Round], name: str) -> int:
    return max((number for number, one in enumerate(found) if one.node == name), default=-1)


if __name__ == "__main__":
    sys.exit(main())
