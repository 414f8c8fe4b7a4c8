"""What a background process of a lab does with its command line and with signals."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable
from pathlib import Path

from lab.api import load_plan
from lab.plan import LabPlan
from lab.supervisor import Supervisor


def run(module: str, serve: Callable[[LabPlan, str], None]) -> None:
    """Have ``serve`` serve the lab, or the part of it, that the command line names, until SIGTERM ends it."""
    parser = argparse.ArgumentParser(prog=module)
    parser.add_argument("--lab", required=True)
    parser.add_argument("--state", required=True, type=Path)
    parser.add_argument("--part", default="")
    options = parser.parse_args()
    signal.signal(
        signal.SIGTERM, lambda *_: os._exit(0)
    )  # nothing of it needs an orderly end, and threads may be waiting
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    plan = load_plan(options.state)
    with Supervisor(module, options.lab, options.state, options.part).held():
        serve(plan, options.part)
