"""The scheduler: the planner over what is stored."""

from planner.place import batch, place, promise, withdraw
from planner.scores import WEIGHTS
from planner.settings import CPU_OVERCOMMIT_PERCENT
from planner.types import Decision, GuestRequest, NodeView, Verdict

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
