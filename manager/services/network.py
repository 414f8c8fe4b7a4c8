"""The network service."""

import ipaddress
from collections.abc import Collection

from gugus.agent.v1 import network_pb2 as agent_network
from gugus.cluster.v1 import network_pb2, network_pb2_grpc
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.network_pb2 import Network

from common import validate
from common.errors import GugusError, invalid, precondition, several
from manager.controllers.context import Context
from manager.events import record
from manager.services.forward import actor
from manager.services.requests import change_once, create_once, known_hosts, made_on_nodes, users_of
from manager.store import Txn
from manager.store.kinds import new

MIN_MTU = 576
MAX_MTU = 9216
"""The least that IPv4 asks of every link (RFC 791), and the largest common jumbo frame."""


class NetworkService(network_pb2_grpc.NetworkServiceServicer):
    """Serves `gugus network`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    async def CreateNetwork(self, request: network_pb2.CreateNetworkRequest, context: object) -> Network:
        """Write a network down, and answer when the nodes that are online have it."""
        faults = _spec_faults(request.spec)
        if not faults:
            faults = self._taken(request.spec, request.nodes)
        if faults:
            raise several(faults)
        known_hosts(self._store, request.nodes)
        network = new(Network, request.spec.name)
        network.spec.CopyFrom(request.spec)
        network.nodes.extend(request.nodes)
        return await made_on_nodes(self._context, await create_once(self._store, network, request.request_id))

    async def GetNetwork(self, request: network_pb2.GetNetworkRequest, context: object) -> Network:
        """Return one network."""
        return await self._store.require(Network, request.name)

    async def ListNetworks(
        self, request: network_pb2.ListNetworksRequest, context: object
    ) -> network_pb2.ListNetworksResponse:
        """Return all networks."""
        return network_pb2.ListNetworksResponse(networks=await self._store.list(Network))

    async def DeleteNetwork(
        self, request: network_pb2.DeleteNetworkRequest, context: object
    ) -> network_pb2.DeleteNetworkResponse:
        """Delete a network; nodes remove it as they are reached, and then it is gone."""

        async def change(key: str) -> None:
            network = await self._store.require(Network, request.name)
            if users := users_of(self._store.peek_all(Guest), network=request.name):
                raise precondition(
                    "NETWORK_IN_USE",
                    f"network {request.name} has interfaces of {', '.join(users)}.",
                    remedy="`gugus guest nic remove GUEST NIC` takes one away; or delete these guests first.",
                )
            network.meta.deleting = True
            txn = Txn(key).put(network, expect_revision=network.meta.revision)
            await self._store.txn(record(txn, f"network/{request.name}", "NETWORK_DELETED", f"deleted by {actor()}"))

        async with self._context.admission:
            await change_once(self._store, f"delete network/{request.name}", request.request_id, change)
        return network_pb2.DeleteNetworkResponse()

    def _taken(self, spec: agent_network.NetworkSpec, nodes: Collection[str]) -> list[GugusError]:
        """Return what another network has already, on nodes that both are on (none named: on all)."""
        faults = []
        for other in self._store.peek_all(Network):
            name, theirs = other.meta.name, other.spec.bridge
            if name == spec.name or (nodes and other.nodes and not set(nodes) & set(other.nodes)):
                continue
            if theirs.bridge == spec.bridge.bridge:
                faults.append(invalid("spec.bridge.bridge", f'"{theirs.bridge}" is the bridge of network {name}.'))
            if overlap := _overlap(spec.bridge.address, theirs.address):
                faults.append(invalid("spec.bridge.address", f"{overlap} is the subnet of network {name}."))
        return faults


def _overlap(address: str, other: str) -> str:
    """Return the other bridge's subnet when a host could not tell the two apart, else an empty string."""
    if not (address and other):
        return ""
    ours, theirs = ipaddress.ip_interface(address).network, ipaddress.ip_interface(other).network
    return str(theirs) if ours.version == theirs.version and ours.overlaps(theirs) else ""


def _spec_faults(spec: agent_network.NetworkSpec) -> list[GugusError]:
    faults = []
    if message := validate.name(spec.name):
        faults.append(invalid("spec.name", message))
    if spec.WhichOneof("driver") is None:
        return [*faults, invalid("spec.driver", "is not set; the drivers are: bridge.")]
    bridge = spec.bridge
    if message := validate.bridge_name(bridge.bridge):
        faults.append(invalid("spec.bridge.bridge", message))
    if bridge.uplink and (message := validate.bridge_name(bridge.uplink)):
        faults.append(invalid("spec.bridge.uplink", message))
    if bridge.mtu and not MIN_MTU <= bridge.mtu <= MAX_MTU:
        faults.append(invalid("spec.bridge.mtu", f"{bridge.mtu} is out of range; {MIN_MTU} to {MAX_MTU}."))
    return faults + _address_faults(bridge)


def _address_faults(bridge: agent_network.BridgeNetwork) -> list[GugusError]:
    if not bridge.address:
        needs = [word for word, wanted in (("nat", bridge.nat), ("dhcp", bridge.HasField("dhcp"))) if wanted]
        return [invalid("spec.bridge.address", f"is not set, and {' and '.join(needs)} need it.")] if needs else []
    try:
        interface = ipaddress.ip_interface(bridge.address)
    except ValueError:
        return [invalid("spec.bridge.address", f'"{bridge.address}" is no address with prefix, like 10.20.0.1/24.')]
    if "/" not in bridge.address:
        return [invalid("spec.bridge.address", f'"{bridge.address}" has no prefix length, like 10.20.0.1/24.')]
    if not bridge.HasField("dhcp"):
        return []
    faults: list[GugusError] = []
    ends = []
    for field, text in (("first", bridge.dhcp.first), ("last", bridge.dhcp.last)):
        try:
            end = ipaddress.ip_address(text)
        except ValueError:
            faults.append(invalid(f"spec.bridge.dhcp.{field}", f'"{text}" is no IP address.'))
            continue
        ends.append(end)
        if end not in interface.network:
            faults.append(invalid(f"spec.bridge.dhcp.{field}", f"{text} is not in {interface.network}."))
    if not faults and int(ends[0]) > int(ends[1]):
        faults.append(invalid("spec.bridge.dhcp", f"{ends[0]} comes after {ends[1]}."))
    return faults
