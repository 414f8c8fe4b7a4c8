"""The CPU of virtual machines: topology, model, flags, NUMA, pins."""

import difflib
import re
from collections.abc import Iterator

from gugus.cluster.v1.guest_pb2 import GuestSpec

from common.errors import GugusError, invalid
from common.units import format_size
from manager.guests.known import Known
from manager.guests.rules import check
from manager.guests.rules.size import MAX_CPUS
from manager.guests.sets import MAX_MEMBER, parse_set

MAX_THREADS = 8
MAX_FLAGS = 64
MAX_NUMA_NODES = 64
MAX_MODELS_SHOWN = 12

SET_WORDS = f'a set like "0-3,8" of numbers up to {MAX_MEMBER}'

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_FLAG = re.compile(r"[+-][a-z0-9][a-z0-9_.-]{0,62}")


def faults(spec: GuestSpec, known: Known) -> Iterator[GugusError]:
    """Everything in `virtual_machine.cpu`; empty in containers, which `kind` sees to."""
    cpu, at = spec.virtual_machine.cpu, "spec.virtual_machine.cpu"
    yield from check.ranged(f"{at}.sockets", cpu.sockets, 1, MAX_CPUS)
    yield from check.ranged(f"{at}.cores", cpu.cores, 1, MAX_CPUS)
    yield from check.ranged(f"{at}.threads", cpu.threads, 1, MAX_THREADS)
    if cpu.max_cpus:
        least = max(1, spec.cpus) if spec.cpus <= MAX_CPUS else 1  # too many CPUs are told by themselves
        yield from check.ranged(f"{at}.max_cpus", cpu.max_cpus, least, MAX_CPUS)
    yield from _topology(spec)
    if cpu.model:
        yield from _model(cpu.model, known)
    yield from _flags(spec)
    yield from _numa(spec)
    yield from _pins(spec)


def cpu_count(spec: GuestSpec) -> int:
    """Return how many CPUs a virtual machine can have, those that it may grow to included; no more than are allowed."""
    return min(max(1, spec.cpus, spec.virtual_machine.cpu.max_cpus), MAX_CPUS)


def _model(name: str, known: Known) -> Iterator[GugusError]:
    """A model is one that the CPU of some node can be, as far as nodes tell."""
    at = "spec.virtual_machine.cpu.model"
    if not _MODEL.fullmatch(name):
        yield from check.matching(at, name, _MODEL, '"cluster", "host" or a CPU model of libvirt')
        return
    facts = [hypervisor for node in known.nodes.values() for hypervisor in node.status.facts.hypervisors]
    models = {model for hypervisor in facts for model in hypervisor.cpu_models}
    if models and name not in ("cluster", "host", *models):
        near = difflib.get_close_matches(name, sorted(models), n=MAX_MODELS_SHOWN, cutoff=0.0)
        there = ", ".join(sorted(near)) + (f" (and {len(models) - len(near)} more)" if len(models) > len(near) else "")
        yield invalid(at, f'no node\'s CPU can be {check.shown(name)}; "cluster", "host", or one of: {there}.')


def _topology(spec: GuestSpec) -> Iterator[GugusError]:
    cpu, count = spec.virtual_machine.cpu, cpu_count(spec)
    each = max(1, cpu.sockets) * max(1, cpu.threads)
    if cpu.cores and each * cpu.cores != count:
        text = (
            f"{max(1, cpu.sockets)} sockets x {cpu.cores} cores x {max(1, cpu.threads)} threads are {each * cpu.cores} CPUs, "
            f"not {count}."
        )
        yield invalid("spec.virtual_machine.cpu.cores", text)
    elif not cpu.cores and count % each:
        text = f"{count} CPUs cannot be divided by {max(1, cpu.sockets)} sockets x {max(1, cpu.threads)} threads."
        yield invalid("spec.virtual_machine.cpu.sockets", text)


def _flags(spec: GuestSpec) -> Iterator[GugusError]:
    flags, at = spec.virtual_machine.cpu.flags, "spec.virtual_machine.cpu.flags"
    yield from check.at_most(at, len(flags), MAX_FLAGS, "flags")
    names: set[str] = set()
    for index, flag in enumerate(flags):
        yield from check.matching(f"{at}[{index}]", flag, _FLAG, 'a flag with its sign, like "+aes" or "-vmx"')
        if flag[1:] in names:
            yield invalid(f"{at}[{index}]", f'"{flag[1:]}" is named twice.')
        names.add(flag[1:])


def _numa(spec: GuestSpec) -> Iterator[GugusError]:
    nodes, at = spec.virtual_machine.cpu.numa, "spec.virtual_machine.cpu.numa"
    if not nodes:
        return
    yield from check.at_most(at, len(nodes), MAX_NUMA_NODES, "nodes")
    count, seen = cpu_count(spec), set[int]()
    for index, node in enumerate(nodes):
        members = parse_set(node.cpus)
        if members is None:
            yield invalid(f"{at}[{index}].cpus", f"{check.shown(node.cpus)} is not {SET_WORDS}.")
            continue
        if beyond := sorted(members - set(range(count))):
            yield invalid(f"{at}[{index}].cpus", f"CPU {beyond[0]} is out of range; 0 to {count - 1}.")
        if twice := sorted(members & seen):
            yield invalid(f"{at}[{index}].cpus", f"CPU {twice[0]} is in another NUMA node, too.")
        seen |= members
        if node.host_nodes and parse_set(node.host_nodes) is None:
            yield invalid(f"{at}[{index}].host_nodes", f"{check.shown(node.host_nodes)} is not {SET_WORDS}.")
        if not node.memory_bytes:
            yield invalid(f"{at}[{index}].memory_bytes", "is 0; each NUMA node has memory.")
    if missing := sorted(set(range(count)) - seen):
        yield invalid(at, f"CPU {missing[0]} is in no NUMA node; each of 0 to {count - 1} is in one.")
    if (total := sum(node.memory_bytes for node in nodes)) != spec.memory_bytes:
        yield invalid(
            at, f"its memory sums up to {format_size(total)}, the guest has {format_size(spec.memory_bytes)}."
        )


def _pins(spec: GuestSpec) -> Iterator[GugusError]:
    at, count = "spec.virtual_machine.cpu.pins", cpu_count(spec)
    cpuset = parse_set(spec.resources.cpuset)
    for number, text in sorted(spec.virtual_machine.cpu.pins.items()):
        if number >= count:
            yield invalid(f"{at}[{number}]", f"the guest has no such CPU; 0 to {count - 1}.")
        members = parse_set(text)
        if members is None:
            yield invalid(f"{at}[{number}]", f"{check.shown(text)} is not {SET_WORDS}.")
        elif cpuset is not None and (outside := sorted(members - cpuset)):
            yield invalid(f"{at}[{number}]", f"CPU {outside[0]} is not in resources.cpuset {spec.resources.cpuset}.")
