"""CPUs of a virtual machine: how many, of which model, in which topology, on which CPUs of the host."""

import xml.etree.ElementTree as ET

from agent.compute.definitions import Definition
from agent.compute.kvm.xml.run import Run, text

PERIOD_US = 100_000
"""Length of a CPU scheduling period in which the quota is counted, in microseconds (the kernel's default)."""

DEFAULT_WEIGHT = 100
SHARES_PER_WEIGHT = 1024 / DEFAULT_WEIGHT
"""cgroup v1's cpu.shares are 1,024 where cgroup v2's cpu.weight is 100 (their defaults)."""

CLUSTER, HOST = "cluster", "host"


def most_cpus(definition: Definition) -> int:
    """Return to how many CPUs it can grow."""
    return max(definition.spec.cpus, definition.spec.virtual_machine.cpu.max_cpus)


def shares(weight: int, *, cgroup_v2: bool) -> int:
    """Return what libvirt calls shares: the number for the host's cgroup version."""
    wanted = weight or DEFAULT_WEIGHT
    return wanted if cgroup_v2 else max(2, round(wanted * SHARES_PER_WEIGHT))


def quota(milli: int) -> int:
    """Return microseconds a period for thousandths of a CPU; -1, libvirt's word for no limit, for 0."""
    return PERIOD_US * milli // 1000 if milli else -1


def add(domain: ET.Element, definition: Definition, run: Run) -> None:
    """Add <vcpu>, <cputune> and <cpu>, with the NUMA nodes in it."""
    spec = definition.spec
    vcpu = text(domain, "vcpu", str(most_cpus(definition)), placement="static")
    if spec.cpus != most_cpus(definition):
        vcpu.set("current", str(spec.cpus))
    if spec.resources.cpuset:
        vcpu.set("cpuset", spec.resources.cpuset)
    _tune(domain, definition, run)
    _cpu(domain, definition, run)


def _tune(domain: ET.Element, definition: Definition, run: Run) -> None:
    spec = definition.spec
    tune = ET.Element("cputune")
    if spec.resources.cpu_weight:
        text(tune, "shares", str(shares(spec.resources.cpu_weight, cgroup_v2=run.cgroup_v2)))
    if spec.cpu_limit_milli:
        text(tune, "global_period", str(PERIOD_US))
        text(tune, "global_quota", str(quota(spec.cpu_limit_milli)))
    for number, cpus in sorted(spec.virtual_machine.cpu.pins.items()):
        ET.SubElement(tune, "vcpupin", vcpu=str(number), cpuset=cpus)
    if len(tune):
        domain.append(tune)


def _cpu(domain: ET.Element, definition: Definition, run: Run) -> None:
    cpu = _model(definition, run)
    if cpu is None:
        return
    wanted = definition.spec.virtual_machine.cpu
    if wanted.sockets or wanted.cores or wanted.threads:
        sockets, threads = wanted.sockets or 1, wanted.threads or 1
        cores = wanted.cores or max(1, most_cpus(definition) // (sockets * threads))
        ET.SubElement(cpu, "topology", sockets=str(sockets), dies="1", cores=str(cores), threads=str(threads))
    for name, policy in _features(definition, run).items():
        ET.SubElement(cpu, "feature", policy=policy, name=name)
    _numa(cpu, definition)
    domain.append(cpu)


def _model(definition: Definition, run: Run) -> ET.Element | None:
    """Return <cpu> with its model. Emulation has all that QEMU can emulate, unless a model is named."""
    model = definition.spec.virtual_machine.cpu.model or CLUSTER
    if model == CLUSTER:
        model = definition.spec.cluster_cpu.model or HOST
    if model != HOST:
        cpu = ET.Element("cpu", mode="custom", match="exact", check="none")
        text(cpu, "model", model, fallback="forbid")
        return cpu
    if run.kvm:
        return ET.Element("cpu", mode="host-passthrough", check="none", migratable="on")
    return ET.Element("cpu", mode="maximum", check="none") if run.domain_type == "qemu" else ET.Element("cpu")


def _features(definition: Definition, run: Run) -> dict[str, str]:
    spec = definition.spec
    features: dict[str, str] = {}
    if (spec.virtual_machine.cpu.model or CLUSTER) == CLUSTER and spec.cluster_cpu.model:
        features = dict.fromkeys(spec.cluster_cpu.features, "require")
    for flag in spec.virtual_machine.cpu.flags:
        features[flag[1:]] = "require" if flag.startswith("+") else "disable"
    return features if run.domain_type != "test" else {}


def _numa(cpu: ET.Element, definition: Definition) -> None:
    """Add the guest's NUMA nodes. One that can get more memory while it runs has at least one."""
    spec = definition.spec
    nodes = spec.virtual_machine.cpu.numa
    if not nodes and not spec.virtual_machine.memory.max_bytes:
        return
    numa = ET.SubElement(cpu, "numa")
    if not nodes:
        every = f"0-{most_cpus(definition) - 1}" if most_cpus(definition) > 1 else "0"
        ET.SubElement(numa, "cell", id="0", cpus=every, memory=str(spec.memory_bytes), unit="b")
    for index, node in enumerate(nodes):
        ET.SubElement(numa, "cell", id=str(index), cpus=node.cpus, memory=str(node.memory_bytes), unit="b")
