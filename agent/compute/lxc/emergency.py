"""Killing containers by their processes alone: no library, no lock, no daemon, no memory of before.

Invariant: a name is reported gone only when no init and nothing that could start another one is left of it.
"""

import asyncio
import time
from collections.abc import Collection
from pathlib import Path

from agent.compute.hypervisor import KillReport
from agent.compute.lxc import processes
from agent.compute.lxc.runs import Runs
from agent.compute.processes import ProcessRecord, is_alive, kill_all

MONITOR_GRACE_S = 2.0
"""How long a monitor may take to clean up after a gentle kill: 50 ms, more where the kernel is slow to free cgroups."""

_POLL_S = 0.01


async def kill_containers(
    lxc_path: Path, runs: Runs, names: Collection[str], timeout_s: float, *, gently: bool = False
) -> KillReport:
    """SIGKILL containers and wait until they are gone, at most `timeout_s`. Never raises.

    The monitor goes first, for it could start another init (a reboot); `gently` lets it clean up before, which leaves
    no empty cgroups behind.
    """
    end = time.monotonic() + timeout_s
    targets: dict[str, ProcessRecord] = {}
    try:
        if gently:
            await _kill_inits(lxc_path, runs, names, min(MONITOR_GRACE_S, timeout_s))
        left = set(names)
        while left:
            targets = _find(lxc_path, runs, left)
            if not targets:
                break
            await kill_all(targets, max(end - time.monotonic(), _POLL_S))
            if time.monotonic() >= end:
                left = {_name(key) for key in _find(lxc_path, runs, left)}
                break
        alive = dict.fromkeys(left, "its processes do not end: they hang in the kernel") if targets else {}
        return KillReport(frozenset(names) - alive.keys(), alive)
    except Exception as error:  # the caller has to know at once, whatever it is
        return KillReport(frozenset(), dict.fromkeys(names, f"could not be looked at: {error}"))


async def _kill_inits(lxc_path: Path, runs: Runs, names: Collection[str], grace_s: float) -> None:
    """Kill the inits only and give the monitors time to clean up."""
    end = time.monotonic() + grace_s
    targets = _find(lxc_path, runs, names)
    await kill_all({key: record for key, record in targets.items() if key.startswith("1 ")}, grace_s)
    monitors = [record for key, record in targets.items() if key.startswith("0 ")]
    while any(is_alive(monitor) for monitor in monitors) and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(_POLL_S)


def _find(lxc_path: Path, runs: Runs, names: Collection[str]) -> dict[str, ProcessRecord]:
    """Every live process that is a container's, monitors ("0 name") before inits ("1 name")."""
    scanned = processes.scan(lxc_path)
    found: dict[str, ProcessRecord] = {}
    for name in names:
        run, seen = runs.load(name), scanned.get(name)
        records = [*((run.monitor, run.init) if run else ()), *((seen.monitor, seen.init) if seen else ())]
        for number, record in enumerate(records):
            if record is not None and is_alive(record):
                found[f"{number % 2} {name} {record.pid}"] = record
    return dict(sorted(found.items()))


def _name(key: str) -> str:
    return key.split(" ")[1]
