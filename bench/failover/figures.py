"""What a round of a section showed, and the figures of all of them. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Round:
    """One cut of a host's power.

    suspect_s, fenced_s, running_s: seconds from the cut until the host was suspected, proven dead, and the guest's process was there
    elsewhere. copies: the most copies of the guest that ever ran at once in the round, by hypervisors and disk. proof: in words.
    """

    node: str
    suspect_s: float | None
    fenced_s: float | None
    running_s: float
    copies: int
    proof: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that the median and the longest may be; None: no limit."""

    p50_s: float | None = None
    max_s: float | None = None


def summary(found: Sequence[Round], failed: Sequence[str], limits: Limits) -> dict[str, Any]:
    """Return the figures of a section, and whether they keep its limits. failed: of rounds that came to no end, why."""
    times = [one.running_s for one in found]
    p50, longest = (round(statistics.median(times), 2), max(times)) if times else (None, None)
    return {
        "rounds": len(found),
        "failed": list(failed),
        "p50_s": p50,
        "max_s": longest,
        "suspect_p50_s": _median([one.suspect_s for one in found]),
        "fenced_p50_s": _median([one.fenced_s for one in found]),
        "by_device": sum("read back" in one.proof for one in found),
        "max_copies": max((one.copies for one in found), default=0),
        "each_s": times,
        "kept": not failed and _within(p50, limits.p50_s) and _within(longest, limits.max_s),
    }


def _within(value: float | None, limit: float | None) -> bool:
    return value is not None and (limit is None or value <= limit)


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 2) if known else None


class Turns:
    """Whose turn it is to lose power: the one that lost it longest ago."""

    def __init__(self) -> None:
        self._order: list[str] = []

    def next(self, candidates: Sequence[str]) -> str:
        """Choose one of these hosts, and remember it."""
        name = min(sorted(candidates), key=lambda one: self._order.index(one) if one in self._order else -1)
        self._order = [one for one in self._order if one != name] + [name]
        return name
