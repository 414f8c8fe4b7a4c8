"""NetworkService: networks on this host."""

from collections.abc import Callable
from functools import partial
from typing import Any

from gugus.agent.v1 import network_pb2, network_pb2_grpc

from agent.networks import Networks
from agent.turns import Turns


class NetworkService(network_pb2_grpc.NetworkServiceServicer):
    """See proto/gugus/agent/v1/network.proto. changed: called after what networks there are has changed."""

    def __init__(self, networks: Networks, turns: Turns, changed: Callable[[], None]) -> None:
        self._networks, self._turns, self._changed = networks, turns, changed

    async def EnsureNetwork(self, request: network_pb2.EnsureNetworkRequest, context: Any) -> network_pb2.Network:
        """Make a network."""
        ensure = partial(self._networks.ensure, request.spec)
        network = await self._turns.run(f"network/{request.spec.name}", request.epoch, ensure)
        self._changed()
        return network

    async def DeleteNetwork(
        self, request: network_pb2.DeleteNetworkRequest, context: Any
    ) -> network_pb2.DeleteNetworkResponse:
        """Remove a network."""
        remove = partial(self._networks.remove, request.name)
        await self._turns.run(f"network/{request.name}", request.epoch, remove)
        self._changed()
        return network_pb2.DeleteNetworkResponse()

    async def ListNetworks(
        self, request: network_pb2.ListNetworksRequest, context: Any
    ) -> network_pb2.ListNetworksResponse:
        """Tell of all networks."""
        return network_pb2.ListNetworksResponse(networks=await self._networks.statuses())
