"""What libvirt says of domains, in this project's words. Runs in libvirt's call pool; only domains of ours are told.

libvirt is asked once for the states of all domains, and once per run of a domain for its mark. What a domain uses is
read from the kernel: libvirt would ask QEMU's monitor for it, and one that hangs holds up the answer for all domains.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
from gugus.agent.v1 import guest_pb2

from agent.compute.hypervisor import Observation
from agent.compute.kvm.xml.mark import NAMESPACE, Mark, read_mark

STATS = libvirt.VIR_DOMAIN_STATS_STATE
"""The one group of statistics for which libvirt never asks a monitor (qemuDomainGetStatsWorkers in qemu_driver.c)."""

FLAGS = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT

PROC = Path("/proc")
_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_FIRST_FIELD, _USER_FIELD, _SYSTEM_FIELD, _PAGES_FIELD = 3, 14, 15, 24
"""Fields of /proc/PID/stat (proc(5)): the first after the name; CPU time in ticks; resident pages."""

_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: guest_pb2.GUEST_STATE_RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: guest_pb2.GUEST_STATE_RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: guest_pb2.GUEST_STATE_PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: guest_pb2.GUEST_STATE_PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: guest_pb2.GUEST_STATE_STOPPING,
    libvirt.VIR_DOMAIN_SHUTOFF: guest_pb2.GUEST_STATE_STOPPED,
    libvirt.VIR_DOMAIN_CRASHED: guest_pb2.GUEST_STATE_CRASHED,
}
_PAUSE_REASONS = {
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: "Paused on an input/output error of a disk; is its pool full?",
    libvirt.VIR_DOMAIN_PAUSED_CRASHED: "Paused because the guest's kernel crashed.",
    libvirt.VIR_DOMAIN_PAUSED_USER: "Paused by an operator.",
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION: "Paused for a migration.",
    libvirt.VIR_DOMAIN_PAUSED_WATCHDOG: "Paused by its watchdog, which the guest did not feed; `gugus guest resume` lets it go on.",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """One active domain of ours."""

    name: str
    mark: Mark
    state: guest_pb2.GuestState.ValueType
    reason: str

    def observation(
        self,
        pid: int,
        pending: tuple[guest_pb2.PendingChange, ...] = (),
        counters: guest_pb2.GuestUsage | None = None,
        addresses: tuple[str, ...] = (),
    ) -> Observation:
        """Return it as the driver tells it; pid: QEMU's process, 0 when it is not known."""
        cpu_time_ns, memory_used_bytes = usage(pid)
        told = guest_pb2.GuestUsage(cpu_time_ns=cpu_time_ns, memory_bytes=memory_used_bytes)
        if counters is not None:
            told.MergeFrom(counters)
        crashed = self.state == guest_pb2.GUEST_STATE_CRASHED  # libvirt is about to end it
        return Observation(
            self.state,
            ended=guest_pb2.GUEST_END_CRASH if crashed else guest_pb2.GUEST_END_UNSPECIFIED,
            pid=pid,
            mode=self.mark.mode,
            reason=self.reason,
            generation=self.mark.generation,
            addresses=addresses,
            cpu_time_ns=cpu_time_ns,
            memory_used_bytes=memory_used_bytes,
            pending=pending,
            usage=told,
        )


class Marks:
    """The marks of running domains, remembered: (UUID, libvirt id) names one run."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], Mark | None] = {}

    def of(self, domain: Any) -> Mark | None:
        """Return a domain's mark; None when it is not ours."""
        key = (domain.UUIDString(), domain.ID())
        if key not in self._known:
            self._known[key] = _ask(domain)
        return self._known[key]

    def forget(self, domain: Any) -> None:
        """Ask for a domain's mark anew, for it was replaced."""
        self._known.pop((domain.UUIDString(), domain.ID()), None)

    def keep(self, keys: set[tuple[str, int]]) -> None:
        """Forget all but the runs named."""
        for key in self._known.keys() - keys:
            self._known.pop(key, None)


def _ask(domain: Any) -> Mark | None:
    try:
        return read_mark(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, 0))
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_NO_DOMAIN):
            return None
        raise
    except ValueError:
        return None


def look(connection: Any, marks: Marks) -> dict[str, Seen]:
    """Ask libvirt for all active domains of ours, by name. Raises libvirtError."""
    found: dict[str, Seen] = {}
    keys: set[tuple[str, int]] = set()
    for domain, stats in connection.getAllDomainStats(STATS, FLAGS):
        mark = marks.of(domain)
        keys.add((domain.UUIDString(), domain.ID()))
        if mark is not None:
            found[domain.name()] = _seen(domain.name(), mark, stats)
    marks.keep(keys)
    return found


def _seen(name: str, mark: Mark, stats: dict[str, int]) -> Seen:
    state = _STATES.get(stats.get("state.state", -1), guest_pb2.GUEST_STATE_RUNNING)
    paused = state == guest_pb2.GUEST_STATE_PAUSED
    return Seen(
        name=name,
        mark=mark,
        state=state,
        reason=_PAUSE_REASONS.get(stats.get("state.reason", -1), "") if paused else "",
    )


def usage(pid: int) -> tuple[int, int]:
    """Return what a process has used: CPU time in nanoseconds, guest's and QEMU's own, and memory in bytes; 0 if gone."""
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return 0, 0
    fields = stat.rpartition(")")[2].split()
    user, system, pages = (int(fields[n - _FIRST_FIELD]) for n in (_USER_FIELD, _SYSTEM_FIELD, _PAGES_FIELD))
    return (user + system) * _NS_PER_TICK, pages * _PAGE_BYTES
