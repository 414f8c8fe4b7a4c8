"""Finding a container's processes and what they use, from /proc and the cgroup files alone.

Invariant: no library and no daemon is asked, so the answer comes in microseconds and also when liblxc hangs. A
container is its init (pid 1 of its own pid namespace, whose death is the death of everything in it) and its monitor,
the liblxc process that starts it, reboots it, and cleans up after it. What cannot be read is an error, never an absence.
This module imports nothing big: the watchdog needs it.
"""

import os
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path

from agent.compute.processes import (
    PROC,
    ProcessRecord,
    command_line,
    is_alive,
    kill_each,
    record_of,
    send,
    stands_still,
    stat_of,
    threads_of,
)

UNIFIED = "unified"
"""Stands for cgroup v2 where controllers are named."""

PAYLOAD = "lxc.payload."
"""Begins the name of a container's own cgroup (cgfsng.c of liblxc, DEFAULT_PAYLOAD_CGROUP_PREFIX)."""

_TITLE = "[lxc monitor] "  # lxccontainer.c of liblxc, do_lxcapi_start
_STARTER, _RESTORER = "lxc-start", "lxc-checkpoint"
_MONITOR_NAMES = (b"lxc-start", b"lxc-checkpoint", b"[lxc monitor]")
"""The thread's name of LXC 5 after a start and after a restore, and what it would be after the title."""
_MONITOR_CGROUP = "lxc.monitor."  # cgfsng.c of liblxc, DEFAULT_MONITOR_CGROUP_PREFIX
_LOCAL = re.compile(r"\|-- (\S+)\n\s+/32 host LOCAL")
_LINK_SCOPE = "20"  # net/if_inet6: IPV6_ADDR_LINKLOCAL


@dataclass(frozen=True, slots=True)
class Processes:
    """A container's processes; None for one that is not there (yet, or any more)."""

    monitor: ProcessRecord | None
    init: ProcessRecord | None


@dataclass(frozen=True, slots=True)
class Cgroups:
    """Folders of a container in the cgroup hierarchies: for CPU and memory accounts ("": none), and all of them."""

    cpu: str = ""
    memory: str = ""
    folders: tuple[str, ...] = ()


def scan(lxc_path: Path) -> dict[str, Processes]:
    """Find every container of this lxcpath by its monitor, name -> processes. Raises OSError."""
    found: dict[str, Processes] = {}
    for name, candidates in monitors(lxc_path).items():
        inits = ((monitor, child_init(monitor)) for monitor in candidates)
        monitor, init = next(((m, init) for m, init in inits if init is not None), (candidates[-1], None))
        found[name] = Processes(monitor, init)
    return found


def monitors(lxc_path: Path) -> dict[str, list[ProcessRecord]]:
    """Find what monitors, or is about to monitor, each container of this lxcpath. Raises OSError."""
    found: dict[str, list[ProcessRecord]] = {}
    for pid in _pids():
        if (name := _monitored(command_line(pid), str(lxc_path))) and (record := record_of(pid)) is not None:
            found.setdefault(name, []).append(record)
    return found


def restorers(lxc_path: Path) -> dict[str, list[ProcessRecord]]:
    """Find CRIU where it restores containers of this lxcpath: what it has not let go yet has not run. Raises OSError."""
    found: dict[str, list[ProcessRecord]] = {}
    for pid in _pids():
        if (name := _restored(command_line(pid), lxc_path)) and (record := record_of(pid)) is not None:
            found.setdefault(name, []).append(record)
    return found


def monitor_of(init: ProcessRecord) -> ProcessRecord | None:
    """Return the monitor of a container's init; None for any other process, and for an init that has lost its monitor.

    Raises OSError when it cannot be told. Reads nothing that may hang.
    """
    if not _is_init(init.pid) or (stat := stat_of(init.pid)) is None or stat.parent <= 1:
        return None
    parent = stat_of(stat.parent)
    if parent is None or not is_alive(init):  # asked last: pids may have changed hands
        return None
    if not parent.name.startswith(_MONITOR_NAMES):
        raise OSError(f"process {stat.parent}, which keeps the init {init.pid}, is no monitor of a kind that is known")
    return ProcessRecord(stat.parent, parent.start_ticks)


