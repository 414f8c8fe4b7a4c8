"""Rules: which nodes a guest may have or likes best, and which guests belong together or apart.

A rule names its guests, or selects them by labels, or both. What strict rules forbid is never planned; preferring ones
make nodes better or worse. `conflicts` (planner.conflicts) finds rules that cannot hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from planner.types import GuestRequest

_NO_LABELS: Mapping[str, str] = MappingProxyType({})


class Mode(StrEnum):
    """How guests of a rule stand to one another."""

    TOGETHER = "together"
    APART = "apart"


@dataclass(frozen=True, slots=True)
class Guests:
    """Those of a rule: by name, and all that have every one of the labels (unless there are none)."""

    names: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=lambda: _NO_LABELS)

    def cover(self, guest: GuestRequest) -> bool:
        """Whether a guest is one of them."""
        if guest.name in self.names:
            return True
        return bool(self.labels) and all(guest.labels.get(key) == value for key, value in self.labels.items())


@dataclass(frozen=True, slots=True)
class NodeAffinity:
    """Guests run on these nodes, best on those with the highest priority.

    strict: on no others, ever; else on others only when none of these fits. failback: a guest on a lesser node goes to
    a better one as soon as it can; else it stays.
    """

    name: str
    guests: Guests
    nodes: Mapping[str, int]
    strict: bool = True
    failback: bool = True


@dataclass(frozen=True, slots=True)
class GuestAffinity:
    """Guests run together in one domain, or apart, each in a domain of its own.

    domain: key of a label of nodes, like rack or site; empty when the node itself is meant. A node without the label
    is in no domain, so strict rules refuse it.
    """

    name: str
    guests: Guests
    mode: Mode
    strict: bool = True
    domain: str = ""


Rule = NodeAffinity | GuestAffinity
