"""The best that can be done with small cases, by CP-SAT of OR-Tools: run by an interpreter that has ortools, not ours.

Reads a JSON list of cases on standard input, each with `aim`, `capacities`, `demands` and `apart`, and writes a list of
`{"best", "bound", "proven"}`: how many guests can be placed ("count"), or how few hosts do ("hosts").
"""

import json
import sys
from typing import Any

from ortools.sat.python import cp_model  # type: ignore[import-not-found,unused-ignore]

SECONDS = 20.0
"""Longest time for one case."""


def solve(case: dict[str, Any]) -> dict[str, Any]:
    """Return the best of one case, its bound, and whether the two were proven to be the same."""
    model = cp_model.CpModel()
    nodes, guests = range(len(case["capacities"])), range(len(case["demands"]))
    on = {(g, n): model.new_bool_var(f"g{g}n{n}") for g in guests for n in nodes}
    for g in guests:
        total = sum(on[g, n] for n in nodes)
        model.add(total == 1 if case["aim"] == "hosts" else total <= 1)
    used = [model.new_bool_var(f"used{n}") for n in nodes]
    for n in nodes:
        for row, capacity in enumerate(case["capacities"][n]):
            model.add(sum(case["demands"][g][row] * on[g, n] for g in guests) <= capacity * used[n])
        for members in case["apart"]:
            model.add(sum(on[g, n] for g in members) <= 1)
    if case["aim"] == "hosts":
        model.minimize(sum(used))
    else:
        model.maximize(sum(on.values()))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = SECONDS
    solver.parameters.num_workers = 1
    status = solver.solve(model)
    found = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    return {
        "best": round(solver.objective_value) if found else None,
        "bound": solver.best_objective_bound,
        "proven": status == cp_model.OPTIMAL,
    }


if __name__ == "__main__":
    json.dump([solve(case) for case in json.load(sys.stdin)], sys.stdout)
