"""The port at which other agents bring guests: TLS 1.3 with certificates of nodes only, and a ticket for each guest.

Invariant: a connection reaches nothing of this host before it has shown (1) the certificate of the very node that the
migration comes from and (2) its ticket, which is good once; later connections of it name the secret that the ticket was
changed for, and which stream they carry. Every wait before that is short, and few wait at once.

Our own authority alone is trusted, with one exception: for a guest of another cluster, that cluster's authority, as long
as the guest is expected, for connections that ask for it by name (SNI), and for nothing but this one migration: a
connection gets only to a migration that is verified by the very context which let it in. No session is ever resumed,
for a resumed one would not be verified anew.
"""

import hmac
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from agent.migration.pump import Broken, Moved, Stop, pump
from agent.migration.wire import Channel, arrival_name, close, narrow, new_secret, tune
from common.errors import GugusError, unavailable
from common.identity.credentials import Credentials
from common.identity.names import Identity, Role
from common.identity.tls import peer_identity, server_context
from common.logs import get_logger

GREETING_TIMEOUT_S = 5.0
"""From the connection to the end of its greeting."""

MAX_GREETINGS = 32
"""Connections that have not shown their right yet; more wait in the kernel's queue, then are refused by it."""

TICKET_LIFE_S = 60.0
"""A ticket that is not used for so long is good no more."""

BACKLOG = 64

Serve = Callable[[ssl.SSLSocket, Stop, Moved], None]
"""Serves one stream in the connection's own thread, until it ends or is stopped."""

Open = Callable[[], Serve]
"""Makes ready what serves a stream, before the source hears that it is and opens the next one. May raise OSError."""

_log = get_logger("migration.arrivals")


@dataclass(eq=False)
class Arrival:
    """A migration that is expected. host: runs what the source and the target have to say to each other.

    `streams` maps a stream's name to what serves it; a name that ends in "/" serves all that begin with it.
    """

    id: str
    source: Identity
    streams: Mapping[str, Open]
    host: Callable[[Channel], None]
    ca_pem: bytes = b""
    """Authority of the source's cluster, when that is another one than ours."""
    ticket: str = field(default_factory=new_secret, repr=False)
    expires_s: float = field(default_factory=lambda: time.monotonic() + TICKET_LIFE_S)
    session: str = field(default="", repr=False)
    stop: Stop = field(default_factory=Stop)
    moved: dict[str, Moved] = field(default_factory=dict)
    channel: Channel | None = None
    """The conversation with the source, once it has begun."""
    trust: ssl.SSLContext | None = field(default=None, repr=False)
    """What its source is verified by; set by `Arrivals.expect`."""
    over: bool = False

    @property
    def alive(self) -> bool:
        """Whether the source is connected, or may still come in."""
        return not self.over and (bool(self.session) or time.monotonic() <= self.expires_s)

    def end(self) -> None:
        """End its streams; nobody comes in any more."""
        self.over = True
        self.stop.set()

    def opener_of(self, stream: str) -> Open | None:
        """Return what opens a stream."""
        return self.streams.get(stream) or self.streams.get(stream.partition("/")[0] + "/")


