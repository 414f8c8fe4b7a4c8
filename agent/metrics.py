"""The agent's metrics, read from what is known already: a scrape never asks a hypervisor."""

from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from agent import guest_metrics
from agent.facts import HostFacts
from agent.fencing.guard import Guard
from agent.guests import Guests

PRESSURE = Path("/proc/pressure")
"""Pressure of the host; absent from kernels without CONFIG_PSI (Documentation/accounting/psi.rst)."""


class AgentCollector(Collector):
    """Collects the lease, the hypervisors, the host's pressure, and what each guest uses.

    It runs in threads of the metrics server and reads what the event loop replaces as a whole; a guest that comes or
    goes in the middle of a scrape is in it or not.
    """

    def __init__(self, node: str, guests: Guests, facts: HostFacts, guard: Guard, pressure: Path = PRESSURE) -> None:
        self._node, self._guests, self._facts, self._guard = node, guests, facts, guard
        self._pressure = pressure

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        lease_s = self._guard.remaining_ms / 1000
        yield GaugeMetricFamily("gugus_lease_seconds", "Time left of the node lease; 0 when none is held.", lease_s)
        facts = self._facts.facts
        text = "When the certificate of the agent ends, Unix time."
        yield GaugeMetricFamily("gugus_certificate_ends_timestamp_seconds", text, facts.certificate_ends_at.seconds)
        info = {"node": self._node, "version": facts.agent_version, "boot_id": facts.boot_id}
        yield InfoMetricFamily("gugus_agent", "The agent.", info)
        ready = GaugeMetricFamily(
            "gugus_hypervisor_ready", "1 when the hypervisor can run guests.", labels=("driver", "mode")
        )
        for hypervisor in facts.hypervisors:
            ready.add_metric((hypervisor.driver, hypervisor.mode), float(hypervisor.ready))
        yield ready
        yield from _host_pressure(self._pressure)
        yield from guest_metrics.collect(self._guests.list())


def _host_pressure(folder: Path) -> Iterator[Metric]:
    """Yield the pressure of the host; nothing where the kernel does not tell it."""
    for (resource, how), family in guest_metrics.pressure_families("gugus_host").items():
        total_us = _total_us(folder / resource, how)
        if total_us is not None:
            family.add_metric((), total_us / guest_metrics.US_PER_S)
            yield family


def _total_us(file: Path, how: str) -> int | None:
    """Return the total of a line ("some" or "full") of a pressure file, or None."""
    try:
        lines = file.read_text().splitlines()
    except OSError:  # no such file, or pressure is switched off (EOPNOTSUPP)
        return None
    for line in lines:
        name, *pairs = line.split()
        if name == how:
            return int(dict(pair.split("=", 1) for pair in pairs)["total"])
    return None
