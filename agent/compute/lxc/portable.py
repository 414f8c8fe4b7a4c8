"""What keeps a container from going to another host as it runs. Looks at its processes and changes nothing.

Sources: criu.c of liblxc 5 and what CRIU 3.17 says when it refuses (docs/decisions/0020-criu.md).
"""

import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from gugus.agent.v1 import guest_pb2, migration_pb2
from gugus.agent.v1.migration_pb2 import MigrationObstacle

from agent.compute.idmap import IDMAP
from agent.compute.lxc.criu import Criu
from agent.compute.processes import PROC

_SINGLE = ("cgroup", "ipc", "pid", "user", "uts")
"""Namespaces that CRIU takes along only when all processes of the container share them."""

_VIRTUAL = frozenset(
    [
        *("binfmt_misc", "cgroup", "cgroup2", "debugfs", "devpts", "devtmpfs", "hugetlbfs"),
        *("mqueue", "overlay", "proc", "ramfs", "sysfs", "tmpfs", "tracefs"),
    ]
)
"""File systems that CRIU makes again."""

_ISA = re.compile(
    r"(3dnow|abm|adx|aes|amx|avx|bmi|clflush|clwb|cmov|cmpxchg|cx|erms|f16c|fma|fpu|fsgsbase|fsrm|fxsr|gfni|lahf|mmx|movbe"
    r"|movdir|pclmul|pku|pni|popcnt|prefetch|rdpid|rdrand|rdseed|rdtscp|rtm|serialize|sha|sse|ssse|syscall|umip|vaes|vpcl"
    r"|wbnoinvd|xop|xsave)"
)
"""Begins the names of x86 features that programs may use (/proc/cpuinfo); the others concern kernels."""


def of_spec(spec: guest_pb2.GuestSpec, *, pending: bool) -> Iterator[MigrationObstacle]:
    """What it was started with. pending: changes of it wait for its next start."""
    box = spec.container
    if not box.features.checkpoint:
        yield _obstacle(
            "NOT_CHECKPOINTABLE",
            "container.features.checkpoint",
            "It was started with a console and terminals, which CRIU cannot keep.",
            f"`gugus guest set {spec.name} --feature checkpoint`, then restart it.",
        )
    if pending:
        yield _obstacle("CHANGES_PENDING", "", "Changes of it wait for its next start.", "Restart it.")
    for name in ("nesting", "fuse", "mknod"):
        if getattr(box.features, name):
            yield _obstacle("FEATURE", f"container.features.{name}", f"CRIU does not keep what {name} makes possible.")
    if box.features.mount_types:
        yield _obstacle("FEATURE", "container.features.mount_types", "CRIU does not keep mounts of block devices.")
    for device in box.devices:
        yield _obstacle("HOST_DEVICE", f"container.devices[{device.path}]", "It is a device of its host.")
    for mount in box.mounts:
        yield _obstacle("HOST_FOLDER", f"container.mounts[{mount.target}]", "It is a folder of its host.")
    for disk in spec.disks[1:]:
        yield _obstacle("FURTHER_DISK", f"disks[{disk.name}]", "Only the root file system goes along as it is in use.")


def of_processes(init_pid: int) -> Iterator[MigrationObstacle]:
    """What its processes have made of their namespaces and mounts."""
    yield from _nested(init_pid)
    for kind, place in foreign_mounts((PROC / str(init_pid) / "mountinfo").read_text()):
        yield _obstacle("FOREIGN_MOUNT", place, f"CRIU cannot mount {kind} there again.", "Unmount it.")


