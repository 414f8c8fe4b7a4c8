"""How quickly large clusters are planned, and that the cost grows no worse than linearly.

Times are told by the clock and on the processor. Targets are judged by the latter: the planner has one thread, and on a
machine that does nothing else the two are the same.
"""

import resource
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from bench.placement.cases import guests, hosts
from planner.balance import plan_balance
from planner.fleet import Fleet
from planner.placement import plan_failure, plan_placement
from planner.plans import Cluster, Plan
from planner.settings import Balance, Settings, Spare
from planner.spare import spare_shortfall

LEAST_PER_S = 1000.0
MOST_RECOVERY_S = 2.0
"""By the issue that asked for them."""

CHANGED = 5
"""One of so many guests goes, and another comes for it: 2,000 of 10,000."""

WAVES = 20
"""Plans in which they do."""

LOST = 20

BALANCE_MOVES = 100
SIZES = (100, 1000, 5000)
GUESTS_PER_HOST = 10
LINEAR = 1.5
"""Cost of one placement may grow so many times as fast as the hosts, for what a measurement is off."""


@dataclass(slots=True)
class Timer:
    """Seconds that something took."""

    wall_s: float = 0.0
    cpu_s: float = 0.0


@contextmanager
def timed() -> Iterator[Timer]:
    """Measure a block."""
    timer, wall, cpu = Timer(), time.perf_counter(), time.process_time()
    yield timer
    timer.wall_s, timer.cpu_s = time.perf_counter() - wall, time.process_time() - cpu


def large(host_count: int = 1000, guest_count: int = 10_000) -> dict[str, Any]:
    """Fill hosts, let guests come and go, lose hosts, balance; return how long each took."""
    nodes = hosts(host_count)
    cluster = Cluster(nodes, guests(guest_count, seed=1))
    with timed() as filling:
        plan = plan_placement(cluster)
    cluster = _placed(cluster, plan)
    with timed() as changing:
        cluster, changed_unplaced = _come_and_go(cluster)
    lost = {node.name for node in nodes[:: host_count // LOST][:LOST]}
    with timed() as recovering:
        recovery = plan_failure(cluster, lost)
    cluster = replace(_placed(cluster, recovery), nodes=[node for node in nodes if node.name not in lost])
    limits = Settings(balance=Balance(max_moves=BALANCE_MOVES))
    with timed() as balancing:
        balance = plan_balance(replace(cluster, settings=limits))
    with timed() as sparing:
        short = spare_shortfall(cluster.fleet(), Spare(1))
    per_cpu_s = len(plan.moves) / filling.cpu_s
    return {
        "hosts": host_count,
        "guests": guest_count,
        "placed": len(plan.moves),
        "unplaced": len(plan.unplaced) + changed_unplaced + len(recovery.unplaced),
        "placements_per_s": round(len(plan.moves) / filling.wall_s, 1),
        "placements_per_cpu_s": round(per_cpu_s, 1),
        "arrivals_and_departures": {
            "each": guest_count // CHANGED,
            "per_s": round(2 * (guest_count // CHANGED) / changing.wall_s, 1),
            "per_cpu_s": round(2 * (guest_count // CHANGED) / changing.cpu_s, 1),
        },
        "recovery": {"hosts_lost": len(lost), "guests": len(recovery.moves), **_seconds(recovering)},
        "balance": {
            "moves": len(balance.moves),
            "score_before": round(balance.before.total, 5),
            "score_after": round(balance.after.total, 5),
            **_seconds(balancing),
        },
        "spare": {"losses_tried": len(cluster.nodes), "shortfalls": len(short), **_seconds(sparing)},
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "peak_planning_mib": round(_peak(cluster, limits), 1),
        "met": per_cpu_s >= LEAST_PER_S and recovering.cpu_s < MOST_RECOVERY_S and not plan.unplaced,
    }


def growth() -> dict[str, Any]:
    """Fill clusters of several sizes; return what one placement costs in each."""
    rows = []
    for count in SIZES:
        cluster = Cluster(hosts(count), guests(count * GUESTS_PER_HOST, seed=count))
        with timed() as filling:
            plan = plan_placement(cluster)
        placed = _placed(cluster, plan)
        with timed() as balancing:
            plan_balance(replace(placed, settings=Settings(balance=Balance(max_moves=5))))
        rows.append(
            {
                "hosts": count,
                "guests": len(cluster.guests),
                "placed": len(plan.moves),
                "cpu_us_per_placement": round(filling.cpu_s * 1e6 / len(plan.moves), 1),
                "placements_per_s": round(len(plan.moves) / filling.wall_s, 1),
                "balance_of_5_cpu_s": round(balancing.cpu_s, 3),
            }
        )
    first, last = rows[0], rows[-1]
    grew = last["cpu_us_per_placement"] / first["cpu_us_per_placement"]
    return {
        "sizes": rows,
        "hosts_grew": last["hosts"] / first["hosts"],
        "cost_of_a_placement_grew": round(grew, 2),
        "met": grew <= LINEAR * last["hosts"] / first["hosts"],
    }


def _placed(cluster: Cluster, plan: Plan) -> Cluster:
    return replace(cluster, guests=[replace(g, node=plan.assignments[g.name]) for g in cluster.guests])


def _come_and_go(cluster: Cluster) -> tuple[Cluster, int]:
    """Let guests leave and as many others come, some with each plan; return the cluster, and how many found no place."""
    unplaced, some = 0, len(cluster.guests) // CHANGED // WAVES
    for wave in range(WAVES):
        kept = list(cluster.guests)
        del kept[wave * some : (wave + 1) * some]
        cluster = replace(cluster, guests=[*kept, *guests(some, seed=1000 + wave, prefix=f"new{wave:03}-")])
        plan = plan_placement(cluster)
        unplaced += len(plan.unplaced)
        cluster = _placed(cluster, plan)
    return cluster, unplaced


def _seconds(timer: Timer) -> dict[str, float]:
    return {"wall_s": round(timer.wall_s, 3), "cpu_s": round(timer.cpu_s, 3)}


def _peak(cluster: Cluster, settings: Settings) -> float:
    """Return the MiB that a fleet and a balance of it take at most, beside the cluster itself."""
    tracemalloc.start()
    fleet = Fleet(cluster.nodes, cluster.guests, cluster.rules, settings)
    del fleet
    plan_balance(replace(cluster, settings=replace(settings, balance=Balance(max_moves=1))))
    peak = tracemalloc.get_traced_memory()[1] / (1 << 20)
    tracemalloc.stop()
    return peak
