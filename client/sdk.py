"""The SDK: one object a cluster, one attribute a service, one typed method a call.

Invariant: every call that starts work carries an idempotency key, made here when the caller gives none, so that the
repetition of a call whose answer was lost does no work twice.
"""

import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from gugus.agent.v1.network_pb2 import NetworkSpec
from gugus.agent.v1.volume_pb2 import PoolSpec, Volume
from gugus.cluster.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    guest_pb2,
    guest_pb2_grpc,
    network_pb2,
    network_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    pool_pb2,
    pool_pb2_grpc,
    task_pb2,
)

from client.backups import Backups
from client.caller import DEFAULT_TIMEOUT_S, Caller
from client.config import ClientConfig
from client.events import Events
from client.tasks import Tasks

VOTERS_TIMEOUT_S = 120.0
"""Making a voter starts a manager on the node and waits until it has the state."""

TRANSFER_ATTEMPT_S = 25.0
"""Handing over takes a second or two; when it fails, it says so after at most this long."""


def new_request_id() -> str:
    """Return a fresh idempotency key. Keep it to repeat a call after an error whose outcome is not known."""
    return str(uuid.uuid4())


class Gugus:
    """A cluster. `async with Gugus.connect(config) as gugus: ...`; nothing connects before the first call."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.cluster = Clusters(caller)
        self.backups = Backups(caller)
        self.nodes = Nodes(caller)
        self.guests = Guests(caller)
        self.pools = Pools(caller)
        self.networks = Networks(caller)
        self.tasks = Tasks(caller)
        self.events = Events(caller)

    @classmethod
    def connect(cls, config: ClientConfig, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Self:
        """Return the cluster of a configuration. `timeout_s` is each call's deadline, repetitions included.

        Raises ConfigError when the operator's certificate or key is missing.
        """
        return cls(Caller(config, timeout_s))

    async def close(self) -> None:
        """Close the connections."""
        await self._caller.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


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


class Nodes:
    """The hosts of the cluster."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = node_pb2_grpc.NodeServiceStub

    async def get(self, name: str) -> node_pb2.Node:
        """Return a node. Raises NOT_FOUND."""
        return await self._caller.call(self._stub, "GetNode", node_pb2.GetNodeRequest(name=name), node_pb2.Node)

    async def list(self) -> Sequence[node_pb2.Node]:
        """Return all nodes by name."""
        request = node_pb2.ListNodesRequest()
        return (await self._caller.call(self._stub, "ListNodes", request, node_pb2.ListNodesResponse)).nodes

    async def cordon(self, name: str, cordoned: bool = True) -> node_pb2.Node:
        """Stop (or allow) new guests on a node. Idempotent. Raises NOT_FOUND."""
        request = node_pb2.CordonNodeRequest(name=name, cordoned=cordoned)
        return await self._caller.call(self._stub, "CordonNode", request, node_pb2.Node)

    async def remove(self, name: str, *, off: bool = False) -> None:
        """Remove a node that is off for ever. Idempotent. Raises FAILED_PRECONDITION.

        off: of a node from before a recovery, that somebody has seen to it that the host is off for good: its guests start elsewhere.
        """
        request = node_pb2.RemoveNodeRequest(name=name, off=off)
        await self._caller.call(self._stub, "RemoveNode", request, node_pb2.RemoveNodeResponse)


