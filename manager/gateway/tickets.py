"""Tickets: each opens one console once, within half a minute, for whom it was made.

Invariant: a ticket itself is never kept, only its SHA-256, and looking one up takes the same time whether it is known or not. In memory of
the manager that made it alone: what another one would not honour need not be replicated.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from gugus.agent.v1.access_pb2 import ConsoleKind

from common.errors import resource_exhausted

LIFETIME_S = 30.0
"""How long a ticket may be used (ConsoleTicket.expires_at)."""

TICKET_BYTES = 32
MAX_TICKETS = 1024
"""Most tickets that wait for their use; each is looked at when one is used."""

MAX_TICKETS_OF_USER = 64
_MAX_TEXT_CHARS = 128


@dataclass(frozen=True, slots=True)
class Grant:
    """What a ticket gives: a console of exactly this guest (uid: not of a later one of its name), to this user."""

    guest: str
    uid: str
    kind: ConsoleKind.ValueType
    user: str


class Tickets:
    """All tickets of this manager. now_s: a clock that only goes forward."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._waiting: dict[bytes, tuple[float, Grant]] = {}

    def issue(self, grant: Grant) -> str:
        """Make a ticket. Raises TOO_MANY_TICKETS when too many wait for their use."""
        self._forget_old()
        of_user = sum(1 for _, other in self._waiting.values() if other.user == grant.user)
        if len(self._waiting) >= MAX_TICKETS or of_user >= MAX_TICKETS_OF_USER:
            raise resource_exhausted(
                "TOO_MANY_TICKETS",
                "too many tickets to consoles wait for their use.",
                remedy=f"Use them; each ends after {LIFETIME_S:.0f} s.",
            )
        ticket = secrets.token_urlsafe(TICKET_BYTES)
        self._waiting[_hash(ticket)] = (self._now_s() + LIFETIME_S, grant)
        return ticket

    def redeem(self, guest: str, ticket: str) -> Grant | None:
        """Return what a ticket gives, and end it; None for one that is not known, used, over, or another guest's.

        A ticket that is shown for another guest than its own is ended, too: somebody tries.
        """
        self._forget_old()
        shown = _hash(ticket[:_MAX_TEXT_CHARS])
        found = b""
        for known in self._waiting:
            if hmac.compare_digest(known, shown):
                found = known
        _, grant = self._waiting.pop(found, (0.0, None))
        return grant if grant is not None and grant.guest == guest else None

    def clear(self) -> None:
        """End all tickets."""
        self._waiting.clear()

    def _forget_old(self) -> None:
        now_s = self._now_s()
        for key in [key for key, (end_s, _) in self._waiting.items() if end_s <= now_s]:
            del self._waiting[key]


def _hash(ticket: str) -> bytes:
    return hashlib.sha256(ticket.encode(errors="replace")).digest()
