"""Making a container ready to start: which ids it runs with, first-boot settings, and its configuration file."""

import os
from dataclasses import dataclass
from pathlib import Path

from agent.compute import idmap
from agent.compute.lxc import config, rootfs
from agent.compute.lxc.launch import Files
from agent.compute.lxc.runs import Definition
from common.errors import GugusError, internal
from common.files import write_atomic

UNPRIVILEGED = "unprivileged"
PRIVILEGED = "privileged"

_SHARE = Path("/usr/share/lxc/config")
_PROFILES = Path("/sys/kernel/security/apparmor/profiles")
_PROFILE = "lxc-container-default-cgns"
_FOLDER_MODE = 0o755  # liblxc reads the file with the container's ids too; nothing in it is secret


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the start of a container was prepared for."""

    mode: str
    halt_signal: str


def this_host() -> config.Host:
    """Look at what the configuration depends on."""
    return config.Host(
        unified_cgroups=Path("/sys/fs/cgroup/cgroup.controllers").exists(),
        includes=_there("common.conf"),
        userns_includes=_there("userns.conf"),
        apparmor=_has_profile(),
    )


def _has_profile() -> bool:
    """Whether the kernel has the AppArmor profile of containers; that AppArmor is on does not say so, and liblxc starts none without."""
    try:
        return any(line.startswith(f"{_PROFILE} ") for line in _PROFILES.read_text().splitlines())
    except OSError:
        return False


def prepare(definition: Definition, files: Files, unprivileged_problem: str) -> Prepared:
    """Write everything a start needs; blocks. Raises GUEST_START_FAILED.

    `unprivileged_problem`: why unprivileged containers do not work on this host, "" when they do.
    """
    try:
        return _prepare(definition, files, unprivileged_problem)
    except OSError as error:
        raise _failed(definition, f"{error.strerror}: {error.filename or definition.disk.path}") from error


def _prepare(definition: Definition, files: Files, unprivileged_problem: str) -> Prepared:
    spec, root = definition.spec, definition.disk.path
    owner = os.stat(root).st_uid
    mode = _mode(definition, owner, unprivileged_problem)
    hostname = spec.first_boot.hostname or spec.name
    settings = rootfs.FirstBootSettings(spec.uid or spec.name, hostname, tuple(spec.first_boot.ssh_authorized_keys))
    if not definition.disk.read_only:
        rootfs.apply_first_boot(root, settings, owner)
    halt = rootfs.halt_signal(root)
    container = config.ContainerConfig(
        name=spec.name,
        hostname=hostname,
        rootfs=root,
        console_log=files.console,
        cpus=spec.cpus,
        cpu_limit_milli=spec.cpu_limit_milli,
        memory_bytes=spec.memory_bytes,
        halt_signal=halt,
        idmap=tuple(idmap.IDMAP.lxc_lines()) if mode == UNPRIVILEGED else (),
        nics=[
            config.Nic(nic.spec.name, host_interface(spec.id, number), nic.bridge, nic.spec.mac)
            for number, nic in enumerate(definition.nics)
        ],
        read_only=definition.disk.read_only,
    )
    text = config.render(container, this_host())
    for old in (files.log, files.console, Path(f"{files.console}.1")):
        old.unlink(missing_ok=True)
    write_atomic(files.config, text.encode())
    return Prepared(mode, halt)


def make_folder(files: Files) -> None:
    """Make the container's folder and mark it as ours. Raises OSError; FileExistsError when it is somebody else's."""
    if files.folder.exists() and not files.mark.exists() and any(files.folder.iterdir()):
        raise FileExistsError(str(files.folder))
    files.folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    write_atomic(files.mark, b"This folder belongs to gugus-agent.\n")


def host_interface(guest_id: int, number: int) -> str:
    """Name of the host's end of a container's network interface: at most 15 characters (IFNAMSIZ)."""
    return f"gv{guest_id}-{number}"


def _mode(definition: Definition, owner: int, unprivileged_problem: str) -> str:
    """Tell how to run it. The owner of the root file system decides: a container cannot use files with other ids."""
    if owner == idmap.IDMAP.base:
        if unprivileged_problem:
            raise _failed(definition, f"its files are for an unprivileged container, but here {unprivileged_problem}")
        return UNPRIVILEGED
    if owner != 0:
        raise _failed(definition, f"its root file system belongs to uid {owner}; expected 0 or {idmap.IDMAP.base}")
    if not definition.spec.container.privileged and not unprivileged_problem:
        raise _failed(
            definition,
            "its root file system belongs to the host's root, but it is not privileged",
            remedy="Import the volume again for unprivileged use, or set container.privileged.",
        )
    return PRIVILEGED


def _failed(definition: Definition, why: str, *, remedy: str = "") -> GugusError:
    error = internal("GUEST_START_FAILED", f'container "{definition.spec.name}" cannot be started: {why}.')
    error.remedy = remedy
    return error


def _there(name: str) -> tuple[Path, ...]:
    return (_SHARE / name,) if (_SHARE / name).exists() else ()


def mode_of(init_pid: int) -> str:
    """Tell how a running container runs, by its init's id map."""
    try:
        first = Path(f"/proc/{init_pid}/uid_map").read_text().split()
    except OSError:
        return ""
    return PRIVILEGED if first[1:2] == ["0"] else UNPRIVILEGED
