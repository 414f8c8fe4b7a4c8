"""How even the nodes are and what guests use, as metrics of the acting manager; docs/metrics.md describes them.

Invariant: a scrape reads memory only.
"""

from collections.abc import Iterable

from gugus.cluster.v1.cluster_pb2 import BalanceMode
from gugus.cluster.v1.guest_pb2 import Guest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from manager.controllers.context import Context


class BalanceCollector(Collector):
    """Told by the acting manager only, so that each figure counts once."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics as they are now."""
        if self._context.acting.valid:
            yield from self._loads()
            yield from self._evenness()

    def _loads(self) -> Iterable[Metric]:
        labels = ("guest", "node")
        cpu = GaugeMetricFamily("gugus_guest_cpu_load_ratio", "Smoothed part of its CPUs that is busy.", labels=labels)
        text = "Smoothed part of its memory that is in use."
        memory = GaugeMetricFamily("gugus_guest_memory_load_ratio", text, labels=labels)
        for guest in self._context.store.peek_all(Guest):
            if self._context.loads.known(guest.meta.uid):
                load = self._context.load_of(guest)
                cpu.add_metric((guest.meta.name, guest.status.node), load.cpu)
                memory.add_metric((guest.meta.name, guest.status.node), load.memory)
        return cpu, memory

    def _evenness(self) -> Iterable[Metric]:
        outlook = self._context.outlook
        begun = CounterMetricFamily("gugus_balance_moves_begun", "Migrations that the cluster began by itself.")
        begun.add_metric((), outlook.moves_begun)
        yield begun
        if (status := outlook.status) is None:
            return
        mode = GaugeMetricFamily("gugus_balance_mode", "1 for the mode that balancing is set to.", labels=("mode",))
        mode.add_metric((BalanceMode.Name(status.mode).removeprefix("BALANCE_MODE_").lower(),), 1.0)
        yield mode
        if not outlook.parts:
            return
        score = GaugeMetricFamily("gugus_balance_score", "Unevenness by its parts; 0 is best.", labels=("part",))
        for part, value in sorted(outlook.parts.items()):
            score.add_metric((part,), value)
        yield score
        text = "Migrations that are worth it now."
        yield GaugeMetricFamily("gugus_balance_planned_moves", text, value=len(status.moves))
        yield GaugeMetricFamily("gugus_balance_planned_score", "Unevenness after them.", value=status.score_after)
