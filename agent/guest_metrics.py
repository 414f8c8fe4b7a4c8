"""What each guest of a host uses, as metrics. Names behind `gugus_guest_` are cAdvisor's where it has one, else libvirt_exporter's.

cAdvisor: container_network_receive_bytes_total and its like (docs/storage/prometheus.md there). libvirt_exporter:
libvirt_domain_block_stats_read_bytes_total and its like. Times are in seconds, sizes in bytes, as Prometheus wants them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from gugus.agent.v1 import guest_pb2
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.metrics_core import CounterMetricFamily

NS_PER_S = 1e9
US_PER_S = 1e6

_LABELS = ("guest", "kind")

Guest = guest_pb2.Guest
Usage = guest_pb2.GuestUsage


@dataclass(frozen=True, slots=True)
class _Of:
    """A metric of guests, or of their disks or interfaces. A counter's name gets `_total` when it is written."""

    name: str
    help: str
    value: Callable[[Guest], float]
    counter: bool = False
    shown: Callable[[Guest], bool] = lambda guest: True


@dataclass(frozen=True, slots=True)
class _OfPart:
    """A counter of each disk or interface."""

    name: str
    help: str
    field: str


def _running(guest: Guest) -> bool:
    return guest.HasField("usage")


def _told(field: str) -> Callable[[Guest], bool]:
    """Whether a guest's usage says something of a field that not every guest has."""
    return lambda guest: bool(getattr(guest.usage, field))


_GUESTS = (
    _Of("cpu_seconds", "CPU time used since its start.", lambda g: g.cpu_time_ns / NS_PER_S, True),
    _Of("memory_bytes", "Memory in use as the host sees it.", lambda g: float(g.memory_used_bytes)),
    _Of("virtual_cpus", "CPUs it has.", lambda g: float(g.spec.cpus)),
    _Of("maximum_memory_bytes", "Memory it is given.", lambda g: float(g.spec.memory_bytes)),
    _Of("generation", "Fencing token it was granted last.", lambda g: float(g.generation)),
    _Of("pending_changes", "Settings that wait for its next start.", lambda g: float(len(g.pending)), shown=_running),
    _Of(
        "memory_usage_bytes",
        "Memory that the host gives it now.",
        lambda g: float(g.usage.memory_bytes),
        shown=_running,
    ),
    _Of(
        "memory_guest_used_bytes",
        "Memory that it says itself to use.",
        lambda g: float(g.usage.memory_guest_used_bytes),
        shown=_told("memory_guest_used_bytes"),
    ),
    _Of(
        "memory_actual_balloon_bytes",
        "Present goal of its balloon.",
        lambda g: float(g.usage.balloon_bytes),
        shown=_told("balloon_bytes"),
    ),
    _Of(
        "memory_swap_bytes",
        "Swap in use.",
        lambda g: float(g.usage.swap_bytes),
        shown=lambda g: _running(g) and g.spec.kind == guest_pb2.GUEST_KIND_CONTAINER,
    ),
    _Of("processes", "Processes in a container.", lambda g: float(g.usage.pids), shown=_told("pids")),
)

_DISKS = (
    _OfPart("disk_read_bytes", "Bytes read.", "read_bytes"),
    _OfPart("disk_write_bytes", "Bytes written.", "written_bytes"),
    _OfPart("disk_read_requests", "Reads.", "reads"),
    _OfPart("disk_write_requests", "Writes.", "writes"),
)

_NICS = (
    _OfPart("network_receive_bytes", "Bytes received, as the guest sees it.", "received_bytes"),
    _OfPart("network_transmit_bytes", "Bytes sent.", "sent_bytes"),
    _OfPart("network_receive_packets", "Packets received.", "received_packets"),
    _OfPart("network_transmit_packets", "Packets sent.", "sent_packets"),
    _OfPart("network_receive_packets_dropped", "Packets dropped on the way in.", "received_drops"),
    _OfPart("network_transmit_packets_dropped", "Packets dropped on the way out.", "sent_drops"),
)

RESOURCES = ("cpu", "memory", "io")
"""What pressure is told of (Documentation/accounting/psi.rst)."""


def collect(guests: Iterable[Guest]) -> Iterator[Metric]:
    """Yield every metric of these guests."""
    named = [
        (guest, (guest.spec.name, word(guest_pb2.GuestKind.Name(guest.spec.kind), "GUEST_KIND_"))) for guest in guests
    ]
    state = GaugeMetricFamily("gugus_guest_state", "1 for the state that it is in.", labels=(*_LABELS, "state"))
    for guest, labels in named:
        state.add_metric((*labels, word(guest_pb2.GuestState.Name(guest.state), "GUEST_STATE_")), 1.0)
    yield state
    for metric in _GUESTS:
        kind = CounterMetricFamily if metric.counter else GaugeMetricFamily
        family = kind(f"gugus_guest_{metric.name}", metric.help, labels=_LABELS)
        for guest, labels in named:
            if metric.shown(guest):
                family.add_metric(labels, metric.value(guest))
        yield family
    used = [(guest.usage, labels) for guest, labels in named if _running(guest)]
    yield from _parts(_DISKS, "disk", "disks", used)
    yield from _parts(_NICS, "interface", "nics", used)
    yield from _pressure(used)


def pressure_families(prefix: str, labels: tuple[str, ...] = ()) -> dict[tuple[str, str], CounterMetricFamily]:
    """Return empty families of pressure by resource and "some" or "full", named as node_exporter and cAdvisor name them."""
    words = {"some": ("waiting", "some tasks"), "full": ("stalled", "all tasks")}
    return {
        (resource, how): CounterMetricFamily(
            f"{prefix}_pressure_{resource}_{word_}_seconds", f"Time in which {who} waited for it.", labels=labels
        )
        for resource in RESOURCES
        for how, (word_, who) in words.items()
    }


def word(name: str, prefix: str) -> str:
    """Return an enum's value in words: GUEST_KIND_CONTAINER with prefix GUEST_KIND_ is "container"."""
    return name.removeprefix(prefix).lower()


def _parts(
    metrics: Iterable[_OfPart], label: str, parts: str, used: Iterable[tuple[Usage, tuple[str, str]]]
) -> Iterator[Metric]:
    families = {
        metric: CounterMetricFamily(f"gugus_guest_{metric.name}", metric.help, labels=(*_LABELS, label))
        for metric in metrics
    }
    for usage, labels in used:
        for part in getattr(usage, parts):
            own = (*labels, part.name)
            for metric, family in families.items():
                family.add_metric(own, float(getattr(part, metric.field)))
    yield from families.values()


def _pressure(used: Iterable[tuple[Usage, tuple[str, str]]]) -> Iterator[Metric]:
    families = pressure_families("gugus_guest", _LABELS)
    for usage, labels in used:
        for resource in RESOURCES:
            field = f"{resource}_pressure"
            if usage.HasField(field):  # type: ignore[arg-type]
                told = getattr(usage, field)
                families[resource, "some"].add_metric(labels, told.some_us / US_PER_S)
                families[resource, "full"].add_metric(labels, told.full_us / US_PER_S)
    yield from families.values()
