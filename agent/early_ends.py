"""Guests that want to end in order before the lease does: whom to ask, and when. Pure."""

from collections.abc import Iterable

from gugus.agent.v1.guest_pb2 import GuestSpec

ASK_AGAIN_S = 5.0
"""So often a guest is asked while it runs on: one that is still booting does not hear the first time."""


class EarlyEnds:
    """Remembers who was asked, while the lease is endangered."""

    def __init__(self) -> None:
        self._asked: dict[str, float] = {}

    def due(self, running: Iterable[GuestSpec], now_s: float, *, endangered: bool) -> list[str]:
        """Return the guests that are to be asked now, of those that run. endangered: the lease may well end without being renewed."""
        if not endangered:
            self._asked.clear()
            return []
        wanting = [spec.name for spec in running if spec.ha and spec.stop_on_quorum_loss]
        due = [name for name in wanting if now_s - self._asked.get(name, -ASK_AGAIN_S) >= ASK_AGAIN_S]
        self._asked.update(dict.fromkeys(due, now_s))
        return due