class Arrivals:
    """The listener and the migrations that it expects. Methods may be called from any thread."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._context = _strict(server_context(credentials))
        self._context.sni_callback = self._pick
        self._expected: dict[str, Arrival] = {}
        self._lock = threading.Lock()
        self._greetings = threading.BoundedSemaphore(MAX_GREETINGS)
        self._server: socket.socket | None = None

    @property
    def port(self) -> int:
        """Port that it listens at; 0 when it does not."""
        return int(self._server.getsockname()[1]) if self._server is not None else 0

    def open(self, address: str, port: int) -> None:
        """Listen. Raises GugusError PORT_TAKEN."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            self._server = socket.create_server((address, port), family=family, backlog=BACKLOG)
        except OSError as error:
            remedy = 'Choose another "migration_port" in agent.yaml, or end what has it.'
            what = f"cannot listen for migrations at {address}, port {port}: {error.strerror}."
            raise unavailable("PORT_TAKEN", what, remedy=remedy) from error
        threading.Thread(target=self._accept, args=(self._server,), name="migration-port", daemon=True).start()

    def close(self) -> None:
        """Listen no more, and end every migration that comes in."""
        server, self._server = self._server, None
        if server is not None:
            close(server)
        for id_ in list(self._expected):
            self.forget(id_)

    def expect(self, arrival: Arrival) -> None:
        """Let a migration in. One of the same id that was expected before is ended. Raises ValueError for an authority that is none."""
        self.forget(arrival.id)
        foreign = arrival.ca_pem
        arrival.trust = _strict(server_context(self._credentials, trust=foreign)) if foreign else self._context
        with self._lock:
            self._expected[arrival.id] = arrival

    def forget(self, id_: str) -> None:
        """Let a migration in no more, and end its connections. Fine for one that is not expected."""
        with self._lock:
            arrival = self._expected.pop(id_, None)
        if arrival is not None:
            arrival.end()
            if arrival.channel is not None:
                arrival.channel.close()

    def expects(self, id_: str) -> bool:
        """Whether the source of a migration is connected, or may still come in."""
        with self._lock:
            arrival = self._expected.get(id_)
        return arrival is not None and arrival.alive

    def _pick(self, tls: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        """Verify who asks for a guest of another cluster by that cluster's authority; anybody else by ours."""
        with self._lock:
            found = next((a for a in self._expected.values() if a.ca_pem and arrival_name(a.id) == name), None)
        if found is not None and found.trust is not None and found.alive:
            tls.context = found.trust

    def _accept(self, server: socket.socket) -> None:
        while True:
            self._greetings.acquire()
            try:
                connection, peer = server.accept()
            except OSError as error:
                self._greetings.release()
                if server.fileno() < 0 or self._server is not server:
                    return
                _log.warning("cannot accept", error=str(error))
                time.sleep(0.1)  # out of descriptors: they come back when others end
                continue
            name = f"arrival-{peer[1]}"
            threading.Thread(target=self._welcome, args=(connection, str(peer[0])), name=name, daemon=True).start()

    def _welcome(self, connection: socket.socket, peer: str) -> None:
        greeting = _Once(self._greetings.release)
        try:
            self._greet(connection, greeting)
        except (Broken, OSError, ValueError, GugusError) as error:
            _log.warning("connection for a migration ended", peer=peer, error=str(error))
        except Exception as error:  # the listener must outlive any fault of what it serves
            _log.error("connection for a migration failed", peer=peer, error=repr(error), exc_info=error)
        finally:
            greeting()
            close(connection)

    def _greet(self, connection: socket.socket, greeted: Callable[[], None]) -> None:
        tune(connection)
        connection.settimeout(GREETING_TIMEOUT_S)
        with self._context.wrap_socket(connection, server_side=True) as tls:
            peer = peer_identity(tls)
            if peer.role is not Role.NODE or tls.session_reused:
                raise Broken(f"{peer} may not bring guests")
            channel = Channel(tls)
            message = channel.receive(GREETING_TIMEOUT_S)
            arrival = self._admit(peer, tls.context, message)
            if arrival is None:
                channel.send(refused="no such migration is expected here")
                raise Broken(f"{peer} showed no good ticket")
            greeted()
            stream = str(message.get("stream", ""))
            if not stream:
                self._host(arrival, channel)
                return
            serve = self._open(arrival, stream, channel, peer.name)
            narrow(tls)
            channel.send(ready=True)
            moved = arrival.moved.setdefault(stream, Moved())
            serve(tls, arrival.stop, moved)

    def _open(self, arrival: Arrival, stream: str, channel: Channel, peer: str) -> Serve:
        open_stream = arrival.opener_of(stream)
        if open_stream is None:
            channel.send(refused=f"there is no stream {stream[:40]!r}")
            raise Broken(f"{peer} asked for a stream that there is not")
        try:
            return open_stream()
        except OSError as error:
            channel.send(refused=f"what takes stream {stream!r} cannot be reached: {error.strerror or error}")
            raise

    def _admit(self, peer: Identity, by: ssl.SSLContext, message: Mapping[str, object]) -> Arrival | None:
        """Return the migration that a greeting has the right to; a ticket is used up by it. by: what verified the peer."""
        with self._lock:
            arrival = self._expected.get(str(message.get("migration", "")))
            if arrival is None or arrival.over or arrival.source != peer or arrival.trust is not by:
                return None
            if "stream" in message:
                return arrival if arrival.session and _same(message.get("session"), arrival.session) else None
            if not arrival.ticket or time.monotonic() > arrival.expires_s:
                return None
            if not _same(message.get("ticket"), arrival.ticket):
                return None
            arrival.ticket, arrival.session = "", new_secret()
            return arrival

    def _host(self, arrival: Arrival, channel: Channel) -> None:
        """The first connection lasts as long as the migration: when it ends, so do the others."""
        arrival.channel = channel
        channel.send(session=arrival.session)
        try:
            arrival.host(channel)
        finally:
            arrival.end()


def join(connect: Callable[[], socket.socket]) -> Open:
    """Return what opens a stream by joining it with a socket of this host."""

    def open_stream() -> Serve:
        plain = connect()

        def serve(tls: ssl.SSLSocket, stop: Stop, moved: Moved) -> None:
            with plain:
                pump(plain, tls, stop, moved)

        return serve

    return open_stream


def _strict(context: ssl.SSLContext) -> ssl.SSLContext:
    """TLS 1.3 only, and no tickets with which a session could be resumed."""
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    return context


class _Once:
    def __init__(self, call: Callable[[], object]) -> None:
        self._call, self._done = call, False

    def __call__(self) -> None:
        if not self._done:
            self._done = True
            with suppress(ValueError):
                self._call()


def _same(shown: object, secret: str) -> bool:
    return isinstance(shown, str) and hmac.compare_digest(shown.encode(), secret.encode())
