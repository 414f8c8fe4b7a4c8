"""Scores: which of the fit nodes is best.

Invariant: SCORES is the one list that drives scoring and explaining. Each score lies between 0 and 1 and looks at its
node alone, so that another node's coming or going never changes the order of the rest.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from manager.scheduler.types import GuestRequest, NodeView

Score = Callable[[GuestRequest, NodeView, int], float]


def _spread(request: GuestRequest, node: NodeView, overcommit: int) -> float:
    return 1.0 / (1 + node.guests)


def _free_memory(request: GuestRequest, node: NodeView, overcommit: int) -> float:
    return _left(node.memory_bytes, node.promised_memory_bytes + request.memory_bytes)


def _free_cpu(request: GuestRequest, node: NodeView, overcommit: int) -> float:
    return _left(node.cpus * overcommit // 100, node.promised_cpus + request.cpus)


def _preferred(request: GuestRequest, node: NodeView, overcommit: int) -> float:
    return 1.0 if request.preferred == node.name else 0.0


def _left(total: int, taken: int) -> float:
    return max(0, total - taken) / total if total > 0 else 0.0


SCORES: tuple[tuple[str, float, Score], ...] = (
    ("spread", 1.0, _spread),
    ("free-memory", 1.0, _free_memory),
    ("free-cpu", 0.5, _free_cpu),
    ("preferred", 10.0, _preferred),
)
"""Name, default weight and function of each score. The preferred node outweighs all others together."""

WEIGHTS: Mapping[str, float] = MappingProxyType({name: weight for name, weight, _ in SCORES})
