"""Which guests of a node move next when it is drained, or come back after maintenance: a pure function of what became of the moves so far.

Invariant: at most `parallel` moves are under way; a guest that could not be moved is tried again only if that may help, and at most
MAX_TRIES times; the same state gives the same plan, so a manager that takes over goes on where the other one was.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

DRAIN = "drain-node"
RESTORE = "restore-node"
"""Kinds of the tasks that empty a node, and that bring its guests back."""

DEFAULT_PARALLEL = 2
"""Moves at once: one copies memory while another one is prepared or settled; more share the same network."""

MAX_PARALLEL = 16

MAX_TRIES = 3

UNWANTED = frozenset({"TASK_CANCELLED"})
"""Errors after which another try is of no use: somebody wants the guest to stay."""

HOPELESS = frozenset({"MIGRATION_IMPOSSIBLE", *UNWANTED})
"""The same while a node is emptied: an obstacle in the guest itself, or in all other nodes. On the way back it may be one in the
node, which has just booted."""


@dataclass(frozen=True, slots=True)
class Try:
    """One move of a guest: whether it is under way, and if not why it failed ("" when it did not)."""

    open: bool
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to begin now, as guest and number of the try; how many moves are under way; and why the others cannot be moved."""

    begin: tuple[tuple[str, int], ...]
    under_way: int
    stuck: Mapping[str, str]

    @property
    def over(self) -> bool:
        """Whether nothing is under way and nothing more is to be tried."""
        return not self.begin and not self.under_way


def plan(
    guests: Sequence[str],
    tries: Mapping[str, Sequence[Try]],
    parallel: int,
    hopeless: Collection[str] = HOPELESS,
) -> Plan:
    """Return what to do about the guests that are still to be moved, given the tries of each so far, in the order of the tries."""
    under_way = sum(1 for guest in guests if any(one.open for one in tries.get(guest, ())))
    begin: list[tuple[str, int]] = []
    stuck: dict[str, str] = {}
    for guest in sorted(guests, key=lambda name: (len(tries.get(name, ())), name)):  # those not tried yet come first
        done = tries.get(guest, ())
        if any(one.open for one in done):
            continue
        if done and (len(done) >= MAX_TRIES or done[-1].reason in hopeless):
            stuck[guest] = done[-1].message
        elif under_way + len(begin) < parallel:
            begin.append((guest, len(done)))
    return Plan(tuple(begin), under_way, stuck)
