"""Figures side by side: the same measure of ours and of etcd's, their ratio, and which targets they meet."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Sample = Mapping[str, float]
"""What one round measured on one side: figures by name, the unit in the name."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measure of both."""

    ours: float
    etcd: float

    @property
    def ratio(self) -> float | None:
        """Ours in units of etcd's; None when etcd's is 0."""
        return self.ours / self.etcd if self.etcd else None

    def shown(self) -> dict[str, float | None]:
        """Return it as it is printed."""
        ratio = self.ratio
        shown = None if ratio is None else _rounded(ratio)
        return {"ours": _rounded(self.ours), "etcd": _rounded(self.etcd), "ratio": shown}


Figures = dict[str, Figure]


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure must be, as the issue that asked for it says."""

    figure: str
    text: str
    met: Callable[[Figure], bool]


TARGETS = (
    Target("sequential_write_p50_ms", "no slower than etcd's", lambda f: f.ours <= f.etcd),
    Target("writes_32_clients_per_s", "at least 0.8 of etcd's", lambda f: f.ours >= 0.8 * f.etcd),
    Target("failover_p50_s", "under 2 s", lambda f: f.ours < 2.0),
    Target("failover_p50_s", "no slower than etcd's", lambda f: f.ours <= f.etcd),
    Target("memory_100000_objects_mib", "under 400 MiB a member", lambda f: f.ours < 400.0),
    Target("idle_cpu_three_members_percent_of_core", "under 1 % of a core", lambda f: f.ours < 1.0),
)


def medians(ours: Sequence[Sample], etcd: Sequence[Sample]) -> Figures:
    """Return the medians over rounds."""
    return {name: Figure(_median(ours, name), _median(etcd, name)) for name in ours[0]}


def judged(figures: Figures) -> list[dict[str, Any]]:
    """Return the targets of what was measured, and whether each is met."""
    return [
        {"figure": t.figure, "target": t.text, "met": t.met(figures[t.figure])} for t in TARGETS if t.figure in figures
    ]


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least so many percent are not above; NaN of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _median(samples: Sequence[Sample], name: str) -> float:
    return statistics.median(sample[name] for sample in samples)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
