"""The agent's metrics, read from what is known already: a scrape never asks a hypervisor."""

from collections.abc import Iterator

from gugus.agent.v1 import guest_pb2
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

from agent.facts import HostFacts
from agent.fencing.guard import Guard
from agent.guests import Guests

NS_PER_S = 1e9


class AgentCollector(Collector):
    """Collects `gugus_lease_seconds`, `gugus_agent_info`, `gugus_hypervisor_ready` and a few of each guest.

    It runs in threads of the metrics server and reads what the event loop replaces as a whole; a guest that comes or
    goes in the middle of a scrape is in it or not.
    """

    def __init__(self, node: str, guests: Guests, facts: HostFacts, guard: Guard) -> None:
        self._node, self._guests, self._facts, self._guard = node, guests, facts, guard

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        lease_s = self._guard.remaining_ms / 1000
        yield GaugeMetricFamily("gugus_lease_seconds", "Time left of the node lease; 0 when none is held.", lease_s)
        facts = self._facts.facts
        info = {"node": self._node, "version": facts.agent_version, "boot_id": facts.boot_id}
        yield InfoMetricFamily("gugus_agent", "The agent.", info)
        ready = GaugeMetricFamily(
            "gugus_hypervisor_ready", "1 when the hypervisor can run guests.", labels=("driver", "mode")
        )
        for hypervisor in facts.hypervisors:
            ready.add_metric((hypervisor.driver, hypervisor.mode), float(hypervisor.ready))
        yield ready
        yield from self._of_guests()

    def _of_guests(self) -> Iterator[Metric]:
        state = GaugeMetricFamily(
            "gugus_guest_state", "1 for the state that the guest is in.", labels=("guest", "kind", "state")
        )
        cpu = CounterMetricFamily("gugus_guest_cpu_seconds", "CPU time used since its start.", labels=("guest", "kind"))
        memory = GaugeMetricFamily("gugus_guest_memory_bytes", "Memory in use.", labels=("guest", "kind"))
        for guest in self._guests.list():
            name, kind = guest.spec.name, _word(guest_pb2.GuestKind.Name(guest.spec.kind), "GUEST_KIND_")
            state.add_metric((name, kind, _word(guest_pb2.GuestState.Name(guest.state), "GUEST_STATE_")), 1.0)
            cpu.add_metric((name, kind), guest.cpu_time_ns / NS_PER_S)
            memory.add_metric((name, kind), float(guest.memory_used_bytes))
        yield from (state, cpu, memory)


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()
