"""The figures, what is allowed, and the verdict."""

from dataclasses import asdict, dataclass
from typing import Any

# Allowed by the issue that asked for it.
MOST_CPU_PERCENT = 2.0
MOST_RSS_MIB = 150.0
MOST_LIST_MS = 100.0
MOST_ADOPT_S = 3.0


@dataclass(frozen=True)
class Figures:
    """One agent with many guests. CPU is of one core; memory is resident, of all of the agent's processes together."""

    guests: int
    cpu_percent: float
    rss_mib: float
    list_ms: float
    adopt_s: float


def judged(figures: dict[str, Figures]) -> dict[str, Any]:
    """Return the result: the figures of each section, and each target with whether it is met."""
    allowed = {
        "cpu_percent": MOST_CPU_PERCENT,
        "rss_mib": MOST_RSS_MIB,
        "list_ms": MOST_LIST_MS,
        "adopt_s": MOST_ADOPT_S,
    }
    targets = [
        {"section": name, "figure": figure, "value": value, "most": most, "met": value < most}
        for name, one in figures.items()
        for figure, most in allowed.items()
        for value in (asdict(one)[figure],)
    ]
    return {**{name: asdict(one) for name, one in figures.items()}, "targets": targets}
