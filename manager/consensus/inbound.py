"""Connections that members open to us: admitted by certificate and Hello, then read (rule H10).

Invariant: what has not said a right Hello costs a bounded number of sockets and bytes for a bounded time, and no source
address can take the places of the others. Of each member one connection is open, the newest.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import cast

import structlog
from gugus.consensus.v1 import wire_pb2

from common.identity.names import Identity, Role

from .codec import MAX_FRAME_BYTES, WireError, decode_hello, decode_message, encode_refusal
from .frames import FrameSplitter, framed
from .level import refused_range
from .library import Message
from .notes import Notes
from .tls import PeerRefused, peer_identity, server_context, tune
from .types import ConsensusConfig, Member

GREETING_TIMEOUT_S = 3.0
"""From accepting a connection to the end of its Hello."""
FRAME_TIMEOUT_S = 10.0
"""From the first byte of a frame to its last."""
CLOSE_TIMEOUT_S = 1.0
"""For the last words of a connection that we close."""
MAX_HELLO_BYTES = 1_024
"""Largest first frame: names, and an address."""
MAX_GREETING = 32
"""Connections that have not said who they are; beyond, one is closed for the next."""
ACCEPT_PAUSE_S = 0.01
"""Least time between two connections: a flood of handshakes must not keep the thread from its members."""
ACCEPT_RETRY_S = 1.0
"""After accepting failed: this process has no file descriptor left."""
BACKLOG = 64

_log = structlog.get_logger("manager.consensus")


class Listener:
    """Listens, and hands on what members say.

    `greeted` is called with a member's level at its Hello, with 0 at its end; `introduced` with a manager of the cluster that is
    not listened to: if the core wants to, it becomes a contact, and is heard when it calls again.
    """

    def __init__(
        self,
        config: ConsensusConfig,
        me: Identity,
        received: Callable[[str, Message], None],
        greeted: Callable[[str, int, str], None],
        introduced: Callable[[Member], None],
    ) -> None:
        self.received = received
        self._config, self._me, self._greeted, self._introduced = config, me, greeted, introduced
        self._context = server_context(config.tls)
        self._contacts: Mapping[str, str] = {}
        self._greeting: dict[asyncio.Task[None], str] = {}
        self._speakers: dict[str, Inbound] = {}
        self._accepting: asyncio.Task[None] | None = None
        self._notes = Notes()

    async def start(self) -> None:
        """Listen. Raises OSError (port taken)."""
        host, port = self._config.listen_host, self._config.listen_port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server = socket.create_server((host, port), family=family, backlog=BACKLOG)
        server.setblocking(False)
        self._accepting = asyncio.create_task(self._accept(server), name="raft listener")

    async def stop(self) -> None:
        """Close everything."""
        tasks = [*self._greeting, *([self._accepting] if self._accepting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for speaker in list(self._speakers.values()):
            speaker.abort()

    def set_contacts(self, uids: Mapping[str, str]) -> None:
        """Say whom to listen to, by name and uid, "" for any; the connections of others end."""
        self._contacts = uids
        for name, speaker in list(self._speakers.items()):
            if name not in uids:
                speaker.refuse(f"{name} is no voter of this cluster any more")
            elif uids[name] not in ("", speaker.uid):
                speaker.refuse(f"another life of {name} is the voter")

    # -- for one connection

    def identify(self, transport: asyncio.BaseTransport) -> Identity:
        """Return whom a peer's certificate speaks for. Raises PeerRefused when that is no manager of our cluster."""
        peer = peer_identity(transport)
        if peer is None or peer.role is not Role.MANAGER or peer.cluster_id != self._me.cluster_id:
            raise PeerRefused(f"its certificate says {peer}, not a manager of cluster {self._me.cluster_id}")
        return peer

    def admit(self, connection: "Inbound", peer: Identity, hello: wire_pb2.Hello) -> None:
        """Take a connection whose Hello fits its certificate; it replaces an older one. Raises PeerRefused."""
        said = (hello.cluster_id, hello.sender, hello.recipient)
        if said != (self._me.cluster_id, peer.name, self._me.name):
            raise PeerRefused(f"{peer} says that it is {hello.sender!r} calling {hello.recipient!r}; we are {self._me}")
        if reason := refused_range(hello.level, hello.oldest_level):
            raise PeerRefused(f"{peer.name}: {reason}")
        if peer.name not in self._contacts:
            self._introduce(peer.name, hello)
            raise PeerRefused(f"{peer.name} is no voter of this cluster")
        if self._contacts[peer.name] not in ("", hello.uid):
            self._introduce(peer.name, hello)
            raise PeerRefused(f"{peer.name} lost its data folder: as a voter it must be removed, then added again")
        older = self._speakers.get(peer.name)
        self._speakers[peer.name] = connection
        if older is not None:
            older.abort()
        connection.uid = hello.uid
        self._greeted(peer.name, hello.level, hello.uid)

    def _introduce(self, name: str, hello: wire_pb2.Hello) -> None:
        with suppress(ValueError):
            self._introduced(Member(name, hello.host, hello.port, hello.uid))

    def lost(self, connection: "Inbound") -> None:
        """Note that an admitted connection ended."""
        if self._speakers.get(connection.sender) is connection:
            del self._speakers[connection.sender]
            self._greeted(connection.sender, 0, "")

    def refused(self, peer: str, reason: str) -> None:
        """Log why a connection was refused."""
        if self._notes.worth_saying(peer, reason):
            _log.warning("raft connection refused", peer=peer, reason=reason)

    # -- accepting

    async def _accept(self, server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with server:
            while True:
                try:
                    raw, address = await loop.sock_accept(server)
                except OSError as error:
                    self.refused("anybody", f"no connection can be accepted: {error}")
                    await asyncio.sleep(ACCEPT_RETRY_S)
                    continue
                self._make_place()
                task = asyncio.create_task(self._greet(raw, address[0]), name="raft greeting")
                self._greeting[task] = address[0]
                task.add_done_callback(self._greeting.pop)
                await asyncio.sleep(ACCEPT_PAUSE_S)

    def _make_place(self) -> None:
        """Close the oldest unknown connection of the address that has the most, if there are too many."""
        if len(self._greeting) >= MAX_GREETING:
            greedy, _ = Counter(self._greeting.values()).most_common(1)[0]
            next(task for task, address in self._greeting.items() if address == greedy).cancel()

    async def _greet(self, raw: socket.socket, address: str) -> None:
        connection = Inbound(self, address)
        try:
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: connection,
                    raw,
                    ssl=self._context,
                    ssl_handshake_timeout=GREETING_TIMEOUT_S,
                    ssl_shutdown_timeout=CLOSE_TIMEOUT_S,
                )
                await connection.settled
        except TimeoutError:
            self.refused(address, f"no hello within {GREETING_TIMEOUT_S} s")
        except OSError as error:  # of TLS, too: another CA's certificate, or none
            self.refused(address, f"no handshake: {error}")
        finally:
            if not connection.sender:
                connection.abort()