def end(monitor: ProcessRecord) -> bool:
    """Take a step to the end of a container by its monitor; return whether a next one is needed. Raises OSError.

    The monitor is stopped first: it cannot start another init then (a reboot), so the inits seen are all. It is killed
    last: while an init is left it is, too, and whoever takes the next step, in whichever process, finds them all.
    """
    if not send(monitor, signal.SIGSTOP):
        return False
    if stands_still(monitor):
        inits = _inits(monitor)
        thaw(inits)
        if not kill_each({str(init.pid): init for init in inits}):
            send(monitor, signal.SIGKILL)
    return True


def thaw(inits: Iterable[ProcessRecord]) -> None:
    """Let go what is held in the cgroups of containers (v1): a process that is held there does not die of SIGKILL.

    A container may hold parts of itself, so all of it is looked at. What cannot be read or written is left.
    """
    for init in inits:
        with suppress(OSError):
            for folder in _freezers(init.pid):
                state = folder / "freezer.state"
                if state.exists() and state.read_text().strip() != "THAWED":
                    state.write_text("THAWED")


def _freezers(init_pid: int) -> Iterator[Path]:
    """The freezer cgroups of a container, from its own downwards."""
    for line in (PROC / str(init_pid) / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "freezer" in controllers.split(","):
            parts = path.split("/")
            own = next((number for number, part in enumerate(parts) if part.startswith(PAYLOAD)), None)
            top = _folder_of(list(_cgroup_mounts()), {"freezer"}, "/".join(parts[: own + 1])) if own else None
            if top is not None:
                yield from (Path(folder) for folder, _, _ in os.walk(top))


def kill_payload(name: str) -> None:
    """SIGKILL all that is in the cgroups of a container (v2), also what has no monitor: a restore that was cut short.

    Raises OSError.
    """
    for mounted, _, point in _cgroup_mounts():
        if mounted == {UNIFIED}:
            for folder, inner, _ in os.walk(point):
                for own in [each for each in inner if _is_payload(each, name)]:
                    Path(folder, own, "cgroup.kill").write_text("1")


def live_names(lxc_path: Path) -> set[str]:
    """Return the containers of this lxcpath whose monitors listen, by their command sockets. Raises OSError.

    One file is read.
    """
    prefix = f"@{lxc_path}/"
    names = set()
    for line in (PROC / "self/net/unix").read_text(errors="replace").splitlines():
        path = line.rpartition(" ")[2]
        if path.startswith(prefix) and path.endswith("/command"):
            names.add(path[len(prefix) : -len("/command")])
    return {name for name in names if "/" not in name}


def child_init(monitor: ProcessRecord) -> ProcessRecord | None:
    """Return the init that a monitor runs now; another one after each reboot of the container. Raises OSError."""
    return next(iter(_inits(monitor)), None)


def addresses(init_pid: int) -> tuple[str, ...]:
    """Return the addresses that a container has by its own account, loopback and link-local ones left out."""
    found: list[str] = []
    with suppress(OSError):
        found += dict.fromkeys(_LOCAL.findall((PROC / str(init_pid) / "net/fib_trie").read_text()))
    with suppress(OSError):
        for words in (line.split() for line in (PROC / str(init_pid) / "net/if_inet6").read_text().splitlines()):
            if words[3] != _LINK_SCOPE:
                found.append(str(ip_address(bytes.fromhex(words[0]))))
    return tuple(text for text in found if not ip_address(text).is_loopback)


def cgroups_of(init_pid: int, name: str) -> Cgroups:
    """Find the cgroups of a container by its init."""
    by_controller = {name: str(folder) for name, folder in folders_by_controller(init_pid, name).items()}
    unified = by_controller.get(UNIFIED, "")
    folders = tuple(sorted(set(by_controller.values())))
    return Cgroups(by_controller.get("cpuacct", unified), by_controller.get("memory", unified), folders)


def folders_by_controller(init_pid: int, name: str) -> dict[str, Path]:
    """Return the container's own folder in each hierarchy, by controller ("unified" for v2); {} when it has ended.

    An init may move itself deeper (systemd does); the container's folder is the uppermost that liblxc makes for this name.
    """
    mounts = list(_cgroup_mounts())
    found: dict[str, Path] = {}
    with suppress(OSError):
        for line in (PROC / str(init_pid) / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            names = set(controllers.split(",")) if controllers else {UNIFIED}
            if folder := _folder_of(mounts, names, _payload(path, name)):
                found.update(dict.fromkeys(names, folder))
    return found


def is_set_up(init: ProcessRecord) -> bool:
    """Whether liblxc has done its part in the process that becomes a container's init: it has become another program."""
    stat = stat_of(init.pid)
    return stat is not None and not stat.name.startswith(_MONITOR_NAMES)


def container_cgroups(found: Processes, name: str) -> Cgroups:
    """Return the cgroups of a container; those of its monitor are among `folders`, for they are to be removed too."""
    inits = cgroups_of(found.init.pid, name) if found.init else Cgroups()
    monitors = cgroups_of(found.monitor.pid, name).folders if found.monitor else ()
    own = tuple(folder for folder in monitors if Path(folder).name.startswith(_MONITOR_CGROUP))
    return Cgroups(inits.cpu, inits.memory, inits.folders + own)


def remove_cgroups(cgroups: Cgroups) -> None:
    """Remove the empty cgroups that a killed monitor left; those in use stay."""
    for top in cgroups.folders:
        for folder, _, _ in os.walk(top, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)


def _restored(words: list[str], lxc_path: Path) -> str:
    """Name of the container that a process with these arguments restores; "" for all others."""
    if not words or os.path.basename(words[0]) != "criu":
        return ""
    hooks = (Path(after) for word, after in pairwise(words) if word == "--action-script")
    return next((hook.parent.name for hook in hooks if hook.parent.parent == lxc_path), "")


def _monitored(words: list[str], lxc_path: str) -> str:
    """Name of the container that a process with these arguments monitors, or is about to; "" for all others."""
    if len(words) == 1 and words[0].startswith(f"{_TITLE}{lxc_path} "):
        return words[0].rpartition(" ")[2]
    program = os.path.basename(words[0]) if words else ""
    begins = program == _STARTER or (program == _RESTORER and "--restore" in words)
    if begins and f"--lxcpath={lxc_path}" in words:
        return next((word[len("--name=") :] for word in words if word.startswith("--name=")), "")
    return ""


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir(PROC) if name.isdigit())


def _inits(monitor: ProcessRecord) -> list[ProcessRecord]:
    """The inits among the children of a monitor: more than one in the middle of a reboot."""
    found = (record_of(pid) for pid in _children(monitor.pid) if _is_init(pid))
    return [init for init in found if init is not None]


def _children(pid: int) -> list[int]:
    children: list[int] = []
    for thread in threads_of(pid):
        try:
            children += map(int, (thread / "children").read_text().split())
        except ProcessLookupError:
            continue
        except FileNotFoundError:  # the thread ended, or the kernel was built without such files (PROC_CHILDREN)
            return [other for other in _pids() if (stat := stat_of(other)) is not None and stat.parent == pid]
    return children


def _is_init(pid: int) -> bool:
    """Whether a process is the first one of a pid namespace of its own."""
    try:
        status = (PROC / str(pid) / "status").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    ids = next((line.split()[1:] for line in status.splitlines() if line.startswith(b"NSpid:")), [])
    return len(ids) > 1 and ids[-1] == b"1"


def _cgroup_mounts() -> Iterator[tuple[set[str], str, Path]]:
    """Controllers ("unified" for v2), root in the hierarchy, and mount point of each cgroup mount: proc(5)."""
    with suppress(OSError):
        for line in (PROC / "self/mountinfo").read_text().splitlines():
            head, _, tail = line.partition(" - ")
            kind, _, options = [*tail.split(), "", "", ""][:3]
            if kind in ("cgroup", "cgroup2"):
                words = head.split()
                names = {UNIFIED} if kind == "cgroup2" else set(options.split(","))
                yield names, words[3], Path(words[4])


def _payload(path: str, name: str) -> str:
    parts = path.split("/")
    own = next((number for number, part in enumerate(parts) if _is_payload(part, name)), len(parts))
    return "/".join(parts[: own + 1])


def _is_payload(folder: str, name: str) -> bool:
    """Whether a cgroup is a container's own; a number follows when the cgroup of a run before is still there."""
    return re.fullmatch(re.escape(PAYLOAD + name) + r"(-\d+)?", folder) is not None


def _folder_of(mounts: list[tuple[set[str], str, Path]], names: set[str], path: str) -> Path | None:
    for mounted, root, point in mounts:
        if not names & mounted:
            continue
        relative = os.path.relpath(path, root)
        if not relative.startswith(".."):
            return point / relative
    return None
