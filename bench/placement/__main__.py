"""`python -m bench.placement`: the planner, how quick it is and how good, beside CP-SAT and Ganeti's hbal.

Prints one JSON object. What goes on is told on standard error. The exit code is 0 when every target that was measured
is met, 1 when not, 2 when something that was asked for could not be measured; the reason is in its place.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from bench.placement import ganeti, packing, scale

SECTIONS = ("large", "growth", "packing", "hbal")


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.placement", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="some sections")
    parser.add_argument("--hosts", type=int, default=1000, help="of section large (default: %(default)s)")
    parser.add_argument("--guests", type=int, default=10_000, help="of section large (default: %(default)s)")
    parser.add_argument("--cases", type=int, default=50, help="of each aim of packing (default: %(default)s)")
    parser.add_argument(
        "--hbal-limit", type=float, default=240.0, help="seconds for hbal at each size (default: %(default)s)"
    )
    options = parser.parse_args()
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "large": lambda: scale.large(options.hosts, options.guests),
        "growth": scale.growth,
        "packing": lambda: packing.measure(options.cases),
        "hbal": lambda: ganeti.measure(options.hbal_limit),
    }
    result: dict[str, Any] = {"load_average": round(os.getloadavg()[0], 2), "processors": os.cpu_count()}
    code = 0
    for name in SECTIONS:
        if name not in options.only:
            continue
        print(f"measuring {name}", file=sys.stderr)
        try:
            result[name] = measures[name]()
            code = max(code, 0 if result[name]["met"] else 1)
        except (packing.NoOptimum, ganeti.NoHbal) as error:
            result[name] = {"not_measured": str(error)}
            code = 2
    print(json.dumps(result))
    return code


if __name__ == "__main__":
    sys.exit(main())
