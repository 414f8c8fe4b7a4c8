"""The gateway's server: HTTPS with WebSockets, open to whoever brings a ticket. The one module that knows `websockets` here.

Nothing of a request is logged but the guest, for its address holds the ticket; the library's own lines are not written at all.
"""

import logging
from collections.abc import AsyncIterator, Collection
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from weakref import WeakKeyDictionary

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from common.config import join_endpoint
from common.errors import unavailable
from common.identity.credentials import Credentials
from common.identity.tls import server_context
from common.logs import get_logger
from manager.gateway import bridge
from manager.gateway.passage import Passage
from manager.gateway.tickets import Grant, Tickets

CONSOLE_PATH = "/console/"
SUBPROTOCOL = Subprotocol("binary")
"""What noVNC and spice-html5 ask for; agreed to when it is offered."""

MAX_CONNECTIONS = 512
"""Connections at once; each may hold about 1 MiB when both sides are slow."""

OPEN_TIMEOUT_S = 10.0
"""How long a client may take from the connection to its whole request, TLS included."""

PING_PERIOD_S, PING_TIMEOUT_S = 20.0, 20.0
"""A client that has gone without a word is noticed within the sum of the two."""

CLOSE_TIMEOUT_S = 2.0
MAX_WAITING_MESSAGES = 4
"""Messages of a client that are read ahead; then it is not read from."""

WRITE_LIMIT_BYTES = 64 * 1024
"""Bytes that wait for a slow client; then the guest is not read from."""

REASON_BYTES = 120
"""Longest reason of a closing frame (123 in RFC 6455, section 5.5)."""

STOPPING = 4003
"""Closing code of a manager that stops."""

_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
_log = get_logger("gateway")
_silent = logging.getLogger("gugus.gateway.websockets")
_silent.setLevel(logging.CRITICAL + 1)
_silent.propagate = False


class Gateway:
    """The server of one manager. origins: of pages that may open consoles beside its own."""

    def __init__(
        self, passage: Passage, tickets: Tickets, credentials: Credentials, origins: Collection[str] = ()
    ) -> None:
        self._origins = frozenset(origins)
        self._passage = passage
        self._tickets = tickets
        self._tls = server_context(credentials, require_client_certificate=False)
        self._granted: WeakKeyDictionary[ServerConnection, Grant] = WeakKeyDictionary()
        self._server: Server | None = None
        self.port = 0

    async def start(self, address: str, port: int) -> None:
        """Listen on an address and a port (0 picks a free one). Raises ADDRESS_IN_USE."""
        try:
            self._server = await serve(
                self._serve,
                address,
                port,
                ssl=self._tls,
                ssl_handshake_timeout=OPEN_TIMEOUT_S,
                process_request=self._admit,
                subprotocols=[SUBPROTOCOL],
                select_subprotocol=_subprotocol,
                compression=None,
                server_header=None,
                open_timeout=OPEN_TIMEOUT_S,
                ping_interval=PING_PERIOD_S,
                ping_timeout=PING_TIMEOUT_S,
                close_timeout=CLOSE_TIMEOUT_S,
                max_size=bridge.MAX_MESSAGE_BYTES,
                max_queue=MAX_WAITING_MESSAGES,
                write_limit=WRITE_LIMIT_BYTES,
                logger=_silent,
            )
        except OSError as error:
            raise unavailable(
                "ADDRESS_IN_USE",
                f"the gateway cannot listen on {join_endpoint(address, port)}: {error.strerror}.",
                remedy=f"`ss -ltnp sport = :{port}` shows who has the port; gateway_port in manager.yaml changes it.",
            ) from error
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        """Close all consoles and stop listening."""
        if self._server is not None:
            self._server.close(code=STOPPING, reason="this manager stops")
            await self._server.wait_closed()

    async def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Let a request in, with its grant noted, or answer it."""
        problem = self._problem(connection, request)
        if problem is None:
            return None
        status, words = problem
        response = connection.respond(status, words + "\n")
        for name, value in _HEADERS.items():
            response.headers[name] = value
        return response

    def _problem(self, connection: ServerConnection, request: Request) -> tuple[HTTPStatus, str] | None:
        address = urlsplit(request.path)
        if not address.path.startswith(CONSOLE_PATH):
            return HTTPStatus.NOT_FOUND, "There is nothing here."
        if "websocket" not in request.headers.get("Upgrade", "").lower():
            return HTTPStatus.UPGRADE_REQUIRED, "A console is opened by WebSocket."
        if not _may_come_from(request, self._origins):
            return HTTPStatus.FORBIDDEN, "Pages of another origin may not open consoles."
        if self._server is None or len(self._server.connections) >= MAX_CONNECTIONS:
            return HTTPStatus.SERVICE_UNAVAILABLE, "Too many consoles are open."
        guest = unquote(address.path.removeprefix(CONSOLE_PATH))
        grant = self._redeemed(guest, address.query)
        if grant is None:
            _log.warning("console refused: no good ticket", peer=_peer(connection))
            return HTTPStatus.UNAUTHORIZED, "The ticket is missing, used, over, or another guest's. Ask for a new one."
        if not self._passage.open_here:
            return HTTPStatus.SERVICE_UNAVAILABLE, "Another manager acts by now. Ask for a new ticket."
        self._granted[connection] = grant
        return None

    def _redeemed(self, guest: str, query: str) -> Grant | None:
        try:
            tickets = parse_qs(query, max_num_fields=8).get("ticket", [])
        except ValueError:
            return None
        return self._tickets.redeem(guest, tickets[0]) if len(tickets) == 1 else None

    async def _serve(self, connection: ServerConnection) -> None:
        grant = self._granted.pop(connection)
        _log.info("console asked for", guest=grant.guest, user=grant.user, peer=_peer(connection))
        await bridge.serve(_Socket(connection), grant, self._passage)


class _Socket:
    """A WebSocket of the library as `bridge.Socket`."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        try:
            async for message in self._connection:
                yield message
        except ConnectionClosed:
            return

    async def send(self, data: bytes) -> None:
        """Send a binary message."""
        try:
            await self._connection.send(data)
        except ConnectionClosed as error:
            raise ConnectionError("the client has gone") from error

    async def close(self, code: int, reason: str) -> None:
        """Close it."""
        await self._connection.close(code, reason.encode()[:REASON_BYTES].decode(errors="ignore"))

    async def gone(self) -> None:
        """Wait for its end."""
        await self._connection.wait_closed()


def _subprotocol(_connection: ServerConnection, offered: Any) -> Subprotocol | None:
    """Agree to the one that we know, and open without any when it is not offered."""
    return SUBPROTOCOL if SUBPROTOCOL in offered else None


def _may_come_from(request: Request, allowed: Collection[str]) -> bool:
    """Whether a request comes from a page of this gateway or an allowed one, or from no page at all (RFC 6455, section 10.2)."""
    origins, hosts = request.headers.get_all("Origin"), request.headers.get_all("Host")
    if not origins:
        return True
    own = [f"https://{host}" for host in hosts] if len(hosts) == 1 else []
    return len(origins) == 1 and origins[0] in {*own, *allowed}


def _peer(connection: ServerConnection) -> str:
    address = connection.remote_address
    return str(address[0]) if address else "unknown"
