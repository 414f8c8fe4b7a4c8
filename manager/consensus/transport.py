"""Frames between members over mutual TLS 1.3, in the consensus thread's loop (rule H10).

Invariant: a message reaches the core only from a peer whose certificate is
`gugus://<our cluster>/manager/<name>`, where <name> is a known member and the one that it claims to be. A connection
carries messages one way, from who opened it; what does not fit in its buffer, or has no connection, is dropped: Raft repeats itself.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress

import structlog
from cryptography import x509
from gugus.consensus.v1 import wire_pb2

from common.identity.names import Identity, Role

from .codec import MAX_FRAME_BYTES, WireError, decode_frame, decode_message, encode_message
from .library import Message
from .types import ConsensusConfig, Member, TlsFiles

PROTOCOL_VERSION = 1
CONNECT_TIMEOUT_S = 2.0
HELLO_TIMEOUT_S = 3.0
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 1.0
SEND_BUFFER_BYTES = 16 * MAX_FRAME_BYTES
"""Unsent bytes to one member beyond which messages are dropped."""
UNACKED_TIMEOUT_MS = 3_000
"""TCP_USER_TIMEOUT (RFC 5482): a connection into a power cut or partition ends after this, not after minutes."""
IDLE_TIMEOUT_S = 60.0
"""A connection that said nothing for so long is closed; the other side opens a new one when it has something to say."""
_LENGTH_BYTES = 4

_log = structlog.get_logger("manager.consensus")


class PeerRefused(Exception):
    """A peer that is not who it must be."""


class TlsTransport:
    """Listens, keeps one connection open to each member that we must reach, and hands decoded messages on."""

    def __init__(
        self,
        config: ConsensusConfig,
        received: Callable[[str, Message], None],
        connected: Callable[[str], None],
        disconnected: Callable[[str], None],
    ) -> None:
        self._config = config
        self._me = own_identity(config.tls.certificate, config.me)
        self._received, self._connected, self._disconnected = received, connected, disconnected
        self._contacts: dict[str, Member] = {}
        self._dialers: dict[str, asyncio.Task[None]] = {}
        self._writers: dict[str, asyncio.StreamWriter] = {}
        self._inbound: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises OSError (port taken) and ssl.SSLError (certificate and key do not fit)."""
        self._server = await asyncio.start_server(
            self._serve, self._config.listen_host, self._config.listen_port, ssl=_server_context(self._config.tls)
        )

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
        tasks = [*self._dialers.values(), *self._inbound]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._dialers.clear()

    def set_contacts(self, contacts: Mapping[str, Member]) -> None:
        """Say which members to reach, and to listen to."""
        if contacts == self._contacts:
            return
        for name in [n for n, member in self._contacts.items() if contacts.get(n) != member]:
            self._dialers.pop(name).cancel()
        for name, member in contacts.items():
            if name not in self._dialers:
                self._dialers[name] = asyncio.create_task(self._dial(member), name=f"raft to {name}")
        self._contacts = dict(contacts)

    def send(self, name: str, message: Message) -> None:
        """Send a message, or drop it."""
        writer = self._writers.get(name)
        if writer is None or writer.transport.get_write_buffer_size() > SEND_BUFFER_BYTES:
            return
        writer.write(_framed(encode_message(message)))

    # -- outgoing

    async def _dial(self, member: Member) -> None:
        backoff = BACKOFF_FIRST_S
        while True:
            try:
                reader, writer = await self._open(member)
            except (OSError, TimeoutError, PeerRefused) as error:
                if backoff == BACKOFF_FIRST_S:
                    _log.info(
                        "raft peer not reached", peer=member.name, host=member.host, port=member.port, error=str(error)
                    )
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, BACKOFF_MAX_S)
                continue
            backoff = BACKOFF_FIRST_S
            self._writers[member.name] = writer
            self._connected(member.name)
            try:
                with suppress(OSError):
                    await reader.read(1)  # the peer never speaks on this connection: returns when it closes
            finally:
                del self._writers[member.name]
                writer.transport.abort()
                self._disconnected(member.name)
            await asyncio.sleep(BACKOFF_FIRST_S)

    async def _open(self, member: Member) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = _client_context(self._config.tls)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(member.host, member.port, ssl=context, server_hostname="")
        try:
            _require(_peer(writer) == Identity(self._me.cluster_id, Role.MANAGER, member.name), writer, member.name)
        except PeerRefused:
            writer.transport.abort()
            raise
        _tune(writer)
        hello = wire_pb2.Hello(
            version=PROTOCOL_VERSION, cluster_id=self._me.cluster_id, sender=self._me.name, recipient=member.name
        )
        writer.write(_framed(wire_pb2.Frame(hello=hello).SerializeToString()))
        return reader, writer

    # -- incoming

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._inbound.add(task)
            task.add_done_callback(self._inbound.discard)
        try:
            sender = await self._greet(reader, writer)
            while True:
                async with asyncio.timeout(IDLE_TIMEOUT_S):
                    frame = await _read_frame(reader)
                message = decode_message(frame)
                if sender not in self._contacts:
                    raise PeerRefused(f"{sender} is no voter of this cluster any more")
                self._received(sender, message)
        except (PeerRefused, WireError) as error:
            _log.warning("raft connection refused", peer=writer.get_extra_info("peername"), reason=str(error))
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the peer went away and will come back
        finally:
            writer.transport.abort()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        peer = _peer(writer)
        if peer is None or peer.role is not Role.MANAGER or peer.cluster_id != self._me.cluster_id:
            raise PeerRefused(f"its certificate says {peer}, not a manager of cluster {self._me.cluster_id}")
        if peer.name not in self._contacts:
            raise PeerRefused(f"{peer.name} is no voter of this cluster")
        _tune(writer)
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            hello = decode_frame(await _read_frame(reader)).hello
        if hello.version != PROTOCOL_VERSION:
            raise PeerRefused(f"{peer.name} speaks version {hello.version}, we speak {PROTOCOL_VERSION}")
        said = (hello.cluster_id, hello.sender, hello.recipient)
        if said != (self._me.cluster_id, peer.name, self._me.name):
            raise PeerRefused(f"{peer} says that it is {hello.sender!r} calling {hello.recipient!r}; we are {self._me}")
        return peer.name


