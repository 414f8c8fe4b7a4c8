"""The hardware log of a lab: what was done to power, network and watchdogs, as JSON lines, for timelines in tests and
the demo.

Invariant: one line an event, appended with one write, so that lines of several processes never mix.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


def append(log: Path, node: str, event: str, **details: str | int | float) -> None:
    """Log ``event`` of ``node`` now; ``monotonic``: the machine's CLOCK_MONOTONIC in seconds, as in all nodes."""
    entry = {
        "time": round(time.time(), 3),
        "monotonic": round(time.monotonic(), 3),
        "node": node,
        "event": event,
    } | details
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, json.dumps(entry).encode() + b"\n")
    finally:
        os.close(fd)


def read(log: Path) -> list[dict[str, Any]]:
    """Every event of the log, oldest first; none when there is no log."""
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text().splitlines()]
