"""A plan as plain values, for JSON and YAML (docs/planning.md). Its fields change only as the API does."""

from collections.abc import Sequence
from typing import Any

from planner.conflicts import Conflict
from planner.plans import Plan, Score

DECIMALS = 9
"""Of scores."""


def plain(plan: Plan, found: Sequence[Conflict] = ()) -> dict[str, Any]:
    """Return a plan, and the conflicts of the rules that it was made by."""
    return {
        "assignments": {guest: node or None for guest, node in sorted(plan.assignments.items())},
        "moves": [
            {
                "guest": move.guest,
                "from": move.from_node or None,
                "to": move.to_node,
                "wave": move.wave,
                "gain": round(move.gain, DECIMALS),
                "reason": move.reason,
            }
            for move in plan.moves
        ],
        "waves": waves(plan),
        "unplaced": [
            {
                "guest": one.guest,
                "reason": one.reason,
                "hosts": [{"node": refusal.node, "reasons": list(refusal.reasons)} for refusal in one.refusals],
            }
            for one in plan.unplaced
        ],
        "evictions": [
            {"guest": one.guest, "node": one.node, "for": one.for_guest, "reason": one.reason} for one in plan.evictions
        ],
        "score": {"before": _score(plan.before), "after": _score(plan.after)},
        "shortfalls": [{"lost": list(one.lost), "guest": one.guest, "reason": one.reason} for one in plan.shortfalls],
        "conflicts": [
            {"rules": list(one.rules), "reason": one.reason, "message": one.message, "remedy": one.remedy}
            for one in found
        ],
        "notes": list(plan.notes),
    }


def waves(plan: Plan) -> list[list[str]]:
    """Return the guests that move side by side, wave after wave."""
    found: dict[int, list[str]] = {}
    for move in plan.moves:
        found.setdefault(move.wave, []).append(move.guest)
    return [found[wave] for wave in sorted(found)]


def _score(score: Score) -> dict[str, Any]:
    parts = {name: round(value, DECIMALS) for name, value in score.parts.items()}
    return {"total": round(score.total, DECIMALS), "parts": parts}