def own_identity(certificate: object, me: str) -> Identity:
    """Read our identity from our certificate file. Raises OSError, and ValueError when it is not manager `me`."""
    with open(str(certificate), "rb") as file:
        parsed = x509.load_pem_x509_certificate(file.read())
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = [uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith("gugus://")]
    identity = Identity.parse(uris[0]) if len(uris) == 1 else None
    if identity is None or identity.role is not Role.MANAGER or identity.name != me:
        raise ValueError(f"{certificate}: is for {uris}, not for manager {me!r}; issue the manager certificate again")
    return identity


def _peer(writer: asyncio.StreamWriter) -> Identity | None:
    certificate = writer.get_extra_info("peercert") or {}
    uris = [
        value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI" and value.startswith("gugus:")
    ]
    with suppress(ValueError):
        return Identity.parse(uris[0]) if len(uris) == 1 else None
    return None


def _require(right: bool, writer: asyncio.StreamWriter, name: str) -> None:
    if not right:
        raise PeerRefused(f"the certificate there says {_peer(writer)}, not manager {name} of our cluster")


def _server_context(files: TlsFiles) -> ssl.SSLContext:
    return _context(ssl.PROTOCOL_TLS_SERVER, files)


def _client_context(files: TlsFiles) -> ssl.SSLContext:
    return _context(ssl.PROTOCOL_TLS_CLIENT, files)


def _context(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False  # the identity is the URI in the certificate, checked after the handshake
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(str(files.ca))
    context.load_cert_chain(str(files.certificate), str(files.key))
    return context


def _tune(writer: asyncio.StreamWriter) -> None:
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKED_TIMEOUT_MS)


def _framed(frame: bytes) -> bytes:
    return len(frame).to_bytes(_LENGTH_BYTES, "big") + frame


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
    if length > MAX_FRAME_BYTES:
        raise WireError(f"frame: {length} bytes, at most {MAX_FRAME_BYTES}")
    return await reader.readexactly(length)
