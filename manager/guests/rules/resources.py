"""Shares and limits."""

from collections.abc import Iterator

from gugus.agent.v1.guest_pb2 import GUEST_KIND_VIRTUAL_MACHINE
from gugus.agent.v1.resources_pb2 import IoLimits
from gugus.cluster.v1.guest_pb2 import GuestSpec

from common.errors import GugusError, invalid
from common.units import format_size
from manager.guests.known import Known
from manager.guests.rules import check
from manager.guests.rules.cpu import SET_WORDS
from manager.guests.rules.size import MAX_MEMORY_BYTES, MIN_MEMORY_BYTES
from manager.guests.sets import parse_set

MAX_WEIGHT = 10_000
"""Of cgroup v2 (Documentation/admin-guide/cgroup-v2.rst)."""

MAX_MEMORY_WEIGHT = 50_000
MAX_PIDS = 4_194_304
"""PID_MAX_LIMIT of the kernel (include/linux/threads.h)."""

MAX_RATE = 10**15
"""THROTTLE_VALUE_MAX of QEMU (include/qemu/throttle.h)."""

MAX_BURST_S = 3600

_LIMITS = ("read_bytes_per_s", "write_bytes_per_s", "read_iops", "write_iops")
BURSTS = ("read_burst_bytes_per_s", "write_burst_bytes_per_s", "read_burst_iops", "write_burst_iops")


def faults(spec: GuestSpec, known: Known) -> Iterator[GugusError]:
    """Everything in `resources`."""
    own, at = spec.resources, "spec.resources"
    yield from check.ranged(f"{at}.cpu_weight", own.cpu_weight, 1, MAX_WEIGHT)
    yield from check.ranged(f"{at}.io_weight", own.io_weight, 1, MAX_WEIGHT)
    yield from check.ranged(f"{at}.memory_weight", own.memory_weight, 1, MAX_MEMORY_WEIGHT)
    sound = MIN_MEMORY_BYTES <= spec.memory_bytes <= MAX_MEMORY_BYTES
    most = spec.memory_bytes if sound else MAX_MEMORY_BYTES
    yield from check.ranged(f"{at}.memory_reserved_bytes", own.memory_reserved_bytes, 1, most, show=format_size)
    yield from check.ranged(f"{at}.swap_bytes", own.swap_bytes, 1, MAX_MEMORY_BYTES, show=format_size)
    yield from check.ranged(f"{at}.pids", own.pids, 1, MAX_PIDS)
    if spec.kind == GUEST_KIND_VIRTUAL_MACHINE:
        for name in ("swap_bytes", "pids"):
            if getattr(own, name):
                yield invalid(f"{at}.{name}", f"{getattr(own, name)}: only containers have it.")
    yield from _cpuset(spec, known)


def _cpuset(spec: GuestSpec, known: Known) -> Iterator[GugusError]:
    text = spec.resources.cpuset
    if not text:
        return
    members = parse_set(text)
    if members is None:
        yield invalid("spec.resources.cpuset", f"{check.shown(text)} is not {SET_WORDS}.")
        return
    node = known.nodes.get(spec.pinned_node)
    cpus = node.status.facts.cpus if node is not None else 0
    if cpus and (beyond := sorted(number for number in members if number >= cpus)):
        yield invalid("spec.resources.cpuset", f"node {spec.pinned_node} has no CPU {beyond[0]}; 0 to {cpus - 1}.")


def io_faults(at: str, limits: IoLimits) -> Iterator[GugusError]:
    """The limits of one disk; `at` is the field that holds them."""
    for rate, burst in zip(_LIMITS, BURSTS, strict=True):
        least, most = getattr(limits, rate), getattr(limits, burst)
        yield from check.ranged(f"{at}.{rate}", least, 1, MAX_RATE)
        if most and not least:
            yield invalid(f"{at}.{burst}", f"{most} needs {rate}: a burst goes beyond a limit.")
        else:
            yield from check.ranged(f"{at}.{burst}", most, max(1, least), MAX_RATE)
    yield from check.ranged(f"{at}.burst_s", limits.burst_s, 1, MAX_BURST_S)
    if limits.burst_s and not any(getattr(limits, burst) for burst in BURSTS):
        yield invalid(f"{at}.burst_s", f"{limits.burst_s} needs a burst to be limited.")
