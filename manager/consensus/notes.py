"""Logging without floods: a peer that fails in the same way for hours is told of once in a while.

Invariant: memory is bounded, whoever connects from wherever.
"""

import math
import time
from typing import Final

REPEAT_S: Final = 600.0
"""The same thing about the same peer is said again after this."""

CHANGE_S: Final = 10.0
"""Something else about the same peer is said at the earliest after this: it may alternate as it likes."""

MAX_PEERS: Final = 64
"""Peers remembered; beyond, the one longest not spoken of is forgotten."""


class Notes:
    """What was said last about each peer, and when."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[str, float]] = {}

    def worth_saying(self, peer: str, text: str) -> bool:
        """Return whether this is news about a peer, or was last said long ago; it counts as said now."""
        now = time.monotonic()
        said, at = self._said.pop(peer, ("", -math.inf))
        worth = now - at >= (REPEAT_S if said == text else CHANGE_S)
        self._said[peer] = (text, now) if worth else (said, at)
        if len(self._said) > MAX_PEERS:
            del self._said[next(iter(self._said))]
        return worth
