"""Any manager's address works: calls that reach one that does not act are passed to the one that does.

A passed-on call carries the caller's identity as metadata, which is believed only of another manager. Also here, because it is the same
wrapper: what consensus raises becomes an error that says whether to try again.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

import grpc

from common.config import join_endpoint
from common.errors import GugusError, aborted, from_rpc_error, unavailable
from common.identity.credentials import Credentials
from common.identity.names import Identity, Role
from common.rpc.channel import open_channel
from common.rpc.interceptors import current_peer
from common.rpc.streams import Outcome
from manager.acting import Acting
from manager.consensus import Consensus, ConsensusError, NotLeader, ProposalTimeout, Unavailable

ACTOR_HEADER = "gugus-actor"
"""Metadata of a call that was passed on: the URI of the identity that made it."""

ANSWERED_HERE = frozenset(f"/gugus.cluster.v1.ClusterService/{call}" for call in ("GetStatus", "GetMember"))
"""Calls that every manager answers itself."""

SOON = "Try again in a few seconds; if it stays so, `gugus cluster status` tells which managers are missing."

_PREFIX = "/gugus.cluster.v1."
_HEARTBEAT = "/gugus.cluster.v1.HeartbeatService/"

_actor: ContextVar[Identity | None] = ContextVar("gugus_actor", default=None)


def actor() -> Identity:
    """Return who made the call that is being served, also when another manager passed it on."""
    return _actor.get() or current_peer()


def known_error(error: ConsensusError) -> GugusError:
    """Return what a client is told of a failure of consensus."""
    if isinstance(error, ProposalTimeout):
        return aborted(
            "OUTCOME_UNKNOWN",
            "the cluster did not confirm the change in time; it may or may not have been made.",
            remedy="Repeat the call with the same request_id: it is not done twice.",
        )
    if isinstance(error, NotLeader):
        return unavailable("NO_LEADER", "the managers are choosing a leader.", remedy=SOON)
    if isinstance(error, Unavailable):
        return unavailable("NO_QUORUM", f"the state cannot be changed now: {error}.", remedy="`gugus cluster status`.")
    return unavailable("CONSENSUS", str(error), remedy=SOON)


class Forward(grpc.aio.ServerInterceptor):
    """Serves calls here when this manager acts, else at the manager that does."""

    def __init__(self, credentials: Credentials, port: int, acting: Acting, consensus: Consensus) -> None:
        self._credentials = credentials
        self._port = port
        self._acting = acting
        self._consensus = consensus
        self._channels: dict[str, grpc.aio.Channel] = {}

    def acting_endpoint(self) -> tuple[str, str]:
        """Return name and API address of the acting manager as far as is known; empty when none is.

        All managers of a cluster serve their API on the same port.
        """
        name = self._acting.holder()
        host = next((voter.host for voter in self._consensus.leadership().voters if voter.name == name), "")
        return (name, join_endpoint(host, self._port)) if host else ("", "")

    async def close(self) -> None:
        """Close the channels to other managers."""
        for channel in self._channels.values():
            await channel.close()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of a call."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or not method.startswith(_PREFIX) or method.startswith(_HEARTBEAT):
            return handler
        make, serve = _KINDS[bool(handler.request_streaming), bool(handler.response_streaming)]
        return make(serve(self, handler, method))

    def _one(self, handler: Any, method: str) -> Any:
        """Serve a call with one answer, whose request is one message or a stream of them."""
        streaming = bool(handler.request_streaming)
        behaviour = handler.stream_unary if streaming else handler.unary_unary

        async def serve(request: Any, context: Any) -> bytes:
            if not self._here(method, context):
                name, channel = self._acting_manager()
                make: Any = channel.stream_unary if streaming else channel.unary_unary
                call = make(method)(request, metadata=self._headers(), timeout=context.time_remaining())
                outcome = Outcome(call)
                try:
                    return bytes(await call)
                except grpc.aio.AioRpcError as error:
                    raise _passed_back(await outcome.error(error) or error, name) from None
                finally:
                    call.cancel()  # the caller may have gone: then nobody sends the rest
            try:
                answer = await behaviour(_read(handler, request), context)
            except ConsensusError as error:
                raise known_error(error) from error
            return bytes(handler.response_serializer(answer))

        return serve

    def _many(self, handler: Any, method: str) -> Any:
        """Serve a call with a stream of answers, whose request is one message or a stream of them."""
        streaming = bool(handler.request_streaming)
        behaviour = handler.stream_stream if streaming else handler.unary_stream

        async def serve(request: Any, context: Any) -> AsyncIterator[bytes]:
            if not self._here(method, context):
                name, channel = self._acting_manager()
                make: Any = channel.stream_stream if streaming else channel.unary_stream
                call = make(method)(request, metadata=self._headers(), timeout=context.time_remaining())
                outcome = Outcome(call)
                try:
                    async for answer in call:
                        yield answer
                except grpc.aio.AioRpcError as error:
                    if (true := await outcome.error(error)) is not None:
                        raise _passed_back(true, name) from None
                finally:
                    call.cancel()  # the caller may have gone: then nobody wants the rest
                return
            try:
                async with aclosing(behaviour(_read(handler, request), context)) as answers:
                    async for answer in answers:
                        yield handler.response_serializer(answer)
            except ConsensusError as error:
                raise known_error(error) from error

        return serve

    def _here(self, method: str, context: Any) -> bool:
        """Take in who called, and return whether the call is served here. Raises UNAVAILABLE when nobody can serve it."""
        passed_on = self._take_actor(context)
        if method in ANSWERED_HERE or self._acting.valid:
            return True
        if passed_on:
            raise unavailable("NOT_ACTING", "the acting manager is changing.", remedy=SOON)
        return False

    def _take_actor(self, context: Any) -> bool:
        peer = current_peer()
        sent = dict(context.invocation_metadata() or ()).get(ACTOR_HEADER)
        if sent is None or peer.role is not Role.MANAGER:
            _actor.set(peer)
            return False
        _actor.set(Identity.parse(str(sent)))
        return True

    def _headers(self) -> tuple[tuple[str, str], ...]:
        return ((ACTOR_HEADER, actor().uri),)

    def _acting_manager(self) -> tuple[str, grpc.aio.Channel]:
        name, endpoint = self.acting_endpoint()
        if not name or name == self._credentials.identity.name:
            raise unavailable("NO_ACTING_MANAGER", "no manager acts for the cluster right now.", remedy=SOON)
        if endpoint not in self._channels:
            verify = Identity(self._credentials.identity.cluster_id, Role.MANAGER, name).dns_name
            self._channels[endpoint] = open_channel(endpoint, self._credentials, verify=verify)
        return name, self._channels[endpoint]


def _passed_back(error: grpc.aio.AioRpcError, manager: str) -> GugusError:
    """Return what the acting manager answered, or that it did not: then gRPC's own words are all there is."""
    known = from_rpc_error(error)
    if known.reason != "RPC_UNAVAILABLE":
        return known
    return unavailable(
        "ACTING_MANAGER_UNREACHABLE",
        f"manager {manager}, which acts for the cluster, cannot be reached: {known.message}.",
        remedy=f"Another one takes over when it is down. {SOON}",
    )


def _read(handler: Any, request: Any) -> Any:
    """Return a request as the handler takes it: a message, or an iterator of messages."""
    if not handler.request_streaming:
        return handler.request_deserializer(request)
    return _each(handler.request_deserializer, request)


async def _each(deserialize: Callable[[bytes], Any], requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for request in requests:
        yield deserialize(request)


_KINDS: dict[tuple[bool, bool], tuple[Any, Any]] = {
    (False, False): (grpc.unary_unary_rpc_method_handler, Forward._one),
    (False, True): (grpc.unary_stream_rpc_method_handler, Forward._many),
    (True, False): (grpc.stream_unary_rpc_method_handler, Forward._one),
    (True, True): (grpc.stream_stream_rpc_method_handler, Forward._many),
}
"""By whether requests and answers are streams: how gRPC is told of a handler, and what makes it."""
