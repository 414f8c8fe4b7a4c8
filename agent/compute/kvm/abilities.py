"""What virtual machines can be on this host: machine types, CPU models and features, firmware. Found out once a boot.

libvirt takes seconds for it after each update of QEMU, so it runs beside everything else, and the result is kept.
"""

import asyncio
import platform
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import libvirt
from gugus.agent.v1 import node_pb2

from agent.compute.kvm import firmware, host_devices
from agent.compute.kvm.accelerator import EMULATOR, Accelerator
from agent.compute.kvm.domains import Domains
from common.errors import GugusError
from common.files import read_json, write_json
from common.logs import get_logger

ASK_TIMEOUT_S = 120.0
RETRY_S = 30.0
DEFAULT_MACHINE = "q35"
_LISTS = ("machine_types", "cpu_models", "cpu_features")
_PREFIXES = ("pc-q35-", "pc-i440fx-")
_log = get_logger("kvm.abilities")


@dataclass(frozen=True, slots=True)
class Found:
    """What libvirt says; `key` names the boot, the QEMU and the libvirt that it holds for."""

    key: str
    machine_types: tuple[str, ...] = ()
    cpu_models: tuple[str, ...] = ()
    cpu_features: tuple[str, ...] = ()
    spice: bool = False


class Abilities:
    """Asks in the background until there is an answer."""

    def __init__(self, domains: Domains, cache: Path, boot_id: str) -> None:
        self._domains, self._cache, self._boot_id = domains, cache, boot_id
        self._task: asyncio.Task[None] | None = None
        self.found: Found | None = None
        self.firmware = firmware.Abilities(uefi=False, secure_boot=False, tpm=False)
        self._iommu = False

    def begin(self, accelerator: Accelerator) -> None:
        """Ask, unless that is under way or done."""
        if self._task is None and self.found is None and accelerator.mode:
            self._task = asyncio.create_task(self._find(accelerator), name="kvm-abilities")

    def tell(self, facts: node_pb2.HypervisorFacts) -> None:
        """Add what is known by now to the facts."""
        there = self.firmware
        words = {"uefi": there.uefi, "secure-boot": there.secure_boot, "tpm": there.tpm, "iommu": self._iommu}
        facts.abilities.extend(word for word, is_there in words.items() if is_there)
        if self.found is not None:
            facts.machine_types.extend(self.found.machine_types)
            facts.cpu_models.extend(self.found.cpu_models)
            facts.cpu_features.extend(self.found.cpu_features)
            facts.abilities.extend(["spice"] if self.found.spice else [])

    async def close(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _find(self, accelerator: Accelerator) -> None:
        while self.found is None:
            try:
                self.firmware = await asyncio.to_thread(firmware.abilities)
                self._iommu = await asyncio.to_thread(host_devices.has_iommu)
                self.found = await self._once(accelerator.domain_type)
            except GugusError as error:
                _log.warning("abilities are not known yet", error=str(error))
                await asyncio.sleep(RETRY_S)

    async def _once(self, domain_type: str) -> Found:
        versions = await self._domains.call(lambda c: (c.getLibVersion(), c.getVersion()), timeout_s=ASK_TIMEOUT_S)
        key = f"{self._boot_id} {domain_type} {versions}"
        try:
            known = await asyncio.to_thread(read_json, self._cache)
            if known["key"] == key:
                machines_, models, features = (tuple(known[k]) for k in _LISTS)
                return Found(key, machines_, models, features, spice=known["spice"])
        except (OSError, ValueError, KeyError, TypeError):  # never asked, or a file that cannot be used
            known = None
        found = await self._domains.call(lambda connection: _ask(connection, domain_type, key), timeout_s=ASK_TIMEOUT_S)
        try:
            await asyncio.to_thread(write_json, self._cache, asdict(found))
        except OSError as error:
            _log.warning("abilities cannot be kept", error=str(error))
        return found


def _ask(connection: Any, domain_type: str, key: str) -> Found:
    machine_types = machines(connection.getCapabilities())
    arch = platform.machine()
    text = connection.getDomainCapabilities(None, arch, DEFAULT_MACHINE, domain_type, 0)
    models, host = cpus(text)
    features = _expanded(connection, arch, domain_type, host)
    return Found(key, machine_types, models, features, spice="<value>spice</value>" in text)


def machines(capabilities: str) -> tuple[str, ...]:
    """Return the versioned machine types of a host, the newest of each kind first."""
    root = ET.fromstring(capabilities)  # noqa: S314  (libvirt's own output)
    names = {
        name
        for arch in root.findall(f"guest/arch[@name='{platform.machine()}']")
        for machine in arch.iter("machine")
        for name in (machine.get("canonical", ""), machine.text or "")
        if name.startswith(_PREFIXES)
    }
    return tuple(sorted(names, key=lambda name: (name.startswith(_PREFIXES[0]), _version(name)), reverse=True))


def cpus(domain_capabilities: str) -> tuple[tuple[str, ...], str]:
    """Return the CPU models that a host can run, and its own CPU as <cpu> (libvirt's host-model)."""
    root = ET.fromstring(domain_capabilities)  # noqa: S314  (libvirt's own output)
    usable = [m.text or "" for m in root.findall("cpu/mode[@name='custom']/model") if m.get("usable") == "yes"]
    host = root.find("cpu/mode[@name='host-model']")
    cpu = ET.Element("cpu")
    for child in host if host is not None else ():
        if child.tag in ("model", "vendor") or (child.tag == "feature" and child.get("policy") == "require"):
            child.attrib.pop("fallback", None)
            child.attrib.pop("policy", None)
            cpu.append(child)
    return tuple(sorted(usable)), ET.tostring(cpu, encoding="unicode")


def _expanded(connection: Any, arch: str, domain_type: str, host: str) -> tuple[str, ...]:
    """Return every feature of a CPU, those that its model stands for among them."""
    flags = libvirt.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES
    try:
        text = connection.baselineHypervisorCPU(None, arch, None, domain_type, [host], flags)
    except libvirt.libvirtError as error:
        _log.warning("CPU features are not known", emulator=EMULATOR, error=str(error))
        return ()
    root = ET.fromstring(text)  # noqa: S314  (libvirt's own output)
    return tuple(sorted(f.get("name", "") for f in root.findall("feature") if f.get("policy") != "disable"))


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.rpartition("-")[2].split(".") if part.isdigit())