def of_target(
    spec: guest_pb2.GuestSpec, there: migration_pb2.ContainerSurvey, criu: Criu
) -> Iterator[MigrationObstacle]:
    """What keeps it from going on here, but for its ids."""
    if criu.problem:
        yield _obstacle("CRIU_MISSING", "", f"CRIU cannot restore there: {criu.problem}.")
    elif there.criu_version and criu.version != there.criu_version:
        what = f"It has CRIU {criu.version}, the source {there.criu_version}."
        yield _obstacle("CRIU_VERSIONS_DIFFER", "", what, "Bring both hosts to one version.")
    here = survey()
    if here.machine != there.machine:
        yield _obstacle("CPU_INCOMPATIBLE", "", f"It is a {here.machine}, the source a {there.machine}.")
    elif missing := sorted(set(there.cpu_features) - set(here.cpu_features)):
        what = f"Its CPU lacks {', '.join(missing)}, which programs may have found on the source."
        yield _obstacle("CPU_INCOMPATIBLE", "", what)
    if _release(here.kernel) < _release(there.kernel):
        what = f"Its kernel {here.kernel} is older than the source's {there.kernel}."
        yield _obstacle("KERNEL_OLDER", "", what, "Update it.")


def of_ids(base: int, wanted: int, shared: str, taken: Sequence[int]) -> Iterator[MigrationObstacle]:
    """Whether it can run with the ids it has. wanted: base of the range that it would get here, 0 for none."""
    if base in (0, IDMAP.base):
        return
    if shared:
        yield _obstacle("IDS_SHARED", "", f"It runs in a range of ids of its own, and there none has one: {shared}.")
    elif base != wanted or base in taken:
        yield _obstacle("IDS_TAKEN", "", f"Another container runs there with its ids ({base} and up).")


def survey() -> migration_pb2.ContainerSurvey:
    """Return what programs may have found out of this host."""
    return migration_pb2.ContainerSurvey(
        kernel=os.uname().release,
        machine=platform.machine(),
        cpu_features=cpu_features(Path("/proc/cpuinfo").read_text()),
    )


def cpu_features(cpuinfo: str) -> list[str]:
    """Return the features that programs may use of the first CPU in /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return sorted(word for word in value.split() if _ISA.match(word))
        if key.strip() == "Features":  # arm64: all of them are for programs
            return sorted(value.split())
    return []


def foreign_mounts(mountinfo: str) -> Iterator[tuple[str, str]]:
    """Return file systems that CRIU does not make again, (type, place), from mountinfo (proc(5)); the root's own is carried."""
    mounts = [line.split() for line in mountinfo.splitlines()]
    root = {words[2] for words in mounts if words[4] == "/"}
    for words in mounts:
        kind = words[words.index("-") + 1]
        if kind not in _VIRTUAL and words[2] not in root:
            yield kind, words[4]


def _nested(init_pid: int) -> Iterator[MigrationObstacle]:
    """Tell the namespaces that only some of the processes are in, once each, with one of these."""
    own = {kind: _namespace(init_pid, kind) for kind in _SINGLE}
    told = set()
    for pid in _within(init_pid):
        for kind in _SINGLE:
            there = _namespace(pid, kind)
            if there and there != own[kind] and kind not in told:
                told.add(kind)
                what = f"{_command(pid)} runs in a {kind} namespace of its own, which CRIU cannot keep."
                yield _obstacle("NESTED_NAMESPACE", "", what, "Stop it, or take that hardening from its unit.")


def _within(init_pid: int) -> Iterator[int]:
    """Yield the processes below a container's init."""
    with suppress(OSError):
        for thread in sorted((PROC / str(init_pid) / "task").iterdir()):
            for child in (thread / "children").read_text().split():
                yield int(child)
                yield from _within(int(child))


def _namespace(pid: int, kind: str) -> str:
    try:
        return os.readlink(PROC / str(pid) / "ns" / kind)
    except OSError:
        return ""  # it ended


def _command(pid: int) -> str:
    try:
        return (PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return "A process"


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.split("-")[0])[:2])


def _obstacle(reason: str, subject: str, message: str, remedy: str = "") -> MigrationObstacle:
    return MigrationObstacle(reason=reason, subject=subject, message=message, remedy=remedy)
