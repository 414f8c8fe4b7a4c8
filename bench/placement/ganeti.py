"""Balancing beside `hbal` of Debian's ganeti-htools: the same skewed clusters, the same number of moves.

Both end states are scored by Ganeti's metric, computed here from its manual page hbal(1), section "Cluster scoring",
and checked against the score that hbal prints. With disks that all hosts share, every host online and no tags, what is
left of it are the standard deviations of free memory, of the ratio of virtual to physical CPUs, and of the dynamic load.
"""

import math
import os
import re
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import which
from typing import Any

from bench.placement.cases import skewed
from planner.balance import plan_balance
from planner.objective import METRICS
from planner.plans import Cluster, Plan
from planner.settings import CPU_OVERCOMMIT_PERCENT, Balance
from planner.types import GuestRequest

MOVES = 10
"""Moves of each, as hbal is given them by its option -l."""

SIZES = ((20, 200), (50, 500), (100, 1000))
"""Hosts and guests."""

FASTER = 100
"""How many times faster ours must be at 50 hosts, by the issue that asked for it."""

WEIGHTS: Mapping[str, float] = {"free_mem": 1.0, "vcpu_ratio": 1.0, "cpu_load": 1.0, "mem_load": 1.0}
"""As `hbal -v -v -v` of ganeti 3.0 prints them: memory and CPUs count half, and half again for planned instances."""

MIB = 1 << 20
_PRINTED = re.compile(r"^\s*\d+\.\s+(?P<guest>\S+)\s+(?P<origin>\S+)\s+=>\s+(?P<target>\S+)\s+(?P<score>[0-9.]+)", re.M)
_INITIAL = re.compile(r"^Initial score: (?P<score>[0-9.]+)", re.M)
_TOLERANCE = 1e-5


class NoHbal(Exception):
    """There is no hbal here, and what to do."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What hbal said: its score before, and each move with its score after it; `whole` unless its time was over."""

    initial: float
    moves: Sequence[tuple[str, str, float]]
    seconds: float
    cpu_s: float
    whole: bool


def measure(limit_s: float) -> dict[str, Any]:
    """Return both at each size. Raises NoHbal."""
    if which("hbal") is None:
        raise NoHbal("hbal is not installed; `apt-get install ganeti-htools` brings it.")
    rows = [_compare(hosts, guests, limit_s) for hosts, guests in SIZES]
    middle = next(row for row in rows if row["hosts"] == 50)
    return {
        "sizes": rows,
        "faster_at_50": middle["times_faster"],
        "met": middle["times_faster"] >= FASTER and all(row["not_worse"] and row["metric_agrees"] for row in rows),
    }


def _compare(hosts: int, guests: int, limit_s: float) -> dict[str, Any]:
    cluster = skewed(hosts, guests, seed=hosts)
    print(f"balancing {guests} guests on {hosts} hosts with hbal", file=sys.stderr)
    theirs = hbal(cluster, limit_s)
    state = {guest.name: guest.node for guest in cluster.guests}
    agrees = math.isclose(theirs.initial, metric(cluster, state), abs_tol=_TOLERANCE * max(1.0, theirs.initial))
    for guest, target, told in theirs.moves:
        state[guest] = target
        agrees = agrees and math.isclose(told, metric(cluster, state), abs_tol=_TOLERANCE * max(1.0, told))
    count = len(theirs.moves)
    ours, default = balanced(cluster, ganetis_weights(cluster), count), balanced(cluster, {}, count)
    after = metric(cluster, ours.assignments)
    return {
        "hosts": hosts,
        "guests": guests,
        "moves": {"ours": len(ours.plan.moves), "hbal": count},
        "hbal_finished": theirs.whole,
        "hbal_s": round(theirs.seconds, 3),
        "hbal_cpu_s": round(theirs.cpu_s, 3),
        "ours_s": round(ours.seconds, 4),
        "ours_cpu_s": round(ours.cpu_s, 4),
        "times_faster": round(theirs.seconds / ours.seconds, 1),
        "times_faster_on_the_processor": round(theirs.cpu_s / max(ours.cpu_s, 1e-6), 1),
        "score_before": round(theirs.initial, 6),
        "score_hbal": round(metric(cluster, state), 6),
        "score_ours": round(after, 6),
        "score_ours_with_default_weights": round(metric(cluster, default.assignments), 6),
        "metric_agrees": agrees,
        "not_worse": after <= metric(cluster, state) + _TOLERANCE,
    }


@dataclass(frozen=True, slots=True)
class Balanced:
    """Our plan, and how long it took by the clock and on the processor."""

    plan: Plan
    seconds: float
    cpu_s: float

    @property
    def assignments(self) -> Mapping[str, str]:
        """Each guest's node after it."""
        return self.plan.assignments


def balanced(cluster: Cluster, weights: Mapping[str, float], moves: int) -> Balanced:
    """Return our plan of at most so many moves."""
    limits = Balance(max_moves=moves, move_cost=0.0, weights=weights)
    given = replace(cluster, settings=replace(cluster.settings, balance=limits))
    began, cpu_began = time.perf_counter(), time.process_time()
    plan = plan_balance(given)
    return Balanced(plan, time.perf_counter() - began, time.process_time() - cpu_began)