class Guests:
    """Virtual machines and containers. What returns a task goes on by itself: `tasks.wait(task)` waits for its end."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = guest_pb2_grpc.GuestServiceStub

    async def create(
        self,
        name: str,
        spec: guest_pb2.GuestSpec,
        *,
        labels: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> task_pb2.Task:
        """Make a guest. Raises INVALID_ARGUMENT, ALREADY_EXISTS, NOT_FOUND, RESOURCE_EXHAUSTED."""
        request = guest_pb2.CreateGuestRequest(
            name=name, spec=spec, labels=labels or {}, request_id=request_id or new_request_id()
        )
        return await self._caller.call(self._stub, "CreateGuest", request, task_pb2.Task)

    async def get(self, name: str) -> guest_pb2.Guest:
        """Return a guest. Raises NOT_FOUND."""
        return await self._caller.call(self._stub, "GetGuest", guest_pb2.GetGuestRequest(name=name), guest_pb2.Guest)

    async def list(self, *, node: str = "") -> Sequence[guest_pb2.Guest]:
        """Return all guests by name, or those of one node."""
        request = guest_pb2.ListGuestsRequest(node=node)
        return (await self._caller.call(self._stub, "ListGuests", request, guest_pb2.ListGuestsResponse)).guests

    async def start(self, name: str, *, request_id: str = "") -> task_pb2.Task:
        """Start a guest. Raises NOT_FOUND, FAILED_PRECONDITION."""
        request = guest_pb2.StartGuestRequest(name=name, request_id=request_id or new_request_id())
        return await self._caller.call(self._stub, "StartGuest", request, task_pb2.Task)

    async def stop(
        self, name: str, *, timeout_s: float = 0, force: bool = False, request_id: str = ""
    ) -> task_pb2.Task:
        """Stop a guest: it has `timeout_s` seconds to shut down (0: 60) before it is killed. `force` kills at once."""
        request = guest_pb2.StopGuestRequest(
            name=name, timeout_ms=round(timeout_s * 1000), force=force, request_id=request_id or new_request_id()
        )
        return await self._caller.call(self._stub, "StopGuest", request, task_pb2.Task)

    async def delete(self, name: str, *, force: bool = False, request_id: str = "") -> task_pb2.Task:
        """Delete a guest with its volumes. Raises NOT_FOUND, FAILED_PRECONDITION (it runs and `force` is not set)."""
        request = guest_pb2.DeleteGuestRequest(name=name, force=force, request_id=request_id or new_request_id())
        return await self._caller.call(self._stub, "DeleteGuest", request, task_pb2.Task)

    async def set_ha(self, name: str, enabled: bool, *, request_id: str = "") -> guest_pb2.Guest:
        """Put a guest under HA, or take it out. Raises NOT_FOUND, FAILED_PRECONDITION (POOL_NOT_SHARED)."""
        request = guest_pb2.SetHaRequest(
            name=name, ha=guest_pb2.HaSpec(enabled=enabled), request_id=request_id or new_request_id()
        )
        return await self._caller.call(self._stub, "SetHa", request, guest_pb2.Guest)

    async def explain(self, name: str) -> guest_pb2.ExplainGuestResponse:
        """Return why a guest is where it is, and where it would be placed now. Raises NOT_FOUND."""
        request = guest_pb2.ExplainGuestRequest(name=name)
        return await self._caller.call(self._stub, "ExplainGuest", request, guest_pb2.ExplainGuestResponse)

    async def console_log(self, name: str, *, max_bytes: int = 0) -> bytes:
        """Return the end of a guest's console log, at most `max_bytes` (0: 64 KiB). Raises NOT_FOUND, UNAVAILABLE."""
        request = guest_pb2.GetConsoleLogRequest(name=name, max_bytes=max_bytes)
        return (await self._caller.call(self._stub, "GetConsoleLog", request, guest_pb2.GetConsoleLogResponse)).data


