"""Network: what a driver of networks has to offer to the agent, and the drivers by name.

A driver makes a network of this host what its spec says, as often as it is asked, and touches nothing that this project
did not make. Which driver a network has is told by the `driver` that its spec sets.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from gugus.agent.v1 import network_pb2

from agent.network.bridge import BridgeDriver
from agent.network.simulated import SimulatedDriver
from common.config import AgentConfig
from common.errors import invalid


class NetworkDriver(Protocol):
    """A driver. Methods raise GugusError only; every one of them has a time limit and may be repeated."""

    async def ensure(self, spec: network_pb2.NetworkSpec) -> network_pb2.Network:
        """Make the network what the spec says, repairing what has drifted; returns it as it is then.

        Errors: INVALID_ARGUMENT, and FAILED_PRECONDITION with BRIDGE_NOT_OURS, UPLINK_MISSING, UPLINK_IN_USE,
        UPLINK_HAS_ADDRESSES; nothing is changed then. NETWORK_FAILED when the kernel or a program refuses.
        """

    async def remove(self, spec: network_pb2.NetworkSpec) -> None:
        """Remove what was made for the network. Errors: FAILED_PRECONDITION (NETWORK_IN_USE names the ports)."""

    async def status(self, spec: network_pb2.NetworkSpec) -> network_pb2.Network:
        """Tell how the network is, without changing anything."""

    def addresses_by_mac(self) -> dict[str, tuple[str, ...]]:
        """Return the addresses that guests hold from the networks' DHCP servers, by lower-case MAC address."""


DRIVERS: Mapping[str, Callable[[AgentConfig], NetworkDriver]] = {
    "bridge": lambda config: BridgeDriver(config.state_dir / "networks"),
}
"""Field of `NetworkSpec.driver` -> how to make its driver. Adding a driver adds a line."""


def create_all(config: AgentConfig, *, simulated: bool = False) -> dict[str, NetworkDriver]:
    """Make one driver a kind of network; `simulated` ones record what they are asked and touch nothing."""
    if simulated:
        return {kind: SimulatedDriver(config.state_dir / "networks") for kind in DRIVERS}
    return {kind: make(config) for kind, make in DRIVERS.items()}


def driver_of(drivers: Mapping[str, NetworkDriver], spec: network_pb2.NetworkSpec) -> NetworkDriver:
    """Return the driver that a spec names. Raises INVALID_ARGUMENT when it names none."""
    kind = spec.WhichOneof("driver")
    if kind is None or kind not in drivers:
        raise invalid("driver", f'network "{spec.name}" names no driver.', remedy=f"Set one of: {', '.join(drivers)}.")
    return drivers[kind]
