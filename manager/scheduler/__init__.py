"""The scheduler: the planner over what is stored."""

from planner.place import Terms, batch, decide, place, promise, withdraw
from planner.scores import weights_of
from planner.settings import Settings
from planner.settle import settle
from planner.types import Decision, GuestRequest, NodeView, Verdict

__all__ = [
    "Decision",
    "GuestRequest",
    "NodeView",
    "Settings",
    "Terms",
    "Verdict",
    "batch",
    "decide",
    "place",
    "promise",
    "settle",
    "weights_of",
    "withdraw",
]
