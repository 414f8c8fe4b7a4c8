"""`python -m bench.density`: what many guests cost on one host at rest, and how fast its agent tells of them.

Prints one JSON object: the figures of an agent with simulated guests and of one with real containers, and the targets.
What goes on is told on standard error. The exit code is 0 when every target that was measured is met, 1 when not, 2
when something could not be measured.
"""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # before grpc is loaded

import grpc

from bench.density import containers, simulated
from bench.density.figures import Figures, judged
from common.errors import GugusError
from lab.api import Lab, LabError
from lab.demo import why_not_real
from lab.scratch import scratch

SECTIONS = ("simulated", "containers")


def main() -> int:
    """Run the command line."""
    options = _options()
    figures, failures = dict[str, Figures](), dict[str, str]()
    for section in options.only:
        try:
            figures[section] = _simulated(options) if section == "simulated" else _containers(options)
        except (LabError, GugusError, TimeoutError, OSError, grpc.aio.AioRpcError) as error:
            failures[section] = str(error) or type(error).__name__
            print(f"cannot measure {section}: {failures[section]}", file=sys.stderr)
    result = judged(figures)
    print(json.dumps({**result, "failures": failures}))
    if failures:
        return 2
    return 0 if all(target["met"] for target in result["targets"]) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.density", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections to measure (all)")
    parser.add_argument("--guests", type=int, default=200, help="simulated guests (default: %(default)s)")
    parser.add_argument("--containers", type=int, default=20, help="real containers (default: %(default)s)")
    parser.add_argument("--name", default="density", help="name of a lab to make, and to remove")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="a folder on a real disk (%(default)s)")
    return parser.parse_args()


def _simulated(options: argparse.Namespace) -> Figures:
    with scratch(options.dir, "gugus-bench-density-") as folder:
        return asyncio.run(simulated.measured(folder, options.guests))


def _containers(options: argparse.Namespace) -> Figures:
    if reason := why_not_real():
        raise LabError(reason)
    lab = Lab(options.name)
    if lab.status().state != "down":
        raise LabError(f"there is a lab {options.name} already: `gugus-lab down --name {options.name}`, or give --name")
    try:
        return asyncio.run(containers.measured(lab, options.containers))
    finally:
        lab.down()


if __name__ == "__main__":
    sys.exit(main())
