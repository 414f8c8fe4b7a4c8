"""Networks of this host: which it has (the state remembers), their drivers, and which guests use them."""

import asyncio
from collections.abc import Mapping

from gugus.agent.v1 import guest_pb2, network_pb2

from agent.network.network import NetworkDriver, create_all, driver_of
from agent.state import AgentState
from common import validate
from common.config import AgentConfig
from common.errors import GugusError, as_gugus_error, precondition
from common.logs import get_logger

_log = get_logger("networks")


class Networks:
    """All networks of this host. Methods raise GugusError."""

    def __init__(self, state: AgentState, config: AgentConfig) -> None:
        self._state = state
        self._drivers: Mapping[str, NetworkDriver] = create_all(config, simulated=config.hypervisors == ("simulated",))

    async def open(self) -> None:
        """Make the networks that are remembered again: a reboot removed them from the kernel."""
        for spec in list(self._state.networks.values()):
            try:
                await driver_of(self._drivers, spec).ensure(spec)
            except GugusError as error:
                _log.warning("network not ready", network=spec.name, reason=str(error))

    async def ensure(self, spec: network_pb2.NetworkSpec) -> network_pb2.Network:
        """Make a network and remember it. It is remembered first, so that nothing made is ever forgotten."""
        validate.require("spec.name", validate.name(spec.name))
        driver = driver_of(self._drivers, spec)
        before = self._state.networks.get(spec.name)
        await asyncio.to_thread(self._state.save_network, spec)
        try:
            return await driver.ensure(spec)
        except GugusError:
            await self._restore(spec.name, before)
            raise

    async def remove(self, name: str) -> None:
        """Remove a network. Raises NETWORK_IN_USE."""
        spec = self._state.networks.get(name)
        if spec is None:
            return
        users = sorted({g.name for g in self._state.guests.values() for n in g.nics if n.network == name})
        if users:
            raise precondition(
                "NETWORK_IN_USE",
                f'network "{name}" is used by {", ".join(users)}.',
                remedy="Delete these guests from this node first.",
                subject=f"network/{name}",
                metadata={"guests": ",".join(users)},
            )
        await driver_of(self._drivers, spec).remove(spec)
        await asyncio.to_thread(self._state.remove_network, name)

    async def statuses(self) -> list[network_pb2.Network]:
        """Tell how each network is, by name."""
        return [await self._status(spec) for _, spec in sorted(self._state.networks.items())]

    def bridge_of(self, nic: guest_pb2.GuestNic) -> str:
        """Return the bridge that a network interface goes into. Raises NETWORK_MISSING."""
        spec = self._state.networks.get(nic.network)
        if spec is None:
            raise precondition(
                "NETWORK_MISSING",
                f'interface "{nic.name}" needs the network "{nic.network}", which this node does not have.',
                remedy="Ensure the network on this node first, or correct the interface.",
                subject=f"network/{nic.network}",
            )
        return spec.bridge.bridge

    def addresses(self, guest: guest_pb2.GuestSpec) -> tuple[str, ...]:
        """Return the addresses that a guest holds from the networks' DHCP servers."""
        known: dict[str, tuple[str, ...]] = {}
        for driver in self._drivers.values():
            known.update(driver.addresses_by_mac())
        return tuple(address for nic in guest.nics for address in known.get(nic.mac.lower(), ()))

    async def _restore(self, name: str, before: network_pb2.NetworkSpec | None) -> None:
        if before is None:
            await asyncio.to_thread(self._state.remove_network, name)
        else:
            await asyncio.to_thread(self._state.save_network, before)

    async def _status(self, spec: network_pb2.NetworkSpec) -> network_pb2.Network:
        try:
            return await driver_of(self._drivers, spec).status(spec)
        except Exception as error:  # one network's fault must not hide the others
            return network_pb2.Network(spec=spec, ready=False, reason=str(as_gugus_error(error, _log)))
