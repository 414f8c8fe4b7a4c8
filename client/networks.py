"""The networks of a cluster."""

from collections.abc import Sequence

from gugus.agent.v1.network_pb2 import NetworkSpec
from gugus.cluster.v1 import network_pb2, network_pb2_grpc

from client.caller import Caller, new_request_id


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
