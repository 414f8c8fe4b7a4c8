"""Connections between members, and what becomes of messages on them: delay, loss, reordering, doubling, partitions.

A connection carries messages one way, as `manager.consensus.transport` makes them: it stands while both hosts are up, no cut
lies between, and each knows the other as a member; breaking is noticed late, and making it anew takes a while.

Invariant: a message reaches a member only after it left its sender, which must not have lost power before.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manager.consensus.codec import decode_message, encode_message
from manager.consensus.level import LEVEL
from manager.consensus.library import Message

from .record import Record
from .timeline import Action, Timeline

if TYPE_CHECKING:
    from .host import Host

DIAL_S = (0.05, 0.3)
"""Pause before another attempt to connect."""
NOTICE_S = (0.005, 1.5)
"""Until a broken connection is noticed: at once when the peer resets it, late when it vanished."""
BREAKS_WHEN_CUT = 0.2
"""Chance, at each look, that a connection across a partition is given up."""
BROKEN = -1
DOUBLED = 0.04
"""Share of messages that arrive twice, where that is simulated."""


@dataclass(slots=True)
class Weather:
    """How links behave at present."""

    delay_s: tuple[float, float] = (0.001, 0.01)
    loss: float = 0.0


class Network:
    """All links."""

    def __init__(self, timeline: Timeline, record: Record, rng: random.Random, *, in_order: bool) -> None:
        self.timeline, self.record, self.rng, self.in_order = timeline, record, rng, in_order
        self.hosts: Mapping[str, Host] = {}
        self.weather = Weather()
        self.cut: set[tuple[str, str]] = set()
        """Links, from and to, that carry nothing."""
        self.lets_pass: Callable[[str, str, Message], bool] = lambda _from, _to, _message: True
        """Which messages arrive at all; for scenarios."""
        self.held: dict[tuple[str, str], list[Action]] = {}
        """Links on which messages wait, and those that do."""
        self._made: dict[tuple[str, str], int] = {}
        """By link: the boot of the receiver that the connection leads to, BROKEN when it leads nowhere any more."""
        self._last_arrival: dict[tuple[str, str], float] = {}

    # -- connections

    def dial(self, host: "Host", boot: int) -> None:
        """Connect a host to all whom it wants to reach and who want to hear it, notice what broke, and go on doing so."""
        if host.core is None or host.boots != boot:
            return
        for name in sorted({*host.core.contacts, *(to for at, to in self._made if at == host.name)}):
            link = (host.name, name)
            if link not in self._made and name in host.core.contacts:
                self._connect(host, self.hosts[name])
            elif link in self._made and self._made[link] != BROKEN and self._breaks(link):
                self._break(host, name)
        self.timeline.after(self.rng.uniform(*DIAL_S), lambda: self.dial(host, boot))

    def _connect(self, host: "Host", peer: "Host") -> None:
        """Connect to a host, if it is reached; it hears us if it knows us, and is told of us if it does not."""
        link = (host.name, peer.name)
        if peer.core is None or link in self.cut:
            return
        if self._heard(host, peer):
            self._made[link] = peer.boots
            host.connected(peer.name)
            peer.greeted(host.name, LEVEL, host.uid)
        else:
            peer.introduced(host.name, host.uid)

    def host_went_down(self, name: str) -> None:
        """Break the connections that it made, which the others notice; that theirs broke they see when they look."""
        for _, to in sorted(link for link in self._made if link[0] == name):
            self._hang_up(name, to)
        self._made = {link: boot for link, boot in self._made.items() if link[0] != name}

    def _hang_up(self, name: str, to: str) -> None:
        """Let a receiver notice, some time, that a connection to it ended."""
        receiver, receiving = self.hosts[to], self._made[name, to]

        def notice() -> None:
            if receiver.boots == receiving and self._made.get((name, to)) != receiving:  # no newer connection
                receiver.greeted(name, 0, "")

        self.timeline.after(self.rng.uniform(*NOTICE_S), notice)

    @staticmethod
    def _heard(host: "Host", peer: "Host") -> bool:
        """Return whether a host listens to another one: by its name, and by the uid of its disk where that is known."""
        if host.core is None or peer.core is None or host.name not in peer.core.contacts:
            return False
        return peer.core.contacts[host.name].uid in ("", host.uid)

    def _breaks(self, link: tuple[str, str]) -> bool:
        if link in self.cut:  # a short partition need not break a connection
            return self.rng.random() < BREAKS_WHEN_CUT
        host, peer = self.hosts[link[0]], self.hosts[link[1]]
        wanted = host.core is not None and peer.name in host.core.contacts
        return not wanted or peer.boots != self._made[link] or not self._heard(host, peer)

    def _break(self, host: "Host", name: str) -> None:
        boot, link = host.boots, (host.name, name)
        self._hang_up(host.name, name)
        self._made[link] = BROKEN

        def notice() -> None:
            if host.boots == boot and self._made.get(link) == BROKEN:
                del self._made[link]
                host.disconnected(name)

        self.timeline.after(self.rng.uniform(*NOTICE_S), notice)

    # -- messages

    def release(self, link: tuple[str, str]) -> None:
        """Let what waits on a link arrive, in its order."""
        for arrive in self.held.pop(link):
            self.timeline.after(0, arrive)

    def send(self, host: "Host", to: str, message: Message) -> None:
        """Send a message at the sender's present moment, which its slow disk may have put off."""
        link = (host.name, to)
        if link in self._made:
            self._leave(host, link, self._made[link], encode_message(message))

    def _leave(self, host: "Host", link: tuple[str, str], receiving: int, frame: bytes) -> None:
        boot, disk, leaves = host.boots, host.disk_number, host.moment()
        receiver = self.hosts[link[1]]
        arrives = leaves + self.rng.uniform(*self.weather.delay_s)
        if self.in_order:
            arrives = self._last_arrival[link] = max(arrives, self._last_arrival.get(link, 0.0))
        lost = link in self.cut or self.rng.random() < self.weather.loss

        def arrive() -> None:
            if not host.was_up(boot, leaves):
                return
            if link in self.held:
                self.held[link].append(arrive)
                return
            message = decode_message(frame)
            assert message is not None
            self.record.left(host.name, disk, receiver.name, message)
            arrived = not lost and link not in self.cut and receiver.boots == receiving
            arrived = arrived and self.lets_pass(host.name, receiver.name, message)
            if self.timeline.told is not None:
                self.timeline.tell(host.name, "->" if arrived else "-x", receiver.name, _in_short(message))
            if arrived:
                receiver.receive(host.name, message)

        self.timeline.at(arrives, arrive)
        if not self.in_order and self.rng.random() < DOUBLED:
            self.timeline.at(arrives + self.rng.uniform(0, 1), arrive)


def _in_short(message: Message) -> str:
    fields = {name: len(value) if isinstance(value, list | bytes) else value for name, value in message.items()}
    return f"{fields.pop('type')} " + " ".join(f"{name}={value}" for name, value in fields.items())
