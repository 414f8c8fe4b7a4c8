"""The source's end of the tunnel: opens the migration with its ticket, then a connection for each stream.

Local programs (libvirt, QEMU, rsync) come in through doors: UNIX sockets whose every connection is a stream.
"""

import os
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gugus.agent.v1 import migration_pb2

from agent.migration.pump import SOCKET_BUFFER_BYTES, Broken, Moved, Stop, pump
from agent.migration.wire import Channel, arrival_name, close, narrow, tune
from common.errors import GugusError, unavailable
from common.identity.credentials import Credentials
from common.identity.names import Identity, Role
from common.identity.tls import client_context, peer_identity
from common.logs import get_logger

CONNECT_TIMEOUT_S = 5.0

BACKLOG = 32
"""Connections that wait for the ones before them: a QEMU makes up to 17 at once."""

_log = get_logger("migration.departure")


@dataclass(frozen=True, slots=True)
class Way:
    """How to the target: what it answered when it was asked to prepare."""

    migration: str
    node: str
    address: str
    port: int
    ticket: str
    cluster_id: str = ""
    """Cluster of the target, when it is another one than ours; `ca_pem` is then the authority that it is verified by."""
    ca_pem: bytes = b""


def way_of(migration: str, told: migration_pb2.MigrationWay) -> Way:
    """Return the way as the target told it."""
    foreign = told.foreign
    return Way(migration, told.node, told.address, told.port, told.ticket, foreign.cluster_id, foreign.ca_pem)


def reach(address: str, port: int) -> str:
    """Try whether something listens at a target's port; return why not, "" when it does. Blocks."""
    try:
        socket.create_connection((address, port), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return str(error)
    return ""


class Departure:
    """One migration that leaves this host. Methods block; `close` may be called from any thread."""

    def __init__(self, credentials: Credentials, way: Way) -> None:
        self._context = client_context(credentials, trust=way.ca_pem)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._target = Identity(way.cluster_id or credentials.identity.cluster_id, Role.NODE, way.node)
        self._host_name = self._target.dns_name
        if way.cluster_id:  # what we ask for by name says which migration this is; whom we meet is looked at below
            self._context.check_hostname, self._host_name = False, arrival_name(way.migration)
        self._way = way
        self._session = ""
        self._doors: list[Door] = []
        self.stop = Stop()
        self.moved = Moved()

    def open(self) -> Channel:
        """Change the ticket for a session. Raises GugusError MIGRATION_REFUSED, TARGET_UNREACHABLE."""
        channel, answer = self._greet(migration=self._way.migration, ticket=self._way.ticket)
        self._session = str(answer.get("session", ""))
        return channel

    def stream(self, name: str) -> ssl.SSLSocket:
        """Open a stream. Raises as `open`."""
        channel, _ = self._greet(migration=self._way.migration, session=self._session, stream=name)
        narrow(channel.tls)
        return channel.tls

    def door(self, path: Path, stream: str, owner: tuple[int, int]) -> None:
        """Open a door for local programs. owner: user and group that may come in."""
        self._doors.append(Door(path, owner, lambda: self.stream(stream), self._carry))

    def close(self) -> None:
        """Close all doors and end all streams."""
        self.stop.set()
        for door in self._doors:
            door.close()

    def _carry(self, plain: socket.socket, tls: ssl.SSLSocket) -> None:
        with tls:
            pump(plain, tls, self.stop, self.moved)

    def _greet(self, **greeting: str) -> tuple[Channel, dict[str, object]]:
        way = self._way
        try:
            connection = socket.create_connection((way.address, way.port), CONNECT_TIMEOUT_S)
            tune(connection)
            tls = self._context.wrap_socket(connection, server_hostname=self._host_name)
            if (found := peer_identity(tls)) != self._target:
                tls.close()
                raise ValueError(f"that is {found} of cluster {found.cluster_id}")
        except (OSError, ValueError) as error:
            raise _unreachable(way, str(error)) from error
        channel = Channel(tls)
        try:
            channel.send(**greeting)
            answer = channel.receive(CONNECT_TIMEOUT_S)
        except Broken as error:
            channel.close()
            raise _unreachable(way, str(error)) from error
        if "refused" in answer:
            channel.close()
            raise unavailable("MIGRATION_REFUSED", f"{way.node} refuses the migration: {answer['refused']}.")
        return channel, answer


class Door:
    """A UNIX socket of this host; each connection to it is carried in a thread of its own.

    Streams are opened one after another, in the order in which programs came in: a QEMU takes the first connection for the
    migration's main channel and the others for its parallel ones (multifd), and before QEMU 8.0 by nothing but their order.
    """

    def __init__(
        self,
        path: Path,
        owner: tuple[int, int],
        open_stream: Callable[[], ssl.SSLSocket],
        carry: Callable[[socket.socket, ssl.SSLSocket], None],
    ) -> None:
        self._path, self._open, self._carry = path, open_stream, carry
        path.unlink(missing_ok=True)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._server.bind(str(path))
        path.chmod(0o600)
        os.chown(path, *owner)
        self._server.listen(BACKLOG)
        threading.Thread(target=self._accept, name=f"door-{path.name}"[:40], daemon=True).start()

    def close(self) -> None:
        """Close the door."""
        close(self._server)
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return  # closed
            try:
                stream = self._open()
            except (Broken, GugusError, OSError) as error:
                _log.info("stream not opened", door=self._path.name, reason=str(error))
                close(connection)
                continue
            threading.Thread(target=self._serve, args=(connection, stream), name="stream", daemon=True).start()

    def _serve(self, connection: socket.socket, stream: ssl.SSLSocket) -> None:
        roomy(connection)
        try:
            self._carry(connection, stream)
        except (Broken, OSError) as error:
            _log.info("stream ended", door=self._path.name, reason=str(error))
        except Exception as error:
            _log.error("stream failed", door=self._path.name, error=repr(error), exc_info=error)
        finally:
            close(connection)


def roomy(plain: socket.socket) -> None:
    """Give a local socket large buffers."""
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        plain.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)


def connect_unix(path: Path) -> socket.socket:
    """Connect to a UNIX socket of this host. Raises OSError."""
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        plain.settimeout(CONNECT_TIMEOUT_S)
        plain.connect(str(path))
        roomy(plain)
    except BaseException:
        plain.close()
        raise
    return plain


def _unreachable(way: Way, why: str) -> GugusError:
    return unavailable(
        "TARGET_UNREACHABLE",
        f"the agent of {way.node} cannot be reached at {way.address}, port {way.port}: {why.rstrip('.')}.",
        remedy="Migrations need that TCP port open between hosts; `migration_port` in agent.yaml is its number.",
    )
