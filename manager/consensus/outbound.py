"""The connection that we open to a member, and open again: who is there is checked, then we write (rule H10).

Invariant: nothing is written to a peer whose certificate is not that member's. What does not fit in the buffer, or has no
connection, is dropped: Raft repeats itself. A member that refuses us, as others do one that was removed, is asked rarely.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import structlog
from gugus.consensus.v1 import wire_pb2

from common.identity.names import Identity, Role
from common.waiting import happened

from . import level
from .codec import MAX_FRAME_BYTES, WireError, decode_refusal, encode_hello
from .frames import FrameSplitter, framed
from .inbound import CLOSE_TIMEOUT_S
from .notes import Notes
from .tls import PeerRefused, client_context, peer_identity, tune
from .types import ConsensusConfig, Member

CONNECT_TIMEOUT_S = 2.0
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 1.0
"""Longest pause before a member that is not reached is tried again."""
BACKOFF_REFUSED_S = 10.0
"""Longest pause before a member that refuses us is tried again. When it calls us meanwhile, we try at once."""
STABLE_S = 2.0
"""A connection that lasted so long starts the pauses anew."""
SEND_BUFFER_BYTES = 16 * MAX_FRAME_BYTES
"""Unsent bytes to one member beyond which messages are dropped."""
MAX_REFUSAL_BYTES = 4_096
"""Largest frame that the other side may send: a refusal of 300 characters."""

_log = structlog.get_logger("manager.consensus")


class Dialer:
    """Keeps one connection open to one member. `connected` and `disconnected` are called with its name."""

    def __init__(
        self,
        me: Identity,
        config: ConsensusConfig,
        own: Member,
        member: Member,
        connected: Callable[[str], None],
        disconnected: Callable[[str], None],
    ) -> None:
        self._me, self._tls, self._own, self._member = me, config.tls, own, member
        self._connected, self._disconnected = connected, disconnected
        self._transport: asyncio.Transport | None = None
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._woken = asyncio.Event()
        self._notes = Notes()
        self.task = asyncio.create_task(self._run(), name=f"raft to {member.name}")

    @property
    def writable(self) -> bool:
        """Whether a message would be sent and not dropped."""
        transport = self._transport
        return (
            transport is not None
            and not transport.is_closing()
            and transport.get_write_buffer_size() + self._gathered_bytes <= SEND_BUFFER_BYTES
        )

    def send(self, frame: bytes) -> None:
        """Gather a frame for the next `flush`."""
        data = framed(frame)
        self._gathered.append(data)
        self._gathered_bytes += len(data)

    def flush(self) -> None:
        """Write what was gathered: in one piece, so that it costs one system call."""
        if self._gathered:
            data = b"".join(self._gathered)
            self._gathered.clear()
            self._gathered_bytes = 0
            if self._transport is not None:
                self._transport.write(data)

    def wake(self) -> None:
        """Try again at once: the member was heard."""
        self._woken.set()

    # -- the connection

    async def _run(self) -> None:
        loop, pause = asyncio.get_running_loop(), BACKOFF_FIRST_S
        while True:
            begun, limit = loop.time(), BACKOFF_MAX_S
            self._woken.clear()
            try:
                await self._stay_connected()
            except PeerRefused as error:
                self._tell(f"refused: {error}")
                limit = BACKOFF_REFUSED_S
            except (OSError, TimeoutError) as error:
                self._tell(f"not reached: {str(error) or 'no answer in time'}")
            if loop.time() - begun >= CONNECT_TIMEOUT_S + STABLE_S:
                pause = BACKOFF_FIRST_S
            await happened(self._woken, pause)
            pause = BACKOFF_FIRST_S if self._woken.is_set() else min(pause * 2, limit)

    async def _stay_connected(self) -> None:
        """Connect, and return when the connection ends. Raises OSError, TimeoutError, and PeerRefused by either side."""
        transport, protocol = await self._open()
        name = self._member.name
        try:
            self._transport = transport
            self._connected(name)
            await protocol.ended
        finally:
            self._transport = None
            self._gathered.clear()
            self._gathered_bytes = 0
            transport.abort()
            self._disconnected(name)
        if protocol.refusal:
            raise PeerRefused(protocol.refusal)

    async def _open(self) -> tuple[asyncio.Transport, "_Outbound"]:
        member = self._member
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            transport, protocol = await asyncio.get_running_loop().create_connection(
                _Outbound,
                member.host,
                member.port,
                ssl=client_context(self._tls),
                server_hostname="",
                ssl_handshake_timeout=CONNECT_TIMEOUT_S,
                ssl_shutdown_timeout=CLOSE_TIMEOUT_S,
            )
        try:
            peer = peer_identity(transport)
            if peer != Identity(self._me.cluster_id, Role.MANAGER, member.name):
                raise PeerRefused(f"the certificate there says {peer}, not manager {member.name} of our cluster")
            tune(transport)
        except BaseException:
            transport.abort()
            raise
        transport.write(framed(encode_hello(self._hello())))
        return transport, protocol

    def _hello(self) -> wire_pb2.Hello:
        return wire_pb2.Hello(
            level=level.LEVEL,
            oldest_level=level.OLDEST_LEVEL,
            cluster_id=self._me.cluster_id,
            sender=self._me.name,
            recipient=self._member.name,
            host=self._own.host,
            port=self._own.port,
            uid=self._own.uid,
        )

    def _tell(self, reason: str) -> None:
        member = self._member
        if self._notes.worth_saying(member.name, reason):
            _log.info("no raft connection", peer=member.name, host=member.host, port=member.port, reason=reason)


class _Outbound(asyncio.Protocol):
    """Our end of a connection that we opened: the peer says nothing on it, but why it refuses us."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.refusal = ""
        self._splitter = FrameSplitter(MAX_REFUSAL_BYTES)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Read a refusal; anything else that is said here is wrong."""
        try:
            for frame in self._splitter.feed(data):
                self.refusal = self.refusal or decode_refusal(frame)
        except WireError as error:
            self.refusal = f"it speaks where it may not: {error}"
        if self.refusal and self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        with suppress(asyncio.InvalidStateError):
            self.ended.set_result(None)