class Inbound(asyncio.Protocol):
    """One connection that a peer opened to us."""

    def __init__(self, listener: Listener, address: str) -> None:
        self.sender = ""
        """The member that speaks, once it is admitted."""
        self.uid = ""
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when it is admitted, or over."""
        self._listener, self._address = listener, address
        self._splitter = FrameSplitter(MAX_HELLO_BYTES)
        self._peer: Identity | None = None
        self._transport: asyncio.Transport | None = None
        self._closing = False
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Check the certificate: the handshake is complete."""
        self._transport = cast(asyncio.Transport, transport)
        try:
            tune(transport)
            self._peer = self._listener.identify(transport)
        except (PeerRefused, OSError) as error:
            self.refuse(str(error))

    def data_received(self, data: bytes) -> None:
        """Handle the frames that are complete now."""
        if self._closing:
            return
        try:
            for frame in self._splitter.feed(data):
                self._stop_timer()
                self._handle(frame)
                if self._closing:
                    return
        except (WireError, PeerRefused) as error:
            self.refuse(str(error))
        else:
            self._time_rest()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end, whoever wanted it."""
        self._closing = True
        self._stop_timer()
        if self.sender:
            self._listener.lost(self)
        self._settle()

    def refuse(self, reason: str) -> None:
        """Say why, and close."""
        self._listener.refused(self._peer.name if self._peer else self._address, reason)
        self._closing = True
        self._stop_timer()
        if self._transport is not None:
            self._transport.write(framed(encode_refusal(reason)))
            self._transport.close()
            self._late = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self.abort)

    def abort(self) -> None:
        """Close without a word."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def _handle(self, frame: bytes) -> None:
        if self.sender:
            message = decode_message(frame)
            if message is not None:
                self._listener.received(self.sender, message)
        elif self._peer is not None:
            self._listener.admit(self, self._peer, decode_hello(frame))
            self.sender = self._peer.name
            self._splitter.limit = MAX_FRAME_BYTES
            self._settle()

    def _time_rest(self) -> None:
        """Give the rest of a frame a limited time; between frames a peer may be silent as long as it likes."""
        if self._splitter.incomplete and self._late is None and self.sender:
            late = f"{self.sender}: the rest of a frame did not come within {FRAME_TIMEOUT_S} s"
            self._late = asyncio.get_running_loop().call_later(FRAME_TIMEOUT_S, self.refuse, late)

    def _stop_timer(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _settle(self) -> None:
        with suppress(asyncio.InvalidStateError):
            self.settled.set_result(None)
