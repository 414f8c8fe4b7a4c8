"""The scheduler: where a guest runs, as a pure function, and why."""

from manager.scheduler.place import batch, place, promise, withdraw
from manager.scheduler.scores import WEIGHTS
from manager.scheduler.types import CPU_OVERCOMMIT_PERCENT, Decision, GuestRequest, NodeView, Verdict

__all__ = [
    "CPU_OVERCOMMIT_PERCENT",
    "WEIGHTS",
    "Decision",
    "GuestRequest",
    "NodeView",
    "Verdict",
    "batch",
    "place",
    "promise",
    "withdraw",
]
