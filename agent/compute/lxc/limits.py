"""What a container may use, as files of its cgroup, on either version of cgroups. Pure.

Sources: Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/{memory,blkio-controller,cpusets}.rst, scheduler/sched-bwc.rst.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gugus.agent.v1 import guest_pb2, resources_pb2

CPU_PERIOD_US = 100_000
"""Period of the CPU quota in microseconds: the kernel's default (sched-bwc.rst)."""

PIDS = 4096
"""Most processes and threads of a container that names no number: a fork bomb inside must not use up the host's."""

WEIGHT = 100
"""CPU and I/O weight of a guest that names none, and the kernel's for a cgroup (cgroup-v2.rst)."""

_LEAST_QUOTA_US = 1000  # the kernel takes 1 ms at least
_SHARES = 1024  # cgroup v1 cpu.shares that weigh like WEIGHT
_LEAST_SHARES, _MOST_SHARES = 2, 262_144  # kernel/sched/sched.h, MIN_SHARES and MAX_SHARES
_MOST_BFQ_WEIGHT = 1000  # bfq-iosched.rst
_UNLIMITED_V1 = "-1"
_LIMIT_WORDS = ("read_bytes_per_s", "write_bytes_per_s", "read_iops", "write_iops")
_V1_FILES = ("read_bps_device", "write_bps_device", "read_iops_device", "write_iops_device")
_V2_WORDS = ("rbps", "wbps", "riops", "wiops")

Device = tuple[int, int]
"""Major and minor number of a disk of the host."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One value for one file of a container's cgroup. `field`: what of the spec it stands for."""

    controller: str
    file: str
    value: str
    field: str

    def line(self, *, unified: bool) -> str:
        """Return the line of a container's configuration (lxc.container.conf(5))."""
        return f"lxc.{'cgroup2' if unified else 'cgroup'}.{self.file} = {self.value}"


def essential(spec: guest_pb2.GuestSpec, *, unified: bool, swap: bool = True) -> list[Limit]:
    """Limits that a container never runs without, in an order in which they can be set on a new cgroup.

    `swap`: whether the kernel accounts for swap.
    """
    return list(_essential_v2(spec, swap) if unified else _essential_v1(spec, swap))


def further(spec: guest_pb2.GuestSpec, devices: Mapping[str, Device], *, unified: bool) -> list[Limit]:
    """What is set once a container runs: it may fail, for not every kernel and file system can all of it.

    `devices` has the disks of the host that the container's disks lie on, by the disk's name. What lies on one disk of the
    host is limited together, by the sum of the limits; by none if one of them has none.
    """
    return [*_shares(spec, unified), *_of_disks(spec, devices, unified)]


def quota_us(spec: guest_pb2.GuestSpec) -> int:
    """CPU time that it may use in each period, in microseconds."""
    milli = spec.cpu_limit_milli or spec.cpus * 1000
    return max(milli * CPU_PERIOD_US // 1000, _LEAST_QUOTA_US)


def _essential_v2(spec: guest_pb2.GuestSpec, swap: bool) -> Iterator[Limit]:
    given = spec.resources
    yield Limit("memory", "memory.max", str(spec.memory_bytes), "memory_bytes")
    if swap:
        yield Limit("memory", "memory.swap.max", str(given.swap_bytes), "resources.swap_bytes")
    yield Limit("cpu", "cpu.max", f"{quota_us(spec)} {CPU_PERIOD_US}", "cpu_limit_milli")
    yield Limit("cpu", "cpu.weight", str(given.cpu_weight or WEIGHT), "resources.cpu_weight")
    yield Limit("pids", "pids.max", str(given.pids or PIDS), "resources.pids")
    if given.cpuset:
        yield Limit("cpuset", "cpuset.cpus", given.cpuset, "resources.cpuset")


def _essential_v1(spec: guest_pb2.GuestSpec, swap: bool) -> Iterator[Limit]:
    given = spec.resources
    both, shares = spec.memory_bytes + given.swap_bytes, (given.cpu_weight or WEIGHT) * _SHARES // WEIGHT
    yield Limit("memory", "memory.limit_in_bytes", str(spec.memory_bytes), "memory_bytes")
    if swap:
        yield Limit("memory", "memory.memsw.limit_in_bytes", str(both), "resources.swap_bytes")
    yield Limit("cpu", "cpu.cfs_period_us", str(CPU_PERIOD_US), "cpu_limit_milli")
    yield Limit("cpu", "cpu.cfs_quota_us", str(quota_us(spec)), "cpu_limit_milli")
    yield Limit("cpu", "cpu.shares", str(min(max(shares, _LEAST_SHARES), _MOST_SHARES)), "resources.cpu_weight")
    yield Limit("pids", "pids.max", str(given.pids or PIDS), "resources.pids")
    if given.cpuset:
        yield Limit("cpuset", "cpuset.cpus", given.cpuset, "resources.cpuset")


def _shares(spec: guest_pb2.GuestSpec, unified: bool) -> Iterator[Limit]:
    """The memory that is kept for it, its weight on the disks, and the CPUs of one that may use all again."""
    given = spec.resources
    reserved, field = given.memory_reserved_bytes, "resources.memory_reserved_bytes"
    if unified:
        yield Limit("memory", "memory.low", str(reserved), field)
        yield Limit("io", "io.weight", f"default {given.io_weight or WEIGHT}", "resources.io_weight")
    else:
        yield Limit("memory", "memory.soft_limit_in_bytes", str(reserved or _UNLIMITED_V1), field)
        weight = min(given.io_weight or WEIGHT, _MOST_BFQ_WEIGHT)
        yield Limit("blkio", "blkio.bfq.weight", str(weight), "resources.io_weight")
    if not given.cpuset:
        yield Limit("cpuset", "cpuset.cpus", "", "resources.cpuset")


def _of_disks(spec: guest_pb2.GuestSpec, devices: Mapping[str, Device], unified: bool) -> Iterator[Limit]:
    for device, names in _together(devices).items():
        limits = [disk.settings.limits for disk in spec.disks if disk.name in names]
        values = [_sum([getattr(limit, word) for limit in limits]) for word in _LIMIT_WORDS]
        at, field = f"{device[0]}:{device[1]}", f"disks[{names[0]}].settings.limits"
        if unified:
            words = (f"{word}={value or 'max'}" for word, value in zip(_V2_WORDS, values, strict=True))
            yield Limit("io", "io.max", f"{at} {' '.join(words)}", field)
        else:
            for file, value in zip(_V1_FILES, values, strict=True):
                yield Limit("blkio", f"blkio.throttle.{file}", f"{at} {value}", field)


def _together(devices: Mapping[str, Device]) -> dict[Device, list[str]]:
    found: dict[Device, list[str]] = {}
    for name, device in devices.items():
        found.setdefault(device, []).append(name)
    return found


def _sum(values: list[int]) -> int:
    return sum(values) if all(values) else 0


def is_limited(limits: resources_pb2.IoLimits) -> bool:
    """Whether any limit is set."""
    return any(getattr(limits, word) for word in _LIMIT_WORDS)