class Pools:
    """Pools, the images in them and their volumes."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = pool_pb2_grpc.PoolServiceStub

    async def create(self, spec: PoolSpec, *, nodes: Sequence[str] = (), request_id: str = "") -> pool_pb2.Pool:
        """Make a pool on `nodes` (none: all). Raises INVALID_ARGUMENT, ALREADY_EXISTS."""
        request = pool_pb2.CreatePoolRequest(spec=spec, nodes=nodes, request_id=request_id or new_request_id())
        return await self._caller.call(self._stub, "CreatePool", request, pool_pb2.Pool)

    async def get(self, name: str) -> pool_pb2.Pool:
        """Return a pool. Raises NOT_FOUND."""
        return await self._caller.call(self._stub, "GetPool", pool_pb2.GetPoolRequest(name=name), pool_pb2.Pool)

    async def list(self) -> Sequence[pool_pb2.Pool]:
        """Return all pools by name."""
        request = pool_pb2.ListPoolsRequest()
        return (await self._caller.call(self._stub, "ListPools", request, pool_pb2.ListPoolsResponse)).pools

    async def delete(self, name: str, *, request_id: str = "") -> None:
        """Forget a pool; what is stored in it stays. Raises NOT_FOUND, FAILED_PRECONDITION (POOL_IN_USE)."""
        request = pool_pb2.DeletePoolRequest(name=name, request_id=request_id or new_request_id())
        await self._caller.call(self._stub, "DeletePool", request, pool_pb2.DeletePoolResponse)

    async def import_image(
        self, pool: str, image: str, source: str, *, sha256: str = "", node: str = "", request_id: str = ""
    ) -> task_pb2.Task:
        """Bring an image into a pool from a path on `node` (empty: any) or an http(s) address."""
        request = pool_pb2.ImportImageRequest(
            pool=pool, image=image, source=source, sha256=sha256, node=node, request_id=request_id or new_request_id()
        )
        return await self._caller.call(self._stub, "ImportImage", request, task_pb2.Task)

    async def images(self, *, pool: str = "") -> Sequence[pool_pb2.Image]:
        """Return the images of a pool, or of all."""
        request = pool_pb2.ListImagesRequest(pool=pool)
        return (await self._caller.call(self._stub, "ListImages", request, pool_pb2.ListImagesResponse)).images

    async def delete_image(self, pool: str, image: str, *, request_id: str = "") -> task_pb2.Task:
        """Delete an image. Raises NOT_FOUND, FAILED_PRECONDITION (IMAGE_IN_USE)."""
        request = pool_pb2.DeleteImageRequest(pool=pool, image=image, request_id=request_id or new_request_id())
        return await self._caller.call(self._stub, "DeleteImage", request, task_pb2.Task)

    async def volumes(self, pool: str, *, node: str = "") -> Sequence[Volume]:
        """Return the volumes of a pool as one node sees it (empty: any that has it)."""
        request = pool_pb2.ListVolumesRequest(pool=pool, node=node)
        return (await self._caller.call(self._stub, "ListVolumes", request, pool_pb2.ListVolumesResponse)).volumes


class Networks:
    """Networks of guests."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = network_pb2_grpc.NetworkServiceStub

    async def create(
        self, spec: NetworkSpec, *, nodes: Sequence[str] = (), request_id: str = ""
    ) -> network_pb2.Network:
        """Make a network on `nodes` (none: all). Raises INVALID_ARGUMENT, ALREADY_EXISTS."""
        request = network_pb2.CreateNetworkRequest(spec=spec, nodes=nodes, request_id=request_id or new_request_id())
        return await self._caller.call(self._stub, "CreateNetwork", request, network_pb2.Network)

    async def get(self, name: str) -> network_pb2.Network:
        """Return a network. Raises NOT_FOUND."""
        request = network_pb2.GetNetworkRequest(name=name)
        return await self._caller.call(self._stub, "GetNetwork", request, network_pb2.Network)

    async def list(self) -> Sequence[network_pb2.Network]:
        """Return all networks by name."""
        request = network_pb2.ListNetworksRequest()
        return (await self._caller.call(self._stub, "ListNetworks", request, network_pb2.ListNetworksResponse)).networks

    async def delete(self, name: str, *, request_id: str = "") -> None:
        """Delete a network. Raises NOT_FOUND, FAILED_PRECONDITION (NETWORK_IN_USE)."""
        request = network_pb2.DeleteNetworkRequest(name=name, request_id=request_id or new_request_id())
        await self._caller.call(self._stub, "DeleteNetwork", request, network_pb2.DeleteNetworkResponse)
