"""How well guests are packed, beside the optimum that CP-SAT proves: small random cases.

Two aims, each with a share of the optimum that is lost: with too little room for all, how many guests have a place;
with room for all under the policy "pack", how many hosts are used.
"""

import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path
from statistics import mean
from typing import Any

from bench.placement.cases import small
from planner.placement import plan_placement
from planner.plans import Cluster, Plan
from planner.rules import GuestAffinity
from planner.settings import Policy, Settings

MOST_GAP = 0.02
"""Mean share of the optimum that may be lost, by the issue that asked for it."""

INSTALL_S, SOLVE_S = 600, 3600


class NoOptimum(Exception):
    """There is no OR-Tools here, and why."""


def measure(cases: int) -> dict[str, Any]:
    """Return the gaps to the optimum. Raises NoOptimum."""
    python = interpreter()
    result: dict[str, Any] = {}
    for aim, policy, demand in (("count", Policy.SPREAD, 1.25), ("hosts", Policy.PACK, 0.65)):
        clusters = [small(seed, Settings(cpu_overcommit_percent=200, policy=policy), demand) for seed in range(cases)]
        began = time.perf_counter()
        plans = [plan_placement(cluster) for cluster in clusters]
        ours_s = time.perf_counter() - began
        began = time.perf_counter()
        best = optimum(python, [as_case(aim, cluster) for cluster in clusters])
        result[aim] = {
            **gaps(aim, plans, best),
            "ours_s_each": round(ours_s / cases, 4),
            "optimum_s_each": round((time.perf_counter() - began) / cases, 3),
        }
    result["met"] = all(result[aim]["mean_gap"] <= MOST_GAP for aim in ("count", "hosts"))
    return result


def gaps(aim: str, plans: list[Plan], best: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how far plans are from the optimum. What was not proven is compared with its bound, which is harsher.

    A case in which not all guests can have a place says nothing of the hosts that are needed, and is left out there.
    """
    lost, skipped, worse = [], 0, 0
    for plan, case in zip(plans, best, strict=True):
        if case["best"] is None:
            skipped += 1
            continue
        reference = case["best"] if case["proven"] else case["bound"]
        ours = placed(plan) if aim == "count" else len({node for node in plan.assignments.values() if node})
        if aim == "hosts" and plan.unplaced:
            lost.append(1.0)  # the optimum placed them all
        else:
            lost.append((reference - ours) / reference if aim == "count" else (ours - reference) / reference)
        worse += lost[-1] > 0
    return {
        "cases": len(lost),
        "without_solution": skipped,
        "proven": sum(case["proven"] and case["best"] is not None for case in best),
        "mean_gap": round(mean(lost), 5) if lost else None,
        "worst_gap": round(max(lost), 5) if lost else None,
        "cases_below_optimum": worse,
    }


def placed(plan: Plan) -> int:
    """Return how many guests have a place."""
    return sum(1 for node in plan.assignments.values() if node)


def as_case(aim: str, cluster: Cluster) -> dict[str, Any]:
    """Return a cluster as bench.placement.optimum reads it."""
    fleet = cluster.fleet()
    index = {name: i for i, name in enumerate(fleet.guests)}
    rules = [rule for rule in cluster.rules if isinstance(rule, GuestAffinity)]
    return {
        "aim": aim,
        "capacities": [[int(value) for value in fleet.total[:2, i]] for i in range(len(fleet.nodes))],
        "demands": [[guest.cpus, guest.memory_bytes] for guest in fleet.guests.values()],
        "apart": [sorted(index[name] for name in rule.guests.names) for rule in rules],
    }


def optimum(python: Path, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what CP-SAT finds. Raises NoOptimum."""
    program = Path(__file__).with_name("optimum.py")
    done = subprocess.run(
        [python, program], input=json.dumps(cases), capture_output=True, text=True, timeout=SOLVE_S, check=False
    )
    if done.returncode:
        raise NoOptimum(f"CP-SAT failed: {done.stderr.strip()[-500:]}")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def interpreter() -> Path:
    """Return an interpreter with ortools, in an environment of its own that is made once. Raises NoOptimum.

    It cannot be ours: ortools wants an older protobuf than gRPC's tools.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "gugus-bench" / "ortools"
    python = folder / "bin" / "python"
    if _has_ortools(python):
        return python
    print("installing ortools into an environment of its own", file=sys.stderr)
    try:
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "ortools"],
            check=True,
            timeout=INSTALL_S,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        raise NoOptimum(f"ortools could not be installed: {str(told).strip()[-500:]}") from None
    if not _has_ortools(python):
        raise NoOptimum("ortools was installed, and cannot be imported.")
    return python


def _has_ortools(python: Path) -> bool:
    if not python.exists():
        return False
    words = [str(python), "-c", "from ortools.sat.python import cp_model"]
    return subprocess.run(words, capture_output=True, timeout=INSTALL_S, check=False).returncode == 0
