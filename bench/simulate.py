"""How long `gugus simulate` takes for an hour of 10 nodes and 100 guests: `python -m bench.simulate`; prints one JSON object.

The hour has a power cut, a network cut, a node that hangs, a maintenance, guests that fail, and everything back in between.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NODES = 10
GUESTS = 100
SECONDS = 3_600

COMMANDS = (
    ("power off n3", 120),
    ("power on n3", 300),
    ("network off n4", 120),
    ("network on n4", 300),
    ("freeze n1", 120),
    ("thaw n1", 300),
    ("node maintenance on n5", 400),
    ("node maintenance off n5", 400),
    ("guest fail-start g007 9 times", 0),
    ("guest crash g007", 300),
    ("node reboot n6", 300),
)


def scenario() -> dict[str, Any]:
    """Return the scenario as a document."""
    commands: list[str] = []
    for command, seconds in COMMANDS:
        commands += [command, f"wait {seconds}"]
    return {
        "nodes": [{"name": f"n{i}", "cpus": 32, "memory_bytes": "128GiB"} for i in range(1, NODES + 1)],
        "guests": [
            {"name": f"g{i:03}", "cpus": 2, "memory_bytes": "4GiB", "node": f"n{i % NODES + 1}"} for i in range(GUESTS)
        ],
        "rules": [{"kind": "guest-affinity", "name": "apart", "guests": ["g000", "g001", "g002"], "mode": "apart"}],
        "commands": commands,
        "seconds": SECONDS,
    }


def main() -> None:
    """Play it with the command that users have, and print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scenario.yaml"
        file.write_text(json.dumps(scenario()))
        began = time.monotonic()
        command = [str(Path(sys.executable).with_name("gugus")), "simulate", str(file), "-o", "json"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds = time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    played = json.loads(done.stdout)
    result = {
        "nodes": NODES,
        "guests": GUESTS,
        "simulated_seconds": played["seconds"],
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "events": len(played["log"]),
        "ok": played["ok"],
        "bound_seconds": 5,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