def ganetis_weights(cluster: Cluster) -> Mapping[str, float]:
    """Return the weights with which our score is Ganeti's metric: hosts are alike, so that shares differ by a factor."""
    node = cluster.nodes[0]
    none = {one.name: 0.0 for one in METRICS}
    return {
        **none,
        "memory": WEIGHTS["free_mem"],
        "cpu": WEIGHTS["vcpu_ratio"] * CPU_OVERCOMMIT_PERCENT / 100,
        "cpu-load": WEIGHTS["cpu_load"] * node.cpus,
        "memory-load": WEIGHTS["mem_load"] * node.memory_bytes / (1 << 30),
    }


def metric(cluster: Cluster, state: Mapping[str, str]) -> float:
    """Return Ganeti's score of a cluster with each guest on a node."""
    on: dict[str, list[GuestRequest]] = {node.name: [] for node in cluster.nodes}
    for guest in cluster.guests:
        on[state[guest.name]].append(guest)
    values = {
        "free_mem": [1 - sum(g.memory_bytes for g in on[n.name]) / n.memory_bytes for n in cluster.nodes],
        "vcpu_ratio": [sum(g.cpus for g in on[n.name]) / n.cpus for n in cluster.nodes],
        "cpu_load": [sum(cpu_use(g) for g in on[n.name]) for n in cluster.nodes],
        "mem_load": [sum(memory_use(g) for g in on[n.name]) for n in cluster.nodes],
    }
    return sum(weight * _deviation(values[name]) for name, weight in WEIGHTS.items())


def cpu_use(guest: GuestRequest) -> float:
    """Return the CPUs that a guest keeps busy."""
    return round(guest.cpu_load * guest.cpus, 6)


def memory_use(guest: GuestRequest) -> float:
    """Return the GiB of memory that a guest uses."""
    return round(guest.memory_load * guest.memory_bytes / (1 << 30), 6)


def _deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def hbal(cluster: Cluster, limit_s: float) -> Answer:
    """Let hbal balance a cluster from a file; its moves until its time was over. Raises NoHbal when it fails."""
    with tempfile.TemporaryDirectory(prefix="gugus-bench-") as folder:
        data, load = Path(folder, "cluster"), Path(folder, "load")
        data.write_text(text_of(cluster))
        load.write_text("".join(f"{g.name} {cpu_use(g)} {memory_use(g)} 0 0\n" for g in cluster.guests))
        words = ["hbal", "-t", str(data), "-U", str(load), "-l", str(MOVES), "-v", "--min-gain", "0"]
        began = time.perf_counter()
        cpu_began = _cpu_of_children()
        told, code = _told(words, limit_s)
        seconds, cpu_s = time.perf_counter() - began, _cpu_of_children() - cpu_began
    initial = _INITIAL.search(told)
    if initial is None or code:
        raise NoHbal(f"hbal failed: {told.strip()[-500:]}")
    moves = [(found["guest"], found["target"], float(found["score"])) for found in _PRINTED.finditer(told)]
    return Answer(float(initial["score"]), moves, seconds, cpu_s, code is not None)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _told(words: Sequence[str], limit_s: float) -> tuple[str, int | None]:
    """Run a program; return what it told until its time was over, and its exit code, None when it was stopped.

    It writes to a terminal of its own, for else it would keep what it tells until its end.
    """
    ours, its = os.openpty()
    with subprocess.Popen(words, stdout=its, stderr=its, stdin=subprocess.DEVNULL) as running:
        os.close(its)
        told, until = b"", time.monotonic() + limit_s
        while (left := until - time.monotonic()) > 0 and select.select([ours], [], [], left)[0]:
            try:
                told += os.read(ours, 1 << 16)
            except OSError:  # EIO: nobody has the other end any more (pty(7))
                break
        else:
            running.kill()
            left = 0.0
        os.close(ours)
        code = running.wait()
    return told.decode(errors="replace"), code if left > 0 else None


def text_of(cluster: Cluster) -> str:
    """Return a cluster in the text format of htools(1): groups, nodes, instances, tags, policies."""
    group = "0000"
    used = {node.name: 0 for node in cluster.nodes}
    for guest in cluster.guests:
        used[guest.node] += guest.memory_bytes
    disk = 1_000_000
    nodes = [
        f"{n.name}|{n.memory_bytes // MIB}|0|{(n.memory_bytes - used[n.name]) // MIB}|{disk}|{disk}|{n.cpus}|N|{group}|1"
        for n in cluster.nodes
    ]
    guests = [f"{g.name}|{g.memory_bytes // MIB}|1024|{g.cpus}|running|Y|{g.node}||ext||1" for g in cluster.guests]
    policy = "|4096,8,1024,1,1,1|128,1,1,1,1,1;1048576,128,1048576,16,16,12|ext|64.0|1024.0"
    sections = [[f"default|{group}|preferred||"], nodes, guests, [], [policy]]
    return "\n".join("".join(f"{line}\n" for line in section) for section in sections)
