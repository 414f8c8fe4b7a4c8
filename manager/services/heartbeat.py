"""The heartbeat: renews a node's lease with each beat it answers, and keeps what the node tells."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from gugus.cluster.v1 import heartbeat_pb2, heartbeat_pb2_grpc
from gugus.cluster.v1.cluster_pb2 import Cluster
from gugus.cluster.v1.heartbeat_pb2 import HeartbeatRequest, HeartbeatResponse
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED, NODE_STATE_FENCING, Node

from common.errors import not_found, permission_denied, precondition, unavailable
from common.identity.ca import key_of
from common.rpc.interceptors import current_certificate, current_peer
from manager.controllers.context import Context
from manager.ha import departure
from manager.services.renewal import Renewal


class HeartbeatService(heartbeat_pb2_grpc.HeartbeatServiceServicer):
    """Answers only while this manager acts; agents look for the one that does."""

    def __init__(
        self,
        context: Context,
        renews: Callable[[str], bool],
        acting_endpoint: Callable[[], tuple[str, str]],
        managers: Callable[[], list[str]],
        renewal: Renewal,
    ) -> None:
        self._context = context
        self._renews = renews
        self._acting_endpoint = acting_endpoint
        self._managers = managers
        self._renewal = renewal
        self._newest: dict[str, object] = {}

    async def Heartbeat(
        self, request_iterator: AsyncIterator[HeartbeatRequest], context: Any
    ) -> AsyncIterator[HeartbeatResponse]:
        """Take in each beat and answer it. A node's new stream ends its older one: a late beat must not speak for the node."""
        name = current_peer().name
        stream: object | None = None
        async for beat in request_iterator:
            if stream is not None and self._newest[name] is not stream:
                return
            node = self._admit(name, beat)
            if stream is None:  # only now: who may not speak for the node ends no stream that may
                stream = self._newest[name] = object()
            now_ns = self._context.acting.now_ns()
            self._context.beats.heard(beat, now_ns)
            answer = heartbeat_pb2.HeartbeatResponse(
                sequence=beat.sequence,
                epoch=self._context.acting.epoch,
                managers=self._managers(),
                fenced=node.status.state in (NODE_STATE_FENCING, NODE_STATE_FENCED),
                shutdown=departure.answer(node, beat),
            )
            # No await between the question and the record: nobody can decide about the node in between.
            if not answer.fenced and self._renews(name):
                self._context.beats.answered(name, self._context.acting.now_ns())
                answer.lease_ms = self._context.lease_times().lease_ms
            yield answer

    async def RenewCertificate(
        self, request: heartbeat_pb2.RenewCertificateRequest, context: Any
    ) -> heartbeat_pb2.RenewCertificateResponse:
        """Certify a host anew."""
        node = self._known(current_peer().name)
        certificate = await self._renewal.renew(node, request, current_certificate())
        return heartbeat_pb2.RenewCertificateResponse(certificate=certificate)

    def _admit(self, name: str, beat: HeartbeatRequest) -> Node:
        if beat.node != name:
            raise permission_denied(
                f'node: the certificate is of node "{name}", the beat says "{beat.node}".',
                reason="WRONG_NODE",
                remedy="A host may speak only as itself: check `name` in its agent.yaml.",
            )
        return self._known(name)

    def _known(self, name: str) -> Node:
        """Return the node that speaks, if it may and this manager acts."""
        if not self._context.acting.valid:
            acting, endpoint = self._acting_endpoint()
            raise precondition(
                "NOT_ACTING",
                f"this manager does not act; {acting or 'nobody known'} does.",
                remedy="Ask the one that acts.",
                metadata={"acting": endpoint} if endpoint else {},
            )
        node = self._context.store.peek(Node, name)
        if node is None and not self._context.store.peek_all(Cluster):
            # The lease is held a moment before the founding node is written down; who was "removed" stays away for long.
            raise unavailable("NOT_FOUNDED", "the cluster is being founded.", remedy="Try again in a moment.")
        if node is not None and node.status.key_sha256 not in (b"", key_of(current_certificate())):
            # The name was given to another host since: believing both, each would be proof that the other was off.
            raise permission_denied(
                f'node: the key of this certificate is not that of node "{name}", which another host has joined as.',
                reason="KEY_REPLACED",
                remedy=f"Switch this host off, or `gugus node remove {name}` and join it anew.",
            )
        if node is None:
            raise not_found("node", name, remedy="It was removed from the cluster; enrol it again with a new token.")
        return node
