"""`python -m bench.start_overhead`: what `gugus guest start` of a stopped VM costs more than `virsh start` of the same
domain, on the same node, measured in turn.

Prints one JSON object. The twin has the domain XML that the agent made, with another name and UUID and the same disk;
only one of the two runs at a time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING

from common.errors import GugusError
from lab import cluster, demo_guests
from lab.api import Lab, LabError
from lab.demo import why_not_real
from lab.operator import Operator

#: Allowed by the issue that asked for it.
MOST_OVERHEAD_MS = 300.0
NODE, GUEST, TWIN = "n1", "bench", "bench-twin"
WAIT_SECONDS = 60.0


def main() -> int:
    """Run the command line; 0 when the overhead is within the limit."""
    parser = argparse.ArgumentParser(prog="python -m bench.start_overhead", description=__doc__.partition("\n")[0])
    parser.add_argument("--name", default="bench", help="name of the lab; made, and removed if it was not there")
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each (default: %(default)s)")
    options = parser.parse_args()
    if reason := why_not_real():
        print(f"cannot measure: {reason}", file=sys.stderr)
        return 1
    lab = Lab(options.name)
    was_up = lab.status().state != "down"
    try:
        result = measure(lab, options.rounds)
    except (LabError, GugusError, TimeoutError) as error:
        print(f"cannot measure: {error}", file=sys.stderr)
        return 1
    finally:
        if not was_up:
            lab.down()
    print(json.dumps(result))
    return 0 if result["overhead_ms"] <= MOST_OVERHEAD_MS else 1


def measure(lab: Lab, rounds: int) -> dict[str, Any]:
    """Measure on the lab, which is brought up with a cluster first; medians in milliseconds."""
    lab.up(None if lab.status().state != "down" else 1)
    with Operator(cluster.form(lab)) as operator:
        demo_guests.prepare(operator, lab.plan)
        demo_guests.remove_guests(operator, (GUEST,))
        spec = demo_guests.vm_spec(ha=False)
        spec.pinned_node = NODE
        operator.do(operator.gugus.guests.create(GUEST, spec))
        try:
            return _measure(lab, operator, rounds)
        finally:
            virsh(lab, "destroy", TWIN, check=False)
            virsh(lab, "undefine", TWIN, check=False)
            demo_guests.remove_guests(operator, (GUEST,))


def _measure(lab: Lab, operator: Operator, rounds: int) -> dict[str, float | int | list[float]]:
    define_twin(lab)
    stop(lab, operator)
    times: dict[str, list[float]] = {"gugus": [], "sdk": [], "virsh": []}
    starts: dict[str, Callable[[], object]] = {
        "gugus": lambda: command(lab, "gugus", "guest", "start", GUEST),
        "sdk": lambda: operator.do(operator.gugus.guests.start(GUEST)),
        "virsh": lambda: virsh(lab, "start", TWIN),
    }
    for number in range(rounds + 1):
        for what, start in starts.items():
            began = time.perf_counter()
            start()
            if number:  # the first round warms caches up
                times[what].append((time.perf_counter() - began) * 1000)
            if what == "virsh":
                virsh(lab, "destroy", TWIN)
            else:
                stop(lab, operator)
    cli_alone = [timed(lambda: command(lab, "gugus", "--help")) for _ in range(rounds)]
    medians = {what: statistics.median(values) for what, values in times.items()}
    return {
        "gugus_start_ms": round(medians["gugus"], 1),
        "virsh_start_ms": round(medians["virsh"], 1),
        "overhead_ms": round(medians["gugus"] - medians["virsh"], 1),
        "rounds": rounds,
        "sdk_start_ms": round(medians["sdk"], 1),
        "sdk_overhead_ms": round(medians["sdk"] - medians["virsh"], 1),
        "cli_alone_ms": round(statistics.median(cli_alone), 1),
    }


def timed(work: Callable[[], object]) -> float:
    """Milliseconds that a piece of work takes."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def stop(lab: Lab, operator: Operator) -> None:
    """End the guest, and wait until the store and libvirt agree that it is stopped."""
    operator.do(operator.gugus.guests.stop(GUEST, force=True))
    operator.wait(
        "the guest to be stopped", lambda: operator.guest(GUEST).status.phase != GUEST_PHASE_RUNNING, WAIT_SECONDS
    )


def define_twin(lab: Lab) -> None:
    """Define the running guest's domain once more under another name, as a person would for virsh."""
    domain = ET.fromstring(virsh(lab, "dumpxml", "--inactive", GUEST))
    for tag, text in (("name", TWIN), ("uuid", str(uuid.uuid4()))):
        element = domain.find(tag)
        if element is None:
            raise LabError(f"the domain of {GUEST} has no {tag}")
        element.text = text
    lab.exec(NODE, ["virsh", "undefine", TWIN])
    lab.exec(NODE, ["virsh", "define", "/dev/stdin"], text=ET.tostring(domain, encoding="unicode"), check=True)


def virsh(lab: Lab, *words: str, check: bool = True) -> str:
    """Run virsh in the node."""
    return lab.exec(NODE, ["virsh", "--quiet", *words], check=check).stdout


def command(lab: Lab, *words: str) -> None:
    """Run a command in the node; raises LabError when it fails."""
    argv, environment = lab.command(NODE, words)
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)
    if done.returncode:
        raise LabError(f"`{' '.join(words)}` failed: {done.stderr.strip()}")


if __name__ == "__main__":
    sys.exit(main())
