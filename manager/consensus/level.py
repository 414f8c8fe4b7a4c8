"""Levels: which rules the members of a cluster apply, so that two releases can work side by side (docs/decisions/0007).

Invariant: what a member cannot apply exactly as the others do it does not apply at all, it stops. A raise stands in the
log before everything that needs it, because a leader uses only levels whose raise it has applied itself: so a member that
is too old meets the raise first.
"""

from collections.abc import Iterable
from typing import Final

from .types import ConsensusError

LEVEL: Final = 1
"""Newest level that this release can apply. Raised together with any change of what members must apply alike."""

OLDEST_LEVEL: Final = 1
"""Oldest level that this release can apply: that of the release before."""

FIRST_LEVEL: Final = OLDEST_LEVEL
"""Level at which a cluster is founded: its founder, a voter alone, raises it right after it was elected."""


class WrongRelease(ConsensusError):
    """This release cannot apply what the cluster has at its level; the member must not go on."""

    def __init__(self, level: int) -> None:
        if level > LEVEL:
            what = f"knows levels up to {LEVEL}: install the release that the other managers run"
        else:
            what = f"needs level {OLDEST_LEVEL} at least: upgrade through the releases between, one after the other"
        super().__init__(f"the cluster is at level {level}; this release {what}")
        self.level = level


class Levels:
    """The cluster's level as applied here, and what the others can apply. Raises WrongRelease at construction."""

    def __init__(self, level: int = FIRST_LEVEL) -> None:
        self.level = FIRST_LEVEL
        self._spoken: dict[str, int] = {}
        self.apply(level)

    def apply(self, level: int) -> None:
        """Put a committed level in force; a level never falls. Raises WrongRelease."""
        if not OLDEST_LEVEL <= max(level, self.level) <= LEVEL:
            raise WrongRelease(max(level, self.level))
        self.level = max(level, self.level)

    def heard(self, name: str, level: int) -> None:
        """Note the newest level that a member can apply, as it said itself; 0 when it is not connected any more."""
        self._spoken[name] = level

    def spoken(self, name: str) -> int:
        """Return the newest level that a connected member can apply, 0 when that is not known."""
        return self._spoken.get(name, 0)

    def due(self, me: str, voters: Iterable[str]) -> int | None:
        """Return the level to raise the cluster to: all voters are connected and can apply it. None when there is none."""
        common = min([LEVEL, *(self.spoken(name) for name in voters if name != me)])
        return common if common > self.level else None


def refused_range(level: int, oldest_level: int) -> str:
    """Return why a peer of these levels cannot take part beside us, "" when it can."""
    if level < OLDEST_LEVEL:
        return f"its release knows levels up to {level}, ours needs {OLDEST_LEVEL} at least: upgrade it"
    if oldest_level > LEVEL:
        return f"its release needs level {oldest_level} at least, ours knows up to {LEVEL}: upgrade ours first"
    return ""
