"""The CPU that all hosts have in common, and the machine type: what a guest sees of both must not depend on its host."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gugus.agent.v1.guest_pb2 import GUEST_KIND_VIRTUAL_MACHINE, ClusterCpu
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import Node

RANKED = (
    "qemu64", "kvm64", "Conroe", "Penryn", "Nehalem", "Westmere", "SandyBridge", "IvyBridge", "Haswell", "Broadwell",
    "Skylake-Client", "Skylake-Server", "Cascadelake-Server", "Cooperlake", "Icelake-Client", "Icelake-Server", "Snowridge",
    "SapphireRapids", "GraniteRapids",
    "Opteron_G1", "Opteron_G2", "Opteron_G3", "Opteron_G4", "Opteron_G5",
    "Dhyana", "EPYC", "EPYC-Rome", "EPYC-Milan", "EPYC-Genoa",
)  # fmt: skip
"""Families of libvirt's CPU models (src/cpu_map) from the least to the best of each vendor; what is not here is worth less than all."""

CLUSTER_MODEL = "cluster"
"""CpuSpec.model of virtual machines whose CPU is what all hosts have in common; the default."""

NOT_MIGRATABLE = frozenset({"invtsc"})
"""Features with which QEMU refuses to migrate a guest."""

_VARIANT = re.compile(r"-(noTSX|IBRS|IBPB|v[0-9]+)")
_MACHINE = re.compile(r"pc-(?:q35|i440fx)-(\d+)\.(\d+)")
_FAMILIES = {"": "pc-q35-", "q35": "pc-q35-", "pc-q35": "pc-q35-", "pc": "pc-i440fx-", "pc-i440fx": "pc-i440fx-"}
"""Beginning of the versioned names of each machine type that has no version."""


@dataclass(frozen=True, slots=True)
class HostCpu:
    """What virtual machines can have on one host; empty sets mean that the host does not say."""

    models: frozenset[str]
    features: frozenset[str]
    machines: frozenset[str]


def hosts_of(nodes: Iterable[Node]) -> list[HostCpu]:
    """Return the hosts that run virtual machines, online or not: one that is off now may be asked to run them later.

    One that is off for good counts until it is removed: only its owner knows that (`limits` tells what it costs).
    """
    found = []
    for node in nodes:
        if node.meta.deleting:
            continue
        for hypervisor in node.status.facts.hypervisors:
            if GUEST_KIND_VIRTUAL_MACHINE in hypervisor.kinds and (hypervisor.cpu_models or hypervisor.machine_types):
                found.append(
                    HostCpu(
                        frozenset(hypervisor.cpu_models),
                        frozenset(hypervisor.cpu_features),
                        frozenset(hypervisor.machine_types),
                    )
                )
    return found


def cluster_cpu(hosts: Sequence[HostCpu]) -> ClusterCpu:
    """Return the best model that all hosts can give, and the features that all have; empty when they have no model in common."""
    telling = [host for host in hosts if host.models]
    if not telling:
        return ClusterCpu()
    common = frozenset.intersection(*(host.models for host in telling))
    if not common:
        return ClusterCpu()
    features = frozenset.intersection(*(host.features for host in telling))
    return ClusterCpu(model=max(common, key=_worth), features=sorted(features - NOT_MIGRATABLE))


def limits(nodes: Iterable[Node]) -> dict[str, ClusterCpu]:
    """Return, by name, the nodes that keep the CPU of all hosts from being better, and what it would be without them and their like."""
    hosts = {node.meta.name: hosts_of([node]) for node in nodes}
    present, found = cluster_cpu([host for own in hosts.values() for host in own]), {}
    for name, own in hosts.items():
        without = cluster_cpu([host for others in hosts.values() if others != own for host in others])
        if _worth(without.model) > _worth(present.model) or set(without.features) > set(present.features):
            found[name] = without
    return found


def pinned_machine(wanted: str, hosts: Sequence[HostCpu]) -> str:
    """Return the versioned machine type for one without a version: the newest of its family that all hosts have.

    A versioned one stays as it is, and so does any while the hosts do not say what they have.
    """
    family = _FAMILIES.get(wanted)
    telling = [host.machines for host in hosts if host.machines]
    if family is None or not telling:
        return wanted
    common = [name for name in frozenset.intersection(*telling) if name.startswith(family) and _MACHINE.fullmatch(name)]
    return max(common, key=_version, default=wanted)


def choose_hardware(guest: Guest, nodes: Iterable[Node]) -> None:
    """Write down, before a start, what "cluster" means for this run, and the machine type for good if none was chosen yet."""
    if guest.spec.kind != GUEST_KIND_VIRTUAL_MACHINE:
        return
    hosts = hosts_of(nodes)
    machine = guest.spec.virtual_machine
    machine.machine = pinned_machine(machine.machine, hosts)
    guest.status.ClearField("cluster_cpu")
    if machine.cpu.model in ("", CLUSTER_MODEL) and (cpu := cluster_cpu(hosts)).model:
        guest.status.cluster_cpu.CopyFrom(cpu)


def _worth(model: str) -> tuple[int, int, str]:
    """Return what models are compared by: the family, then the number of its mitigations and versions (a longer name has more)."""
    family = _VARIANT.sub("", model)
    rank = RANKED.index(family) if family in RANKED else -1
    return rank, -1 if "noTSX" in model else len(_VARIANT.findall(model)), model


def _version(machine: str) -> tuple[int, int]:
    found = _MACHINE.fullmatch(machine)
    return (int(found[1]), int(found[2])) if found else (0, 0)
