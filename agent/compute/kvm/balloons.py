"""The loop that lets guests' balloons follow the pressure on the host; `ballooning` decides."""

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path

import libvirt

from agent.compute.definitions import DefinitionStore
from agent.compute.kvm.ballooning import Balloon, Host, goals
from agent.compute.kvm.domains import Domains
from agent.compute.kvm.usage import Usage
from common.errors import GugusError
from common.logs import get_logger

PERIOD_S = 10.0
MEMINFO = Path("/proc/meminfo")
_KIB = 1024
_log = get_logger("kvm.balloons")


class Balloons:
    """Sets the balloons of running guests that may give memory up (`resources.memory_reserved_bytes`)."""

    def __init__(self, domains: Domains, definitions: DefinitionStore, usage: Usage, meminfo: Path = MEMINFO) -> None:
        self._domains, self._definitions, self._usage, self._meminfo = domains, definitions, usage, meminfo

    async def run(self) -> None:
        """Decide and set for ever, until cancelled."""
        while True:
            await asyncio.sleep(PERIOD_S)
            with contextlib.suppress(GugusError):
                await self.once()

    async def once(self) -> dict[str, int]:
        """Decide and set once; return what was set, in bytes. Raises HYPERVISOR_DOWN."""
        balloons = self._balloons()
        if not balloons:
            return {}
        host = await asyncio.to_thread(host_memory, self._meminfo)
        wanted = goals(host, balloons)
        for name, goal in wanted.items():
            await self._set(name, goal)
        return wanted

    def _balloons(self) -> dict[str, Balloon]:
        found: dict[str, Balloon] = {}
        for name in self._definitions.names():
            spec, usage = self._definitions.get(name).spec, self._usage.of(name)
            if spec.resources.memory_reserved_bytes and usage is not None and usage.balloon_bytes:
                given, weight = spec.memory_bytes, spec.resources.memory_weight
                floor = spec.resources.memory_reserved_bytes
                found[name] = Balloon(usage.balloon_bytes, floor, given, *([weight] if weight else []))
        return found

    async def _set(self, name: str, goal: int) -> None:
        try:
            live = libvirt.VIR_DOMAIN_AFFECT_LIVE
            await self._domains.act(name, lambda domain: domain.setMemoryFlags(goal // _KIB, live))
            _log.info("balloon set", guest=name, bytes=goal)
        except GugusError as error:  # one guest's fault must not keep the others from giving
            _log.warning("balloon not set", guest=name, error=str(error))


def host_memory(meminfo: Path = MEMINFO) -> Host:
    """Read the host's memory. Raises OSError, ValueError."""
    values = _values(meminfo.read_text().splitlines())
    return Host(values["MemTotal"], values["MemAvailable"])


def _values(lines: Iterable[str]) -> dict[str, int]:
    parts = (line.replace(":", "").split() for line in lines)
    return {words[0]: int(words[1]) * _KIB for words in parts if len(words) > 1}
