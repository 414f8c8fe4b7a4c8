"""Channels: mutual TLS that verifies which member answers, keepalive, and a deadline on every call.

Addresses prove nothing here: a server is verified by the name of its identity, so that nodes may change addresses and
one that only has an address can still insist on "some manager of this cluster".
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc

from common import trace
from common.identity.credentials import Credentials
from common.identity.names import Role, any_of
from common.rpc.options import CHANNEL_OPTIONS, CONTEXT_HEADERS

if TYPE_CHECKING:
    from common.metrics import RpcMetrics

DEFAULT_TIMEOUT_S = 15.0
"""Deadline of calls with one request and one answer that set none."""


def open_channel(
    endpoint: str,
    credentials: Credentials,
    *,
    verify: str,
    metrics: "RpcMetrics | None" = None,
    default_timeout_s: float = DEFAULT_TIMEOUT_S,
) -> grpc.aio.Channel:
    """Open a channel to "host:port" as the holder of `credentials`. It connects at the first call and reconnects.

    verify: the name that the server's certificate must carry: `Identity.dns_name` for exactly that member, or
    `any_of(role, cluster_id)`. Calls to another server fail with UNAVAILABLE. Close it with `await channel.close()`.
    """
    tls = grpc.ssl_channel_credentials(credentials.ca_pem, credentials.key_pem, credentials.chain_pem)
    return _open(endpoint, tls, verify, metrics, default_timeout_s)


def open_enrolment_channel(endpoint: str, ca_pem: bytes, cluster_id: str) -> grpc.aio.Channel:
    """Open a channel to a manager's enrolment port, without a certificate of one's own; `ca_pem` is the pinned CA."""
    tls = grpc.ssl_channel_credentials(ca_pem)
    return _open(endpoint, tls, any_of(Role.MANAGER, cluster_id), None, DEFAULT_TIMEOUT_S)


def _open(
    endpoint: str, tls: grpc.ChannelCredentials, verify: str, metrics: "RpcMetrics | None", default_timeout_s: float
) -> grpc.aio.Channel:
    options = [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", verify), ("grpc.default_authority", verify)]
    interceptors: list[grpc.aio.ClientInterceptor] = [
        _UnaryUnary(default_timeout_s, metrics),
        _UnaryStream(None, metrics),
    ]
    return grpc.aio.secure_channel(endpoint, tls, options=options, interceptors=interceptors)


class _Outgoing:
    """Adds deadline and log context to a call, and counts its time when it is over.

    Calls that stream requests go without: grpc.aio passes an intercepted request stream through a queue, which a
    heartbeat or an upload is better off without, and their time is counted at the server.
    """

    def __init__(self, timeout_s: float | None, metrics: "RpcMetrics | None") -> None:
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._counting: set[asyncio.Task[None]] = set()

    async def _make(self, continuation: Callable[[Any, Any], Awaitable[Any]], details: Any, request: Any) -> Any:
        started = time.monotonic()
        call = await continuation(self._prepared(details), request)
        if self._metrics:
            task = asyncio.create_task(self._count(self._metrics, call, _text(details.method), started))
            self._counting.add(task)
            task.add_done_callback(self._counting.discard)
        return call

    def _prepared(self, details: Any) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        ids = trace.current()
        for name, header in CONTEXT_HEADERS.items():
            value = ids.get(name)
            if value and value.isascii() and value.isprintable():
                metadata.add(header, value)
        timeout_s = self._timeout_s if details.timeout is None else details.timeout
        return grpc.aio.ClientCallDetails(
            details.method, timeout_s, metadata, details.credentials, details.wait_for_ready
        )

    async def _count(self, metrics: "RpcMetrics", call: Any, method: str, started: float) -> None:
        try:
            code = (await call.code()).name
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED.name
        metrics.observe("client", method, code, time.monotonic() - started)


class _UnaryUnary(_Outgoing, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._make(continuation, client_call_details, request)


class _UnaryStream(_Outgoing, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._make(continuation, client_call_details, request)


def _text(method: str | bytes) -> str:
    return method.decode() if isinstance(method, bytes) else method
