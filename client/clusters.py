"""The cluster itself: its state, its voters, its join tokens."""

from collections.abc import Iterable, Sequence

from gugus.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from gugus.cluster.v1.task_pb2 import Task

from client.caller import Caller, new_request_id

VOTERS_TIMEOUT_S = 120.0
"""Making a voter starts a manager on the node and waits until it has the state."""

TRANSFER_ATTEMPT_S = 25.0
"""Handing over takes a second or two; when it fails, it says so after at most this long."""


class Clusters:
    """The cluster itself: its state, its voters, its join tokens."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = cluster_pb2_grpc.ClusterServiceStub

    async def get(self) -> cluster_pb2.Cluster:
        """Return the cluster object."""
        return await self._caller.call(self._stub, "GetCluster", cluster_pb2.GetClusterRequest(), cluster_pb2.Cluster)

    async def status(self) -> cluster_pb2.ClusterStatus:
        """Return how the cluster is, as the manager that answers sees it; works without a leader."""
        request = cluster_pb2.GetStatusRequest()
        return await self._caller.call(self._stub, "GetStatus", request, cluster_pb2.ClusterStatus)

    async def disarm_ha(self, reason: str = "", *, freeze: bool = False, request_id: str = "") -> Task:
        """Switch HA off for the whole cluster; the task ends when no node holds a guest under HA any more.

        freeze: start no guest under HA until HA is switched on again, one that ended by itself neither.
        """
        mode = cluster_pb2.DISARM_MODE_FREEZE if freeze else cluster_pb2.DISARM_MODE_IGNORE
        request = cluster_pb2.DisarmHaRequest(reason=reason, mode=mode, request_id=request_id or new_request_id())
        return await self._caller.call(self._stub, "DisarmHa", request, Task)

    async def arm_ha(self, *, request_id: str = "") -> Task:
        """Switch HA on again; the task ends when every guest under HA is held so by its node."""
        request = cluster_pb2.ArmHaRequest(request_id=request_id or new_request_id())
        return await self._caller.call(self._stub, "ArmHa", request, Task)

    async def update_settings(
        self, settings: cluster_pb2.ClusterSettings, paths: Iterable[str], *, request_id: str = ""
    ) -> cluster_pb2.Cluster:
        """Change the settings at these dotted paths ("spare.nodes") to what `settings` has there; 0 and empty mean the default.

        Raises INVALID_ARGUMENT with every fault; then nothing was changed.
        """
        request = cluster_pb2.UpdateSettingsRequest(settings=settings, request_id=request_id or new_request_id())
        request.update_mask.paths.extend(paths)
        return await self._caller.call(self._stub, "UpdateSettings", request, cluster_pb2.Cluster)

    async def create_token(
        self, *, ttl_s: float = 0, node: str = "", request_id: str = ""
    ) -> cluster_pb2.CreateTokenResponse:
        """Make a join token, valid for `ttl_s` seconds (0: 1 hour), only for the host `node` if given."""
        request = cluster_pb2.CreateTokenRequest(
            ttl_ms=round(ttl_s * 1000), node=node, request_id=request_id or new_request_id()
        )
        return await self._caller.call(self._stub, "CreateToken", request, cluster_pb2.CreateTokenResponse)

    async def tokens(self) -> Sequence[cluster_pb2.Token]:
        """Return all join tokens, without their secrets."""
        request = cluster_pb2.ListTokensRequest()
        return (await self._caller.call(self._stub, "ListTokens", request, cluster_pb2.ListTokensResponse)).tokens

    async def revoke_token(self, id_: str) -> None:
        """End a join token. Idempotent."""
        request = cluster_pb2.RevokeTokenRequest(id=id_)
        await self._caller.call(self._stub, "RevokeToken", request, cluster_pb2.RevokeTokenResponse)

    async def promote(
        self, node: str, *, request_id: str = "", timeout_s: float = VOTERS_TIMEOUT_S
    ) -> cluster_pb2.ClusterStatus:
        """Make a node a voter; returns when it counts. Raises NOT_FOUND, FAILED_PRECONDITION."""
        request = cluster_pb2.PromoteRequest(node=node, request_id=request_id or new_request_id())
        return await self._caller.call(
            self._stub, "Promote", request, cluster_pb2.ClusterStatus, timeout_s=timeout_s, attempt_s=timeout_s
        )

    async def demote(
        self, node: str, *, request_id: str = "", timeout_s: float = VOTERS_TIMEOUT_S
    ) -> cluster_pb2.ClusterStatus:
        """Make a voter a plain node. Raises NOT_FOUND, FAILED_PRECONDITION."""
        request = cluster_pb2.DemoteRequest(node=node, request_id=request_id or new_request_id())
        return await self._caller.call(
            self._stub, "Demote", request, cluster_pb2.ClusterStatus, timeout_s=timeout_s, attempt_s=timeout_s
        )

    async def transfer(
        self, to: str = "", *, away_from: str = "", timeout_s: float | None = None
    ) -> cluster_pb2.ClusterStatus:
        """Hand leadership over to a voter (empty: the most suitable one); returns when it acts.

        away_from: hand over only if this one acts (empty: whoever acts now), so that a repetition does nothing.
        Raises FAILED_PRECONDITION, UNAVAILABLE.
        """
        away_from = away_from or ("" if to else (await self.status()).acting)
        request = cluster_pb2.TransferLeadershipRequest(to=to, away_from=away_from)
        return await self._caller.call(
            self._stub,
            "TransferLeadership",
            request,
            cluster_pb2.ClusterStatus,
            timeout_s=timeout_s,
            attempt_s=TRANSFER_ATTEMPT_S,
        )
