"""Frames between members over mutual TLS 1.3, in the consensus thread's loop (rule H10).

Invariant: a message reaches the core only from a peer whose certificate is
`gugus://<our cluster>/manager/<name>`, where <name> is a known member and the one that it claims to be. A connection
carries messages one way, from who opened it; what does not fit in its buffer, or has no connection, is dropped: Raft repeats itself.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

from .codec import encode_message
from .inbound import Listener
from .library import Message
from .outbound import Dialer
from .tls import own_identity
from .types import ConsensusConfig, Member

_AT_ONCE = frozenset({"append_entries", "snapshot_chunk"})
"""Messages that must travel while the sender's own disk works, which keeps the loop."""


class TlsTransport:
    """Listens, keeps one connection open to each member that we must reach, and hands decoded messages on.

    `greeted` is called with the newest level that a member's release can apply (manager.consensus.level) when it has
    connected to us, and with 0 when that connection has ended.
    """

    def __init__(
        self,
        config: ConsensusConfig,
        received: Callable[[str, Message], None],
        connected: Callable[[str], None],
        disconnected: Callable[[str], None],
        greeted: Callable[[str, int, str], None],
        introduced: Callable[[Member], None],
    ) -> None:
        self._config = config
        self._me = own_identity(config.tls.certificate, config.me)
        self._connected, self._disconnected, self._greeted = connected, disconnected, greeted
        self._listener = Listener(config, self._me, received, self._on_greeted, introduced)
        self._contacts: dict[str, Member] = {}
        self._dialers: dict[str, Dialer] = {}
        self._own = next(voter for voter in config.voters if voter.name == config.me)
        self._flush_due = False
        self._encoded: tuple[Message, bytes] | None = None

    async def start(self, uid: str) -> None:
        """Listen, and say from now on that our data folder has this uid.

        Raises OSError (port taken) and ssl.SSLError (certificate and key do not fit).
        """
        self._own = replace(self._own, uid=uid)
        await self._listener.start()

    async def stop(self) -> None:
        """Close everything."""
        await self._listener.stop()
        tasks = [dialer.task for dialer in self._dialers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._dialers.clear()

    def set_contacts(self, contacts: Mapping[str, Member]) -> None:
        """Say which members to reach, and to listen to."""
        if contacts == self._contacts:
            return
        for name in [n for n, member in self._contacts.items() if _address(contacts.get(n)) != _address(member)]:
            self._dialers.pop(name).task.cancel()
        self._contacts = dict(contacts)
        self._listener.set_contacts({name: member.uid for name, member in contacts.items()})
        for name, member in contacts.items():
            if name not in self._dialers:
                self._dialers[name] = Dialer(
                    self._me, self._config, self._own, member, self._connected, self._disconnected
                )

    def send(self, name: str, message: Message) -> None:
        """Send a message, or drop it: entries at once, the rest with the next `flush`, at the latest after this turn of the loop."""
        dialer = self._dialers.get(name)
        if dialer is None or not dialer.writable:
            return
        dialer.send(self._encode(message))
        if message["type"] in _AT_ONCE:
            dialer.flush()
        elif not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Write all that `send` has gathered."""
        self._flush_due = False
        for dialer in self._dialers.values():
            dialer.flush()

    def _encode(self, message: Message) -> bytes:
        """Encode a message, or find that it is the one that another member was just sent."""
        if self._encoded is None or self._encoded[0] != message:
            self._encoded = message, encode_message(message)
        return self._encoded[1]

    def _on_greeted(self, name: str, level: int, uid: str) -> None:
        if level and name in self._dialers:
            self._dialers[name].wake()
        self._greeted(name, level, uid)


def _address(member: Member | None) -> tuple[str, int] | None:
    return None if member is None else (member.host, member.port)
