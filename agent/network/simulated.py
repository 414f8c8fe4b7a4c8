"""Networks of a simulated host: kept in a file, nothing of the machine is touched.

For labs without root only; everything it reports says so by the absence of ports and addresses.
"""

from pathlib import Path

from google.protobuf import json_format
from gugus.agent.v1 import network_pb2

from agent.network.spec import desired
from common.files import remove_durably, write_atomic


class SimulatedDriver:
    """Records the networks it is asked for; specs are checked as the real driver checks them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def ensure(self, spec: network_pb2.NetworkSpec) -> network_pb2.Network:
        """Record the network. See NetworkDriver."""
        desired(spec)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._file(spec), json_format.MessageToJson(spec).encode())
        return await self.status(spec)

    async def remove(self, spec: network_pb2.NetworkSpec) -> None:
        """Forget the network. See NetworkDriver."""
        if self._file(spec).exists():
            remove_durably(self._file(spec))

    async def status(self, spec: network_pb2.NetworkSpec) -> network_pb2.Network:
        """Tell whether exactly this network is recorded. See NetworkDriver."""
        recorded = network_pb2.NetworkSpec()
        if self._file(spec).exists():
            json_format.Parse(self._file(spec).read_text(), recorded)
        ready = recorded == spec
        return network_pb2.Network(spec=spec, ready=ready, reason="" if ready else "not made on this simulated host")

    def addresses_by_mac(self) -> dict[str, tuple[str, ...]]:
        """Return nothing: no guest here has a network. See NetworkDriver."""
        return {}

    def _file(self, spec: network_pb2.NetworkSpec) -> Path:
        return self._folder / f"simulated-{spec.name}.json"
