"""What this host is and how it is: facts for placement, problems for people. Kept fresh in the background."""

import asyncio
import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path

from gugus.agent.v1 import node_pb2

from agent.fencing.guard import Guard
from agent.fencing.lease import Phase
from agent.fencing.watchdog_client import WatchdogClient, WatchdogStatus
from agent.networks import Networks
from agent.observer import Observer
from agent.pools import Pools
from agent.state import AgentState
from common.config import AgentConfig
from common.identity.names import Role
from common.identity.store import Pki
from common.waiting import happened

REFRESH_PERIOD_S = 5.0
"""So often pools, networks and hypervisors are looked at, beside each change that was asked for."""

HOST_RESERVE_BYTES = 512 * 1024 * 1024
"""Memory that guests may not use: the host's own daemons."""

HOST_RESERVE_PART = 20
"""The host keeps at least one part in so many, for page tables and caches of the guests' I/O."""


REBOOT_REQUIRED = Path("/run/reboot-required")
"""Made by Debian's packages (kernel, libc) that take effect after a reboot (update-notifier-common, unattended-upgrades)."""

HUGE_PAGES = Path("/sys/kernel/mm/hugepages")
HUGE_PAGE_2M_KIB, HUGE_PAGE_1G_KIB = 2048, 1024 * 1024


class HostFacts:
    """Gathers facts; `facts` and `problems` are the last gathered and never wait."""

    def __init__(
        self,
        config: AgentConfig,
        boot_id: str,
        state: AgentState,
        observer: Observer,
        pools: Pools,
        networks: Networks,
        guard: Guard,
        watchdog: WatchdogClient,
    ) -> None:
        self._state, self._observer, self._pools, self._networks = state, observer, pools, networks
        self._guard, self._watchdog = guard, watchdog
        self._still = _unchanging(config, boot_id)
        self._wanted = asyncio.Event()
        self._pool_problems: list[str] = []
        self._watchdog_status = WatchdogStatus(False, "not yet asked")
        self.facts = self._still
        self.known = False
        """Whether facts were ever gathered: what does not change is not all that placement has to know."""

    def refresh_soon(self) -> None:
        """Gather again at once, for something was changed."""
        self._wanted.set()

    async def run(self, changed: Callable[[], None]) -> None:
        """Keep fresh until cancelled, calling `changed` after each change."""
        while True:
            before = self.facts
            await self.refresh()
            if self.facts != before:
                changed()
            await happened(self._wanted, REFRESH_PERIOD_S)
            self._wanted.clear()

    async def refresh(self) -> node_pb2.Facts:
        """Gather now."""
        pools, networks = await self._pools.statuses(), await self._networks.statuses()
        hypervisors = await self._observer.probe()
        self._watchdog_status = self._watchdog.status()
        self._pool_problems = [f"pool {p.spec.name} is not ready: {p.reason}" for p in pools if not p.ready]
        self._pool_problems += [f"network {n.spec.name} is not ready: {n.reason}" for n in networks if not n.ready]
        facts = node_pb2.Facts()
        facts.CopyFrom(self._still)
        facts.hypervisors.extend(hypervisors)
        facts.huge_pages_2m_bytes = await asyncio.to_thread(_huge_pages_bytes, HUGE_PAGE_2M_KIB)
        facts.huge_pages_1g_bytes = await asyncio.to_thread(_huge_pages_bytes, HUGE_PAGE_1G_KIB)
        facts.reboot_required = await asyncio.to_thread(REBOOT_REQUIRED.exists)
        facts.watchdog, facts.watchdog_reason = self._watchdog_status.guarded, self._watchdog_status.reason
        facts.pools.extend(p.spec.name for p in pools if p.ready)
        facts.networks.extend(n.spec.name for n in networks if n.ready)
        self.facts, self.known = facts, True
        return facts

    def health(self) -> node_pb2.Health:
        """Tell how the host is."""
        problems = self._problems()
        return node_pb2.Health(
            healthy=not problems,
            problems=problems,
            lease_remaining_ms=self._guard.remaining_ms,
            epoch=self._state.epoch,
        )

    def _problems(self) -> list[str]:
        problems = [f"hypervisor {name} does not answer: {why}" for name, why in self._observer.down.items()]
        problems += [f"hypervisor {h.driver} is not ready: {h.reason}" for h in self.facts.hypervisors if not h.ready]
        problems += self._pool_problems
        if self._guard.phase is not Phase.HELD:
            problems.append("this node holds no lease, so it runs no HA guests: no acting manager renews it")
        if not self._guard.alive:
            problems.append("the fencing thread is stuck: only the watchdog can end HA guests now")
        ha = any(spec.ha for spec in self._state.guests.values())
        if ha and not self._watchdog_status.guarded:
            problems.append(f"no watchdog guards HA guests if the agent hangs: {self._watchdog_status.reason}")
        strays = {name for name, seen in self._observer.seen.items() if seen.observation.running}
        strays -= self._state.guests.keys()
        problems += [f'guest "{name}" runs here without a definition' for name in sorted(strays)]
        return problems


def version() -> str:
    """Return the version of this agent."""
    return importlib.metadata.version("gugus")


def _unchanging(config: AgentConfig, boot_id: str) -> node_pb2.Facts:
    memory = _memory_bytes()
    facts = node_pb2.Facts(
        node=config.name,
        boot_id=boot_id,
        agent_version=version(),
        kernel=os.uname().release,
        cpus=len(os.sched_getaffinity(0)),
        cpu_model=_cpu_model(),
        memory_bytes=memory,
        memory_allocatable_bytes=max(0, memory - max(HOST_RESERVE_BYTES, memory // HOST_RESERVE_PART)),
    )
    if (pki := Pki(config.pki_dir)).has(Role.NODE):
        facts.certificate_ends_at.FromDatetime(pki.credentials(Role.NODE).not_after)
    return facts


def _huge_pages_bytes(size_kib: int) -> int:
    """Return how much memory is reserved as pages of a size (Documentation/admin-guide/mm/hugetlbpage.rst)."""
    try:
        return int((HUGE_PAGES / f"hugepages-{size_kib}kB" / "nr_hugepages").read_text()) * size_kib * 1024
    except (OSError, ValueError):
        return 0


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return os.uname().machine
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), os.uname().machine)
