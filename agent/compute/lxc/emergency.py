"""Killing containers by their processes alone: no library, no lock, no daemon, no memory of before.

Invariant: a name is reported gone only when no init and nothing that could start another one is left of it.
"""

import asyncio
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from agent.compute.hypervisor import KillReport
from agent.compute.lxc import processes
from agent.compute.lxc.runs import Runs
from agent.compute.processes import ProcessRecord, is_alive, kill_all, kill_each

MONITOR_GRACE_S = 2.0
"""How long a monitor may take to clean up after a gentle kill: 50 ms, more where the kernel is slow to free cgroups."""

_POLL_S = 0.01


async def kill_containers(
    lxc_path: Path, runs: Runs, names: Collection[str], timeout_s: float, *, gently: bool = False
) -> KillReport:
    """SIGKILL containers and wait until they are gone, at most `timeout_s`. Never raises.

    `gently` gives a monitor time to clean up after its init, which leaves no empty cgroups behind.
    """
    end = time.monotonic() + timeout_s
    try:
        if gently:
            await _kill_inits(lxc_path, runs, names, min(MONITOR_GRACE_S, timeout_s))
        left = _step(lxc_path, runs, names)
        while left and time.monotonic() < end:
            await asyncio.sleep(_POLL_S)
            left = _step(lxc_path, runs, left)
        return KillReport(frozenset(names) - left.keys(), left)
    except Exception as error:  # the caller has to know at once, whatever it is
        return KillReport(frozenset(), dict.fromkeys(names, f"could not be looked at: {error}"))


def _step(lxc_path: Path, runs: Runs, names: Iterable[str]) -> dict[str, str]:
    """Take a step to the end of containers; return those that need a next one, and why."""
    restorers = processes.restorers(lxc_path)
    for name in names:  # before the monitors: nobody is left to whom it could give a container
        kill_each({str(each.pid): each for each in restorers.get(name, [])})
    monitors = processes.monitors(lxc_path)
    left: dict[str, str] = {}
    for name in names:
        try:
            if _step_of_one(runs, name, monitors.get(name, [])):
                left[name] = "its processes do not end: they hang in the kernel"
        except OSError as error:  # the others are looked at all the same
            left[name] = f"could not be looked at: {error}"
    return left


def _step_of_one(runs: Runs, name: str, monitors: Iterable[ProcessRecord]) -> bool:
    run = runs.load(name)
    known = {run.monitor} if run and run.monitor else set()
    steps = [processes.end(monitor) for monitor in {*monitors, *known}]
    if run and run.init and is_alive(run.init):
        processes.thaw([run.init])
    inits = kill_each({"": run.init}) if run and run.init else {}
    return any(steps) or bool(inits)


async def _kill_inits(lxc_path: Path, runs: Runs, names: Collection[str], grace_s: float) -> None:
    """Kill the inits only and give the monitors time to clean up."""
    end = time.monotonic() + grace_s
    scanned = processes.scan(lxc_path)
    known = [(name, found) for name in names for found in (runs.load(name), scanned.get(name)) if found is not None]
    processes.thaw(found.init for _, found in known if found.init is not None)
    inits = {f"{name} {found.init.pid}": found.init for name, found in known if found.init is not None}
    await kill_all(inits, grace_s)
    monitors = [found.monitor for _, found in known if found.monitor is not None]
    while any(is_alive(monitor) for monitor in monitors) and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(_POLL_S)
