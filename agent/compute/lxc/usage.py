"""What a running container uses, from its cgroup's files and the host's ends of its interfaces; 0 for what cannot be read.

A look costs some ten reads of a few microseconds each and starts no process.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gugus.agent.v1 import guest_pb2

from agent.compute.lxc.limits import Device
from agent.compute.lxc.processes import UNIFIED

_NS_PER_US = 1000
_COUNTERS = 16  # numbers of one interface in proc(5), /proc/net/dev
_V2_WORDS = {"rbytes": "read_bytes", "wbytes": "written_bytes", "rios": "reads", "wios": "writes"}
_V1_FILES = {
    "blkio.throttle.io_service_bytes_recursive": {"Read": "read_bytes", "Write": "written_bytes"},
    "blkio.throttle.io_serviced_recursive": {"Read": "reads", "Write": "writes"},
}

Counters = dict[str, int]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a container's numbers are: its folder by controller, its disks' devices, its interfaces' host ends."""

    folders: Mapping[str, Path]
    devices: Mapping[str, Device]
    """Disk -> disk of the host; the first of several on one disk of the host gets all its numbers."""
    interfaces: Mapping[str, str]


def network_counters() -> dict[str, list[int]]:
    """Read the counters of all interfaces of the host at once."""
    found = {}
    with suppress(OSError):
        for line in Path("/proc/self/net/dev").read_text().splitlines():
            name, colon, numbers = line.partition(":")
            if colon:
                found[name.strip()] = [int(number) for number in numbers.split()]
    return found


def read(sources: Sources, network: Mapping[str, list[int]]) -> guest_pb2.GuestUsage:
    """Return what a container uses now. `network`: see `network_counters`."""
    usage = _v2(sources.folders[UNIFIED]) if "memory" not in sources.folders else _v1(sources.folders)
    blocks = _io_v2(sources.folders[UNIFIED]) if "blkio" not in sources.folders else _io_v1(sources.folders["blkio"])
    taken: set[Device] = set()
    for name, device in sources.devices.items():
        mine = {} if device in taken else blocks.get(device, {})
        taken.add(device)
        usage.disks.add(name=name, **mine)
    usage.nics.extend(_nics(sources.interfaces, network))
    return usage


def _v1(folders: Mapping[str, Path]) -> guest_pb2.GuestUsage:
    memory = folders["memory"]
    used, both = _number(memory / "memory.usage_in_bytes"), _number(memory / "memory.memsw.usage_in_bytes")
    return guest_pb2.GuestUsage(
        cpu_time_ns=_number(folders.get("cpuacct", memory) / "cpuacct.usage"),
        memory_bytes=used,
        memory_guest_used_bytes=_working_set(memory, used, "total_inactive_file"),
        swap_bytes=max(both - used, 0),
        pids=_number(folders.get("pids", memory) / "pids.current"),
    )


def _v2(folder: Path) -> guest_pb2.GuestUsage:
    used = _number(folder / "memory.current")
    return guest_pb2.GuestUsage(
        cpu_time_ns=_table(folder / "cpu.stat").get("usage_usec", 0) * _NS_PER_US,
        memory_bytes=used,
        memory_guest_used_bytes=_working_set(folder, used, "inactive_file"),
        swap_bytes=_number(folder / "memory.swap.current"),
        pids=_number(folder / "pids.current"),
        cpu_pressure=_pressure(folder / "cpu.pressure"),
        memory_pressure=_pressure(folder / "memory.pressure"),
        io_pressure=_pressure(folder / "io.pressure"),
    )


def _working_set(folder: Path, used: int, cache: str) -> int:
    """What is used but for file pages that the kernel would give up first: as the container's own tools count it."""
    return max(used - _table(folder / "memory.stat").get(cache, 0), 0)


def _pressure(file: Path) -> guest_pb2.Pressure | None:
    totals = {words[0]: int(words[-1].partition("=")[2]) for words in map(str.split, _lines(file)) if words}
    return guest_pb2.Pressure(some_us=totals.get("some", 0), full_us=totals.get("full", 0)) if totals else None


def _io_v2(folder: Path) -> dict[Device, Counters]:
    found: dict[Device, Counters] = {}
    for at, *pairs in (line.split() for line in _lines(folder / "io.stat")):
        numbers = dict(pair.split("=") for pair in pairs if "=" in pair)
        found[_device(at)] = {field: int(numbers.get(word, 0)) for word, field in _V2_WORDS.items()}
    return found


def _io_v1(folder: Path) -> dict[Device, Counters]:
    found: dict[Device, Counters] = {}
    for file, words in _V1_FILES.items():
        for parts in (line.split() for line in _lines(folder / file)):
            if len(parts) == 3 and parts[1] in words:
                found.setdefault(_device(parts[0]), {})[words[parts[1]]] = int(parts[2])
    return found


def _nics(interfaces: Mapping[str, str], network: Mapping[str, list[int]]) -> Iterator[guest_pb2.NicUsage]:
    """Counters as the guest sees them: what the host's end sent, the guest received."""
    for name, host_name in interfaces.items():
        numbers = network.get(host_name, [])
        if len(numbers) >= _COUNTERS:
            yield guest_pb2.NicUsage(
                name=name,
                received_bytes=numbers[8],
                received_packets=numbers[9],
                received_drops=numbers[11],
                sent_bytes=numbers[0],
                sent_packets=numbers[1],
                sent_drops=numbers[3],
            )


def _device(text: str) -> Device:
    major, _, minor = text.partition(":")
    return (int(major), int(minor)) if minor.isdigit() else (0, 0)


def _table(file: Path) -> Counters:
    return {parts[0]: int(parts[1]) for parts in map(str.split, _lines(file)) if len(parts) == 2}


def _lines(file: Path) -> Iterable[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return ()


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0
