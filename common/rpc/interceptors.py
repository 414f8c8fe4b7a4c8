"""What happens to every call at a server: the caller is known and allowed, time and errors are kept, errors are rich.

Invariant: no handler runs before the peer's identity was read from its verified certificate and the authoriser agreed.
"""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

import grpc

from common import trace
from common.errors import DETAILS_KEY, GugusError, as_gugus_error, permission_denied, to_status, unauthenticated
from common.identity.ca import identity_of
from common.identity.names import Identity, Role
from common.logs import debugging, get_logger
from common.metrics import RpcMetrics
from common.rpc.options import CONTEXT_HEADERS

Authoriser = Callable[[Identity, str], None]
"""Given the caller and the method ("/gugus.agent.v1.GuestService/StartGuest"), raises GugusError to refuse the call."""

OPEN_SERVICES = ("/grpc.health.v1.Health/", "/grpc.reflection.")
"""Services that every certificate of the cluster may call, whatever the authoriser says."""

_HEADER_MAX_CHARS = 128
_NAMES_OF_IDS = {header: name for name, header in CONTEXT_HEADERS.items()}
_FAULTS_OF_OURS = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})

_peer: ContextVar[Identity | None] = ContextVar("gugus_peer", default=None)
_certificate: ContextVar[bytes] = ContextVar("gugus_certificate", default=b"")
_log = get_logger("rpc")


def current_peer() -> Identity:
    """Return who made the call that is being served. Raises GugusError UNAUTHENTICATED when nobody is known."""
    peer = _peer.get()
    if peer is None:
        raise unauthenticated("this call came without a certificate of the cluster.")
    return peer


def current_certificate() -> bytes:
    """Return the certificate (PEM) of whoever made the call that is being served; empty when nobody is known."""
    return _certificate.get()


def only(*roles: Role) -> Authoriser:
    """Return an authoriser that lets in the given roles and no other."""

    def authorise(peer: Identity, method: str) -> None:
        if peer.role not in roles:
            raise permission_denied(
                f"{peer} may not call {method}: it is for {' and '.join(f'{role}s' for role in roles)} only.",
                reason="ROLE_NOT_ALLOWED",
            )

    return authorise


class Guard(grpc.aio.ServerInterceptor):
    """The one interceptor of a server. `cluster_id` is None on the enrolment port, where callers have none."""

    def __init__(self, cluster_id: str | None, authorise: Authoriser | None, metrics: RpcMetrics | None) -> None:
        self._cluster_id = cluster_id
        self._authorise = authorise
        self._metrics = metrics
        self._wrapped: dict[str, tuple[Any, Any]] = {}
        """By method: the handler that was found, and it wrapped. Both stay the same from call to call."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of a call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method)
        found, wrapped = self._wrapped.get(method, (None, None))
        if found is not handler:
            wrapped = self._wrap(handler, method)
            self._wrapped[method] = handler, wrapped
        return wrapped

    def _wrap(self, handler: Any, method: str) -> Any:
        codec = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(self._many(behaviour, method), **codec)
        behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
        make_one = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make_one(self._one(behaviour, method), **codec)

    def _one(self, behaviour: Callable[[Any, Any], Any], method: str) -> Any:
        async def serve(request: Any, context: Any) -> Any:
            async with self._call(method, context):
                return await behaviour(request, context)

        return serve

    def _many(self, behaviour: Callable[[Any, Any], Any], method: str) -> Any:
        async def serve(request: Any, context: Any) -> AsyncIterator[Any]:
            async with self._call(method, context):
                answers = behaviour(request, context)
                if inspect.isawaitable(answers):  # a handler that uses context.write
                    await answers
                    return
                async with aclosing(answers):  # what the handler holds is let go when its caller goes
                    async for answer in answers:
                        yield answer

        return serve

    def _call(self, method: str, context: Any) -> "_Call":
        """Everything around one call of any kind: identity, permission, log context, errors, time."""
        return _Call(self, method, context)

    def served(self, method: str, code: grpc.StatusCode, seconds: float) -> None:
        """Take note of a call that ended."""
        if self._metrics:
            self._metrics.observe("server", method, code.name, seconds)
        if debugging():
            _log.debug("call served", method=method, code=code.name, duration_ms=round(seconds * 1000, 1))

    def admit(self, method: str, context: Any) -> None:
        """Let a call in, and note who makes it. Raises GugusError."""
        if self._cluster_id is None:
            return
        certificate = _certificate_of(context)
        peer = _holder_of(certificate)
        if peer.cluster_id != self._cluster_id:
            raise unauthenticated(f"{peer} is of another cluster ({peer.cluster_id}).", reason="WRONG_CLUSTER")
        _peer.set(peer)
        _certificate.set(certificate)
        if self._authorise and not method.startswith(OPEN_SERVICES):
            self._authorise(peer, method)

    def log_refusal(self, method: str, error: GugusError) -> None:
        """Tell of a call that was refused, or failed."""
        peer = _peer.get()
        log = _log.warning if error.code in _FAULTS_OF_OURS else _log.info
        log("call refused", method=method, peer=str(peer or "unknown"), code=error.code.name, reason=error.reason,
            error=str(error))  # fmt: skip


class _Call:
    """One call while it is served. A class and not a generator, for it stands around every call there is."""

    __slots__ = ("_context", "_guard", "_method", "_started")

    def __init__(self, guard: Guard, method: str, context: Any) -> None:
        self._guard, self._method, self._context = guard, method, context

    async def __aenter__(self) -> None:
        self._started = time.monotonic()
        if ids := _ids_of(self._context):
            trace.bind(**ids)
        try:
            self._guard.admit(self._method, self._context)
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise

    async def __aexit__(self, _kind: object, error: BaseException | None, _stack: object) -> None:
        code = grpc.StatusCode.OK
        try:
            if error is None or isinstance(error, grpc.aio.AbortError):  # the handler said itself what to send
                code = _code_of(self._context)
            elif isinstance(error, Exception) and not isinstance(error, asyncio.CancelledError):
                known = as_gugus_error(error, _log)
                code = known.code
                self._guard.log_refusal(self._method, known)
                status = to_status(known)
                trailer = ((DETAILS_KEY, status.SerializeToString()),)
                await self._context.abort(known.code, status.message, trailer)
            else:
                code = grpc.StatusCode.CANCELLED
        finally:
            self._guard.served(self._method, code, time.monotonic() - self._started)


def _certificate_of(context: Any) -> bytes:
    certificates = list(context.auth_context().get("x509_pem_cert", ()))
    if len(certificates) != 1:
        raise unauthenticated("this call came without a certificate of the cluster.")
    return bytes(certificates[0])


def _holder_of(certificate: bytes) -> Identity:
    try:
        return identity_of(certificate)
    except ValueError as error:
        raise unauthenticated(f"the certificate names no identity of a cluster: {error}.") from None


def _ids_of(context: Any) -> dict[str, str]:
    """Ids for the log that the caller sent along; they are text of the caller's and decide nothing."""
    sent = ((_NAMES_OF_IDS.get(key), value) for key, value in context.invocation_metadata() or ())
    return {name: value[:_HEADER_MAX_CHARS] for name, value in sent if name and isinstance(value, str)}


def _code_of(context: Any) -> grpc.StatusCode:
    code = context.code()
    if not code:  # as most are
        return grpc.StatusCode.OK
    if isinstance(code, grpc.StatusCode):
        return code
    return next((c for c in grpc.StatusCode if c.value[0] == code), grpc.StatusCode.OK)
