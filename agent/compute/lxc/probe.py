"""Whether this host can run containers, and how: found out by trying."""

import asyncio
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from gugus.agent.v1 import guest_pb2, node_pb2

from agent.compute import idmap
from agent.compute.lxc.criu import CriuProbe
from agent.compute.lxc.prepare import PRIVILEGED, UNPRIVILEGED
from common.process import CommandFailed, run

_PROGRAMS = ("lxc-start", "lxc-stop")
_TRY_TIMEOUT_S = 5.0
_IDMAPPED_MOUNTS = (5, 12)  # mount_setattr(2)
_CGROUPS = Path("/proc/self/cgroup")


class Probe:
    """Facts of this host; what was found out by trying is kept until the agent restarts."""

    def __init__(self, criu: CriuProbe) -> None:
        self.criu = criu
        self._problem: str | None = None
        self._shared: str | None = None
        self._lock = asyncio.Lock()

    async def unprivileged_problem(self) -> str:
        """Tell why unprivileged containers do not work here; "" when they do."""
        async with self._lock:
            problem = self._problem
            if problem is None:
                problem = await asyncio.to_thread(idmap.available) or await _try()
                self._problem = problem
            return problem

    async def why_shared(self) -> str:
        """Tell why unprivileged containers cannot have a range of ids each; "" when they can."""
        async with self._lock:
            if self._shared is None:
                self._shared = await asyncio.to_thread(_why_shared)
            return self._shared

    async def facts(self, kinds: Sequence[guest_pb2.GuestKind.ValueType]) -> node_pb2.HypervisorFacts:
        """Tell whether and how containers run here."""
        facts = node_pb2.HypervisorFacts(driver="lxc", kinds=kinds)
        if problem := await asyncio.to_thread(_not_ready):
            facts.reason = problem
            return facts
        why_privileged = await self.unprivileged_problem()
        facts.ready = True
        criu = self.criu.known()
        facts.criu_version, facts.criu_problem = "" if criu.problem else criu.version, criu.problem
        facts.mode = PRIVILEGED if why_privileged else UNPRIVILEGED
        if why_privileged:
            facts.reason = f"containers run with the host's ids: {why_privileged}"
        elif why_shared := await self.why_shared():
            facts.reason = f"containers share one range of ids: {why_shared}"
        return facts


async def _try() -> str:
    """Enter the id range as a container would."""
    try:
        await run(["lxc-usernsexec", *idmap.IDMAP.usernsexec_args(), "--", "true"], timeout_s=_TRY_TIMEOUT_S)
    except CommandFailed as error:
        return f"a user namespace with ids from {idmap.IDMAP.base} cannot be entered ({error})"
    return ""


def _why_shared() -> str:
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2] if part.isdigit())
    if release < _IDMAPPED_MOUNTS:
        return f"the kernel is older than {'.'.join(map(str, _IDMAPPED_MOUNTS))}, the first with idmapped mounts"
    return idmap.own_available()


def _not_ready() -> str:
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"{', '.join(missing)} not found: install the Debian package lxc"
    if os.geteuid() != 0:
        return "the agent does not run as root"
    return "" if _CGROUPS.exists() else "the kernel has no cgroups"
